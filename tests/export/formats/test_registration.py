"""A format of another package: found by its entry point, written by the command line, told in lineage and card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.config import Quantize
from dsr1_tune.errors import ConfigError
from dsr1_tune.export import check_serve, lineage
from dsr1_tune.export.formats import registry

TOY = '''
"""Signs and a mean for each row: two bytes a weight fewer, and very wrong."""

from dsr1_tune.export.formats.encoding import Encoding, distance, write_encoded
from dsr1_tune.export.formats.format import Format
from dsr1_tune.export.weights.accounting import chosen
from dsr1_tune.models.weights.checkpoint import Spec


def write(source, folder, settings, narrator):
    return write_encoded(Encoding(chosen(source.layout, settings.all), specs, encode, config), source, folder, narrator)


def specs(name, spec):
    return {name: Spec("I8", spec.shape), f"{name}_step": Spec("F32", (spec.shape[0], 1))}


def encode(name, weight):
    step = weight.float().abs().amax(1, keepdim=True) / 127
    rounded = (weight.float() / step).round()
    return {name: rounded.char(), f"{name}_step": step}, distance(weight, rounded * step)


def config(skipped, groups):
    return {"quant_method": "toy", "skipped": skipped}


FORMAT = Format(
    name="toy",
    bits=8.1,
    write=write,
    is_stored_as=lambda stored: stored.get("quant_method") == "toy",
    next_step="Play with it: {folder}",
    options={"group_size": ""},
    gentler=lambda settings: ("--to int8",),
)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path that holds an installed package with a format."""
    folder = tmp_path / "site"
    about = folder / "toy_format-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "toy_format.py").write_text(TOY)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-format\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[dsr1_tune.formats]\ntoy = toy_format:FORMAT\n")
    monkeypatch.syspath_prepend(folder)
    registry.formats.cache_clear()
    yield folder
    monkeypatch.undo()
    registry.formats.cache_clear()


def test_registered_format_is_written_by_the_command_line(package: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(cli.app, ["quantize", str(tiny_base), "--to", "toy", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"Play with it: {out}" in " ".join(done.output.split()) and "Quantize routed experts" in done.output
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    stored, exact = load_file(out / "model.safetensors"), load_file(tiny_base / "model.safetensors")[name]
    back = stored[name].float() * stored[f"{name}_step"]
    assert (back - exact).norm() / exact.norm() < 0.02
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "toy"

    stage = lineage.known(out).stage("quantize")
    assert stage is not None and stage.facts["to"] == stage.facts["settings"]["to"] == "toy"
    (experts,) = [group for group in stage.facts["groups"] if group["part"] == "routed_experts"]
    assert experts["share"] == 1 and 0 < experts["relative_error"] < 0.02
    assert lineage.verify(out) == []
    assert CliRunner().invoke(cli.app, ["card", str(out)]).exit_code == 0
    card = (out / "README.md").read_text()
    assert "- toy\n" in card and " toy" in card.split("---\n")[2]
    problems = check_serve.run(out, "vllm").problems
    assert any("is stored as toy, which vLLM does not read" in problem for problem in problems)


def test_registered_format_is_known_by_name_and_settings(package: Path) -> None:
    assert registry.pick(Quantize(to="toy", group_size=64)) is registry.formats()["toy"]
    assert registry.gentler(Quantize(to="toy")) == ("--to int8",)
    with pytest.raises(ConfigError, match="method=gptq is for to=w4a16, but to is toy"):
        registry.pick(Quantize(to="toy", method="gptq"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("raise OSError('no such library')", "cannot be loaded: OSError: no such library"),
        ("FORMAT = 7", "is a int, not a Format"),
        (TOY.replace('name="toy"', 'name="fp8"'), "is called fp8, as another one is"),
    ],
)
def test_registered_format_that_cannot_be_used_is_named(package: Path, change: str, said: str) -> None:
    (package / "toy_format.py").write_text(change)
    import sys

    sys.modules.pop("toy_format", None)
    with pytest.raises(ConfigError, match=said) as refused:
        registry.pick(Quantize(to="nf4"))
    assert "toy of toy-format" in refused.value.message and "toy_format:FORMAT" in refused.value.hint
    sys.modules.pop("toy_format", None)
