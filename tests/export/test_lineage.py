"""lineage.json: what a run says of itself, and every way in which files can differ from it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.errors import RunError
from dsr1_tune.export import lineage
from dsr1_tune.export.lineage import Stage
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import TinyRun


def verify(folder: Path) -> tuple[int, str]:
    """Exit code and output of the command."""
    done = CliRunner().invoke(cli.app, ["verify", str(folder)])
    return done.exit_code, done.output


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder of three files with its lineage, made of a data file."""
    data = tmp_path / "a.json"
    data.write_text("[]")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "sub/notes.txt"):
        (folder / name).write_text(name)
    facts = {"files": {str(data): {"sha256": hashlib.sha256(b"[]").hexdigest()}}}
    lineage.write(folder, [Stage("data", facts), Stage("merge", {"seconds": 1.5})])
    return folder


def test_lineage_of_a_run_has_data_training_and_adapter(tiny_run: TinyRun, sums: Path) -> None:
    run = tiny_run("qwen3_moe", "lora")
    data, train, adapter = lineage.of_run(run)
    assert (data.name, train.name, adapter.name) == ("data", "train", "adapter")
    assert data.facts["files"] == {str(sums): {"sha256": hashlib.sha256(sums.read_bytes()).hexdigest()}}
    assert (data.facts["num_rows"], data.facts["num_kept"], data.facts["language"]) == (30, 30, "en")
    assert data.facts["kept"]["train"]["num_records"] + data.facts["kept"]["held_out"]["num_records"] == 30
    manifest = run.manifest()
    assert train.facts["config"] == manifest["config"] and train.facts["versions"] == manifest["versions"]
    assert train.facts["evaluation"]["after"]["loss"] == manifest["metrics"]["loss_after"]
    assert not any("answers" in name for name in train.facts["evaluation"])
    assert train.facts["base"]["model_type"] == "qwen3_moe"
    weights = run.adapter / "adapter_model.safetensors"
    known = adapter.facts["files"][weights.name]
    assert known == {"bytes": weights.stat().st_size, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert json.loads(json.dumps([dict(stage.facts) for stage in (data, train, adapter)]))


def test_lineage_of_an_unfinished_run_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run("qwen3_moe", "lora").path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.update(status="interrupted")
    with pytest.raises(RunError, match="not finished"):
        lineage.of_run(run)
    run.update(status="finished")
    shutil.rmtree(run.adapter)
    with pytest.raises(RunError, match="neither adapter"):
        lineage.of_run(run)


def test_verify_passes_whole_files(exported: Path) -> None:
    code, said = verify(exported)
    assert code == 0
    assert "3 files: as they were written" in said and "still the same of what it was made of: 1 of 1 file" in said


def test_verify_names_every_difference(exported: Path) -> None:
    (exported / "config.json").unlink()
    (exported / "model.safetensors").write_text("model.safetensorz")  # of the same size
    (exported / "sub" / "notes.txt").write_text("longer than it was")
    (exported / "more.txt").write_text("")
    (exported / ".cache").mkdir()
    (exported / ".cache" / "hub").write_text("hidden files are not ours")
    (exported.parent / "a.json").write_text("[1]")
    found = {difference.file: difference.kind for difference in lineage.verify(exported)}
    assert found == {
        "config.json": "missing",
        "more.txt": "extra",
        "model.safetensors": "changed",
        "sub/notes.txt": "changed",
    }
    code, said = verify(exported)
    assert code == 1
    assert "missing: config.json" in said and "other content of the same size" in said and "4 differ" in said
    assert "changed: " in said and "a.json (data)" in said


def test_verify_passes_where_origins_are_gone(exported: Path) -> None:
    (exported.parent / "a.json").unlink()
    code, said = verify(exported)
    assert code == 0 and "no longer there: " in said


def test_verify_without_lineage_is_refused(tmp_path: Path, exported: Path, tiny_run: TinyRun) -> None:
    for folder, said in ((tmp_path, "has no lineage.json"), (tmp_path / "x", "is no folder")):
        with pytest.raises(RunError, match=said) as caught:
            lineage.verify(folder)
        assert caught.value.exit_code == 2
    with pytest.raises(RunError, match="merge it first"):
        lineage.verify(tiny_run("qwen3_moe", "lora").path)
    (exported / lineage.FILE).write_text('{"format": "another"}')
    with pytest.raises(RunError, match="cannot be used: is of another version"):
        lineage.verify(exported)


def test_lineage_refresh_of_one_file_does_not_bless_another(exported: Path) -> None:
    (exported / "README.md").write_text("# A card")
    (exported / "model.safetensors").write_text("damaged")
    before = lineage.known(exported)
    after = lineage.refresh(exported, ["README.md"])
    assert after.stages == before.stages
    assert [difference.file for difference in lineage.verify(exported)] == ["model.safetensors"]
