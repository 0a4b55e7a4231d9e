"""The formats that `--to` takes: found by name, their settings checked, gentler ones known."""

from __future__ import annotations

from typing import Any

import pytest

from dsr1_tune.adapt import run as adapt
from dsr1_tune.config import AdaptRun, ExportRun, Quantize
from dsr1_tune.config.load import load_config
from dsr1_tune.errors import ConfigError
from dsr1_tune.export import export
from dsr1_tune.export.formats.registry import BUILT_IN, formats, gentler, pick, stored_as

NAMES = [one.name for one in BUILT_IN]


def test_pick_finds_every_built_in_format() -> None:
    assert list(formats())[: len(NAMES)] == NAMES == ["nf4", "int8", "w4a16", "fp8", "gguf"]
    assert all(pick(Quantize(to=name)) is formats()[name] for name in NAMES)
    assert pick(Quantize(to="none")) is None


def test_pick_names_the_known_formats_where_one_is_unknown() -> None:
    with pytest.raises(ConfigError, match="int9 is no format") as refused:
        pick(Quantize(to="int9"))
    assert refused.value.exit_code == 2 and all(name in refused.value.hint for name in NAMES)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"to": "nf4", "method": "gptq"}, "method=gptq is for to=w4a16, but to is nf4"),
        ({"to": "nf4", "gguf": "q8_0"}, "gguf=q8_0 is for to=gguf"),
        ({"gguf": "q8_0"}, "gguf=q8_0 is for to=gguf"),
        ({"to": "nf4", "group_size": 64}, "group_size=64 is for to=w4a16"),
        ({"to": "none", "group_size": 64}, "group_size=64 is for to=w4a16"),
        ({"to": "gguf", "calibration_rows": 7}, "calibration_rows=7 is for to=w4a16 with method=gptq"),
        ({"to": "w4a16", "calibration_rows": 7}, "but to is w4a16 with method=rtn"),
    ],
)
@pytest.mark.parametrize(("kind", "command"), [(ExportRun, export.run), (AdaptRun, adapt.run)])
def test_settings_of_another_format_are_refused(kind: Any, command: Any, flags: dict[str, Any], told: str) -> None:
    given = {f"quantize.{name}": value for name, value in flags.items()}
    config = load_config(kind, None, {**given, "run": "a run"} if kind is ExportRun else {**given, "data.files": ["a"]})
    with pytest.raises(ConfigError, match=f"quantize: .*{told}"):
        command(config)


@pytest.mark.parametrize("settings", [{"method": "gptq", "calibration_rows": 7, "group_size": 64}, {"group_size": 32}])
def test_settings_of_the_chosen_format_are_taken(settings: dict[str, Any]) -> None:
    assert pick(Quantize.model_validate({"to": "w4a16", **settings})) is formats()["w4a16"]


@pytest.mark.parametrize("to", ["none", *NAMES])
def test_defaults_of_every_format_may_be_written_down(to: str) -> None:
    given = load_config(ExportRun, None, {"quantize.to": to})
    assert ExportRun.model_validate(given.model_dump()) == given
    pick(given.quantize)


def test_gentler_formats_are_other_formats() -> None:
    for to in ("none", *formats()):
        for flags in gentler(Quantize(to=to)):
            sets = [part for part in flags.split() if "=" in part]
            advised = load_config(ExportRun, None, {"quantize.to": flags.split()[1]}, sets).quantize
            assert advised != Quantize(to=to) and pick(advised) is not None
    assert gentler(Quantize(to="int8")) == ("--to gguf --set quantize.gguf=q8_0",)
    assert gentler(Quantize(to="gguf", gguf="q8_0")) == ("--to gguf --set quantize.gguf=bf16",)
    assert gentler(Quantize(to="w4a16"))[0] == "--to w4a16 --set quantize.method=gptq"
    assert gentler(Quantize(to="w4a16", method="gptq"))[0] == "--to fp8" and gentler(Quantize(to="none")) == ()


def test_stored_as_tells_formats_apart_by_what_config_json_says() -> None:
    bnb = {"quant_method": "bitsandbytes"}
    told = [{**bnb, "load_in_8bit": True}, {**bnb, "bnb_4bit_quant_type": "nf4"}, {"quant_method": "fp8"}]
    assert [one.name if (one := stored_as(quantization)) else None for quantization in told] == ["int8", "nf4", "fp8"]
    assert stored_as({"quant_method": "awq"}) is None
