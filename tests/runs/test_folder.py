"""The run folder: made once, reopened until it is finished, and never trusted blindly."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from dsr1_tune.config import Base, Data, LoraRun, Schedule
from dsr1_tune.errors import RunError
from dsr1_tune.runs.folder import FAILED, FINISHED, INTERRUPTED, RunFolder, hash_files, step_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(config: LoraRun) -> RunFolder:
    folder = RunFolder.vacant(config, "lora")
    folder.begin(config, "lora")
    return folder


def made(out: str = "run") -> RunFolder:
    return begun(LoraRun(out=Path(out)))


def with_checkpoints(folder: RunFolder, *steps: int) -> RunFolder:
    for step in steps:
        (folder.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        folder.mark_whole(step)
    return folder


def test_new_run_folder_records_its_command_and_config() -> None:
    folder = made("deep/run")
    manifest = folder.manifest()
    assert (manifest["status"], manifest["command"]) == ("running", "lora")
    assert manifest["started"].endswith("+00:00")
    assert folder.config(LoraRun) == LoraRun(out=Path("deep/run"))


def test_run_folder_may_be_an_empty_folder() -> None:
    Path("run").mkdir()
    assert made().manifest_file.exists()


def test_run_folder_refuses_occupied_places() -> None:
    Path("notes").mkdir()
    Path("notes/a.txt").touch()
    Path("file").touch()
    with pytest.raises(RunError, match="notes: is not empty"):
        made("notes")
    with pytest.raises(RunError, match="file: is a file") as caught:
        made("file")
    assert "--out" in caught.value.hint
    with pytest.raises(NotADirectoryError):
        made("file/run")
    made()
    with pytest.raises(RunError, match=r"already holds a run \(running\)") as caught:
        made()
    assert "dsr1-tune lora --resume run" in caught.value.hint
    RunFolder(Path("run")).close(FINISHED)
    with pytest.raises(RunError, match=r"already holds a run \(finished\)") as caught:
        made()
    assert "--resume" not in caught.value.hint


def test_run_folder_without_out_is_named_after_data_and_time() -> None:
    config = LoraRun(data=Data(files=(Path("in/medical.v2.json"),)))
    folders = [begun(config).path for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.parent == Path("runs") and folder.name.startswith("medical-2") for folder in folders)


def test_run_folder_config_has_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("model").mkdir()
    config = LoraRun(
        data=Data(files=(Path("a.json"),)), base=Base(model="model"), schedule=Schedule(seed=7), out=Path("run")
    )
    folder = RunFolder(begun(config).path.absolute())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    read = folder.config(LoraRun)
    assert read.data.files == (tmp_path / "a.json",)
    assert read.base.model == str(tmp_path / "model")
    assert read.schedule == config.schedule


def test_run_folder_config_keeps_a_hub_id() -> None:
    config = LoraRun(base=Base(model="deepseek-ai/DeepSeek-V2-Lite-Chat"), out=Path("run"))
    assert begun(config).config(LoraRun).base == config.base


@pytest.mark.parametrize("status", [INTERRUPTED, FAILED])
def test_run_folder_that_is_not_finished_can_be_reopened(status: str) -> None:
    made().close(status)
    assert RunFolder.reopen(Path("run"), "lora").manifest()["status"] == status


def test_run_folder_that_cannot_be_reopened_says_why() -> None:
    with pytest.raises(RunError, match="holds no run"):
        RunFolder.reopen(Path("nowhere"), "lora")
    made().close(FINISHED)
    with pytest.raises(RunError, match="is finished"):
        RunFolder.reopen(Path("run"), "lora")


@pytest.mark.parametrize("text", ["", '{"status": "run', "[1, 2]", "null", "\udcff"])
def test_damaged_manifest_is_an_error_with_its_name(text: str) -> None:
    made().manifest_file.write_bytes(text.encode(errors="surrogateescape"))
    for step in (lambda: RunFolder.reopen(Path("run"), "lora"), made):
        with pytest.raises(RunError, match=r"manifest\.json: ") as caught:
            step()
        assert "start a new one" in caught.value.hint


@pytest.mark.parametrize("config", [None, 5, {"no_such": 1}, {"schedule": {"seed": "x"}}])
def test_manifest_without_a_valid_config_is_an_error(config: object) -> None:
    folder = made()
    folder.manifest_file.write_text(json.dumps({"status": "interrupted", **({"config": config} if config else {})}))
    with pytest.raises(RunError, match=r"manifest\.json: has no valid config"):
        folder.config(LoraRun)


def test_manifest_facts_are_added_replaced_and_removed() -> None:
    folder = made()
    folder.update(error="bad", seed=1)
    folder.update(error=None, seed=2)
    manifest = folder.manifest()
    assert "error" not in manifest and manifest["seed"] == 2 and manifest["status"] == "running"
    folder.close(FINISHED, metrics={"loss": 1.0})
    assert folder.manifest()["metrics"] == {"loss": 1.0} and folder.manifest()["ended"]


def test_evaluation_file_is_added_to() -> None:
    folder = made()
    assert folder.evaluation() == {}
    folder.write_evaluation(before=1)
    folder.write_evaluation(after=2)
    assert folder.evaluation() == {"before": 1, "after": 2}


def test_latest_checkpoint_is_the_highest_whole_one() -> None:
    folder = made()
    assert folder.latest_checkpoint() is None
    with_checkpoints(folder, 9, 100, 20)
    (folder.checkpoints / "checkpoint-200").mkdir()
    latest = folder.latest_checkpoint()
    assert latest == folder.checkpoints / "checkpoint-100"
    assert step_of(latest) == 100


def test_hash_files_gives_sha256_by_absolute_path() -> None:
    Path("a.json").write_text("[]")
    assert hash_files((Path("a.json"),)) == {str(Path("a.json").absolute()): hashlib.sha256(b"[]").hexdigest()}


def test_hash_files_is_empty_for_what_is_no_file() -> None:
    os.mkfifo("pipe")  # reading it would wait for ever
    Path("folder").mkdir()
    assert set(hash_files((Path("pipe"), Path("folder"), Path("gone"), Path("x" * 5000))).values()) == {""}


def test_run_folder_notices_changed_data() -> None:
    folder = made()
    folder.check_data({"a.json": "1"})
    folder.update(data_sha256={"a.json": "1", "b.json": "2"})
    folder.check_data({"a.json": "1", "b.json": "2"})
    with pytest.raises(RunError, match=r"b\.json: has changed"):
        folder.check_data({"a.json": "1", "b.json": "3"})
    with pytest.raises(RunError, match=r"b\.json: is no longer there"):
        folder.check_data({"a.json": "1", "b.json": ""})


def test_run_folder_notices_another_base() -> None:
    folder = made()
    folder.check_base("org/model", "1a2b")
    folder.update(base={"name": "org/model", "revision": "1a2b"})
    folder.check_base("org/model", "1a2b")
    for name, revision in (("org/model", "3c4d"), ("org/other", "1a2b"), ("org/model", None)):
        with pytest.raises(RunError, match="the run began on org/model \\(1a2b\\)"):
            folder.check_base(name, revision)
