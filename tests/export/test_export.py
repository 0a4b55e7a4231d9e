"""Exports with versions: only what is whole and passed its gates is ever current."""

from __future__ import annotations

import errno
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.config import ExportRun
from dsr1_tune.errors import ConfigError, ModelError, RunError
from dsr1_tune.export import export, lineage, quantize
from dsr1_tune.export.comparison.gates import GatesMissed
from dsr1_tune.lock import locked
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import TinyRun

QUICK: dict[str, Any] = {"max_rows": 3, "answers": 1, "answer_tokens": 2}


def exported(run: RunFolder, out: Path, to: str = "nf4", **gates: Any) -> tuple[Path, str]:
    """The version, and what was said."""
    said = io.StringIO()
    config = {"run": run.path, "out": out, "quantize": {"to": to}, "compare": QUICK, "gates": gates}
    return export.run(ExportRun.model_validate(config), Console(file=said, width=200)), said.getvalue()


@pytest.fixture(scope="module")
def first(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one version, merged in 16 bits; copied by the tests that go on from it."""
    out = tmp_path_factory.mktemp("exports") / "sums"
    exported(run, out, "none", min_agreement=0.99, max_loss_increase=0.001)
    return out


@pytest.fixture
def out(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "exports", symlinks=True))


def whole_versions(out: Path) -> list[str]:
    """The names of the versions, each of which must be whole."""
    found = sorted(folder.name for folder in (out / "versions").iterdir())
    assert all(lineage.verify(out / "versions" / name) == [] for name in found)
    return found


def test_export_makes_a_whole_version_current(out: Path, run: RunFolder) -> None:
    current = out / "current"
    assert current.is_symlink() and not current.readlink().is_absolute()  # the folder may be moved
    assert [current.resolve().name] == whole_versions(out) and current.resolve().name.endswith("-merged")
    assert sorted(entry.name for entry in out.iterdir()) == ["current", "versions"]
    found = json.loads((current / "compare.json").read_text())
    assert found["missed"] == [] and found["a"]["name"] == str(run.path)
    assert found["domain"]["agreement"]["value"] == 1.0
    known = lineage.known(current)
    assert {"README.md", "compare.html", "compare.json", "config.json"} <= set(known.files)
    assert known.stage("merge") is not None
    assert load_with_adapter(current).model is not None


def test_export_that_misses_a_gate_keeps_the_version_that_was(out: Path, run: RunFolder) -> None:
    before = whole_versions(out)
    with pytest.raises(GatesMissed, match="domain loss rose") as raised:
        exported(run, out, min_agreement=1.0, max_loss_increase=0.0)
    assert raised.value.exit_code == 1
    assert [(out / "current").resolve().name] == before == whole_versions(out)
    (missed,) = (out / "missed").iterdir()
    assert json.loads((missed / "compare.json").read_text())["missed"] and (missed / "compare.html").is_file()
    assert str(missed) in raised.value.hint and not (out / ".unfinished").exists()


def test_export_makes_a_better_version_current_and_keeps_the_old_one(out: Path, run: RunFolder) -> None:
    (before,) = whole_versions(out)
    made, said = exported(run, out, max_loss_increase=0.5)
    assert (out / "current").resolve() == made.resolve() and made.name.endswith("-nf4")
    assert whole_versions(out) == sorted([before, made.name])
    assert f"is now {made}" in said and "all gates passed" in said
    assert lineage.known(made).stage("quantize") is not None


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device", "model.safetensors"), ModelError("x", "y")],
    ids=["Ctrl-C", "disk full", "an error"],
)
def test_export_that_fails_changes_nothing(
    out: Path, run: RunFolder, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole_versions(out)

    def breaks(source: Path, made: Path, *rest: Any) -> Path:
        made.mkdir()
        (made / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(quantize, "run", breaks)
    said = io.StringIO()
    config = ExportRun.model_validate({"run": run.path, "out": out})
    with pytest.raises(type(error)):
        export.run(config, Console(file=said, width=200))
    assert "is still" in said.getvalue() and before[0] in said.getvalue()
    assert [(out / "current").resolve().name] == before == whole_versions(out)
    assert sorted(entry.name for entry in out.iterdir()) == ["current", "versions"]


def test_export_names_a_corrupt_shard_and_changes_nothing(
    out: Path, tiny_run: TinyRun, tmp_path: Path, run: RunFolder
) -> None:
    before = whole_versions(out)
    folder = tmp_path / "copy"
    shutil.copytree(run.path.parent, folder)
    broken = RunFolder(folder / "run")
    tree = broken.manifest()
    tree["base"] = {**tree["base"], "name": str(folder / "base"), "folder": str(folder / "base")}
    broken.manifest_file.write_text(json.dumps(tree))
    shard = folder / "base" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        exported(broken, out)
    assert [(out / "current").resolve().name] == before == whole_versions(out)


def test_export_that_misses_its_first_gate_leaves_nothing_current(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(GatesMissed):
        exported(run, tmp_path / "new", min_agreement=1.0, max_loss_increase=0.0)
    assert sorted(entry.name for entry in (tmp_path / "new").iterdir()) == ["missed"]


def test_export_refuses_places_that_are_no_exports(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"thesis\.tex"):
        exported(run, tmp_path)
    with pytest.raises(RunError, match="is a file"):
        exported(run, tmp_path / "thesis.tex")
    (tmp_path / "own" / "current").mkdir(parents=True)
    with pytest.raises(RunError, match="is no link"):
        exported(run, tmp_path / "own")
    with pytest.raises(RunError, match="no such folder"):
        exported(RunFolder(tmp_path / "nowhere"), tmp_path / "new")
    with pytest.raises(RunError, match="no finished run"):
        exported(RunFolder(run.path.parent / "base"), tmp_path / "new")
    with pytest.raises(ConfigError, match="no run"):
        export.run(ExportRun(out=tmp_path / "new"), Console(file=io.StringIO()))
    assert not (tmp_path / "new").exists()


def test_export_refuses_a_folder_where_another_is_at_work(run: RunFolder, out: Path) -> None:
    with locked(out / ".lock", "busy"), pytest.raises(RunError, match="another export"):
        exported(run, out)


def test_export_clears_what_a_killed_one_left(run: RunFolder, out: Path) -> None:
    (out / ".unfinished" / "20260101-000000-nf4").mkdir(parents=True)
    exported(run, out)
    assert sorted(entry.name for entry in out.iterdir()) == ["current", "versions"]


@pytest.mark.slow
def test_export_killed_at_any_moment_keeps_current_whole(run: RunFolder, out: Path) -> None:
    arguments = [str(run.path), "--to", "nf4", "--out", str(out)]
    arguments += [f"--set=compare.{name}={value}" for name, value in QUICK.items()]
    command = [sys.executable, "-m", "dsr1_tune", "export", *arguments]
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - began
    draw = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (out / "current").resolve().name in whole_versions(out)
    before = whole_versions(out)
    subprocess.run(command, check=True, capture_output=True)
    assert len(whole_versions(out)) == len(before) + 1 and not (out / ".unfinished").exists()
