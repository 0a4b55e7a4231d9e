"""The run folder: made once, reopened until it is finished, and never trusted blindly."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dsr1_tune.config import Base, Data, LoraRun, Schedule
from dsr1_tune.errors import ConfigError, RunError
from dsr1_tune.runs.folder import FAILED, FINISHED, INTERRUPTED, RunFolder, hash_files, step_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(config: LoraRun) -> RunFolder:
    with RunFolder.new(config, "lora") as folder:
        folder.begin(config, "lora")
    return folder


def made(out: str = "run") -> RunFolder:
    return begun(LoraRun(out=Path(out)))


def reopen(path: str = "run") -> None:
    with RunFolder.reopened(Path(path), "lora"):
        pass


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


def test_run_folders_that_are_named_in_the_same_second_are_not_shared() -> None:
    config, gate, folders = LoraRun(), threading.Barrier(12), []

    def begin() -> None:
        gate.wait()
        with RunFolder.new(config, "lora") as folder:
            folder.begin(config, "lora")
            folders.append(folder.path)

    threads = [threading.Thread(target=begin) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 12
    assert sorted(path.name for path in Path("runs").iterdir()) == sorted(path.name for path in folders)


def test_run_folder_at_work_is_refused_to_others_with_its_process() -> None:
    told = rf"run: a run is at work there: process {os.getpid()} on {re.escape(socket.gethostname())}, since "
    config = LoraRun(out=Path("run"))
    with RunFolder.new(config, "lora") as folder:
        for _ in range(2):  # with and without a manifest
            with pytest.raises(RunError, match=told):
                made()
            folder.begin(config, "lora")
        with pytest.raises(RunError, match=told) as caught:
            reopen()
        assert "stop it first" in caught.value.hint
    with RunFolder.reopened(Path("run"), "lora"), pytest.raises(RunError, match=told):
        reopen()
    assert not folder.lock_file.exists()


def test_run_folder_left_by_a_killed_process_can_be_reopened_and_begun_anew() -> None:
    script = "; ".join(
        [
            "import os, sys",
            "from pathlib import Path",
            "from dsr1_tune.lock import locked",
            "lock = locked(Path(sys.argv[1]), 'busy')",
            "lock.__enter__()",
            "os.kill(os.getpid(), 9)",
        ]
    )
    subprocess.run([sys.executable, "-c", script, "new/run/.lock"], check=False)
    assert Path("new/run/.lock").exists()
    folder = made("new/run")
    subprocess.run([sys.executable, "-c", script, "new/run/.lock"], check=False)
    reopen("new/run")
    assert not folder.lock_file.exists()


def test_run_folder_that_is_refused_leaves_nothing() -> None:
    Path("mine").mkdir()
    for out in (Path("a/b/run"), Path("mine"), None):
        with pytest.raises(ConfigError), RunFolder.new(LoraRun(out=out), "lora"):
            raise ConfigError("refused")
    assert [path.name for path in Path().iterdir()] == ["mine"]
    with RunFolder.new(LoraRun(out=Path("mine")), "lora") as folder:
        folder.begin(LoraRun(), "lora")
        (folder.data / "a").mkdir(parents=True)
        folder.clear()
        assert [path.name for path in folder.path.iterdir()] == [".lock"]


@pytest.mark.parametrize("status", [INTERRUPTED, FAILED])
def test_run_folder_that_is_not_finished_can_be_reopened(status: str) -> None:
    made().close(status)
    with RunFolder.reopened(Path("run"), "lora") as folder:
        assert folder.manifest()["status"] == status


def test_run_folder_that_cannot_be_reopened_says_why() -> None:
    with pytest.raises(RunError, match="holds no run"):
        reopen("nowhere")
    made().close(FINISHED)
    with pytest.raises(RunError, match="is finished"):
        reopen()


@pytest.mark.parametrize("text", ["", '{"status": "run', "[1, 2]", "null", "\udcff"])
def test_damaged_manifest_is_an_error_with_its_name(text: str) -> None:
    made().manifest_file.write_bytes(text.encode(errors="surrogateescape"))
    for step in (reopen, made):
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
