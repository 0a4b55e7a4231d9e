"""Opening a run: what is refused before weights are loaded, what the manifest records, and what can be resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors import SafetensorError

from dsr1_tune.config import Base, Data, LoraRun, Template
from dsr1_tune.errors import ConfigError, ModelError, RunError, TuneError
from dsr1_tune.runs import open_session, session
from dsr1_tune.runs.folder import RunFolder
from tests.lora_runs import (
    NUM_HELD_OUT,
    NUM_STEPS,
    NUM_TRAIN,
    ROWS,
    ConfigureLora,
    FinishedRun,
    Told,
    curve_of,
    go,
    go_on,
    litter,
    press,
    sha256,
    texts_in,
)


def test_manifest_records_config_data_base_versions_and_results(
    lora_run: FinishedRun, lora_data: Path, tiny_base: Path, configure_lora: ConfigureLora
) -> None:
    manifest = lora_run.folder.manifest()
    assert (manifest["status"], manifest["command"], manifest["seed"]) == ("finished", "lora", 42)
    assert manifest["started"] <= manifest["ended"]
    assert LoraRun.model_validate(manifest["config"]) == configure_lora(lora_run.path)
    assert manifest["data_sha256"] == {str(lora_data): sha256(lora_data)}
    assert manifest["base"] == {"name": str(tiny_base), "revision": None, "folder": str(tiny_base)}
    for name in ("torch", "transformers", "peft", "trl", "dsr1-tune"):
        assert manifest["versions"][name] == metadata.version(name)
    assert set(manifest["seconds"]) == {"load", "evaluate_before", "train", "evaluate_after", "check"}
    assert all(seconds > 0 for seconds in manifest["seconds"].values())
    metrics, evaluation = manifest["metrics"], lora_run.folder.evaluation()
    assert metrics["num_steps"] == NUM_STEPS
    assert metrics["loss_before"] == evaluation["before"]["loss"]
    assert metrics["loss_after"] == evaluation["after"]["loss"]
    assert metrics["reloaded_loss"] == pytest.approx(metrics["loss_after"], abs=1e-3)
    assert "error" not in manifest


def test_run_folder_holds_kept_held_out_and_rejected_rows(lora_run: FinishedRun) -> None:
    train, held_out = texts_in(lora_run.path, "train"), texts_in(lora_run.path, "eval")
    assert (len(train), len(held_out)) == (NUM_TRAIN, NUM_HELD_OUT)
    assert {*train, *held_out} == {(row["input"], row["output"]) for row in ROWS}
    [rejected] = map(json.loads, (lora_run.path / "data" / "rejected.jsonl").read_text().splitlines())
    assert (rejected["code"], rejected["row"]) == ("empty_answer", {"input": "what is nothing?", "output": ""})
    report = json.loads((lora_run.path / "data" / "report.json").read_text())
    assert (report["num_rows"], report["num_kept"]) == (31, 30)


def test_rows_that_the_template_makes_too_long_are_rejected_and_reported(
    configure_lora: ConfigureLora, tmp_path: Path
) -> None:
    file = tmp_path / "long.json"
    file.write_text(json.dumps([*ROWS, {"input": "what is long?", "output": "a" * 200}]))
    folder = go(configure_lora(tmp_path / "run", data=Data(files=(file,)), max_steps=1, samples=0))
    [rejected] = map(json.loads, (folder.data / "rejected.jsonl").read_text().splitlines())
    assert rejected["code"] == "too_long" and "128 are allowed" in rejected["detail"]


def test_resuming_a_finished_run_is_refused(lora_run: FinishedRun) -> None:
    before = lora_run.folder.manifest_file.read_bytes()
    with pytest.raises(RunError, match="is finished") as caught:
        go_on(lora_run.path)
    assert "dsr1-tune chat" in caught.value.hint
    assert lora_run.folder.manifest_file.read_bytes() == before


def test_resuming_with_changed_data_is_refused(
    configure_lora: ConfigureLora, lora_data: Path, at_step: Any, tmp_path: Path
) -> None:
    mine = Path(shutil.copy(lora_data, tmp_path / "mine.json"))
    at_step(1, press(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure_lora(tmp_path / "run", data=Data(files=(mine,)), samples=0))
    mine.write_text(json.dumps(ROWS[:-1]))
    with pytest.raises(RunError, match=r"mine\.json: has changed"):
        go_on(tmp_path / "run")
    mine.unlink()
    with pytest.raises(RunError, match=r"mine\.json"):
        go_on(tmp_path / "run")
    assert RunFolder(tmp_path / "run").manifest()["status"] == "interrupted"


def test_resuming_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        go_on(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_opening_a_run_refuses_to_overwrite_another(lora_run: FinishedRun, configure_lora: ConfigureLora) -> None:
    before = {path: path.stat().st_mtime_ns for path in lora_run.path.rglob("*")}
    with pytest.raises(RunError, match=r"already holds a run \(finished\)"):
        go(configure_lora(lora_run.path))
    assert {path: path.stat().st_mtime_ns for path in lora_run.path.rglob("*")} == before


def test_a_run_at_work_is_refused_to_others_and_none_the_worse_for_it(
    lora_run: FinishedRun, configure_lora: ConfigureLora, tmp_path: Path, at_step: Any
) -> None:
    refused: list[RunError] = []

    def others() -> None:
        for other in (lambda: go(configure_lora(tmp_path / "run")), lambda: go_on(tmp_path / "run")):
            with pytest.raises(RunError, match=rf"a run is at work there: process {os.getpid()} on ") as caught:
                other()
            refused.append(caught.value)

    at_step(3, others)
    path = go(configure_lora(tmp_path / "run")).path
    assert len(refused) == 2 and curve_of(path) == curve_of(lora_run.path)
    assert not (path / ".lock").exists()


@pytest.mark.slow
def test_of_two_commands_at_once_with_one_out_one_goes_on(tiny_base: Path, lora_data: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "dsr1_tune", "lora", "--data", str(lora_data), "--model", str(tiny_base)]
    line += ["--out", str(tmp_path / "run"), "--set", "schedule.max_tokens=128", "--set", "sample_tokens=2"]
    two = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process: process.communicate() for process in two}
    first, second = sorted(two, key=lambda process: process.returncode)
    assert (first.returncode, second.returncode) == (0, 2), said
    busy = f"a run is at work there: process {first.pid} on {socket.gethostname()}, since "
    assert busy in said[second][1] or "already holds a run (finished)" in said[second][1]
    assert RunFolder(tmp_path / "run").manifest()["status"] == "finished"
    assert RunFolder(tmp_path / "run").changed_outputs() == []


def test_failed_run_is_recorded_and_can_be_resumed(
    configure_lora: ConfigureLora, lora_run: FinishedRun, at_step: Any, tmp_path: Path
) -> None:
    def fail() -> None:
        raise ModelError("something is wrong", hint="mend it")

    at_step(6, fail)
    with pytest.raises(ModelError):
        go(configure_lora(tmp_path / "run", save_steps=2))
    assert "something is wrong" in RunFolder(tmp_path / "run").manifest()["error"]
    told = Told()
    manifest = go_on(tmp_path / "run", told).manifest()
    assert manifest["status"] == "finished" and "error" not in manifest
    assert "other tokens or labels" not in told.text
    assert curve_of(tmp_path / "run") == pytest.approx(curve_of(lora_run.path), abs=1e-6)


@pytest.mark.parametrize("began", ["before there were template settings", "with other labels"])
def test_resumed_run_says_that_its_rows_are_encoded_otherwise_than_before(
    configure_lora: ConfigureLora, at_step: Any, tmp_path: Path, began: str
) -> None:
    at_step(1, press(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure_lora(tmp_path / "run", max_steps=2, samples=0))
    file = tmp_path / "run" / "manifest.json"
    manifest = json.loads(file.read_text())
    if began == "with other labels":
        manifest["encoded_sha256"] = "0" * 64
    else:
        del manifest["encoded_sha256"], manifest["config"]["template"]
    file.write_text(json.dumps(manifest))
    told = Told()
    assert go_on(tmp_path / "run", told).manifest()["status"] == "finished"
    assert "warning" in told.text and "other tokens or labels now than when the run began" in told.text


def test_arguments_that_the_template_never_reads_refuse_the_run(configure_lora: ConfigureLora, tmp_path: Path) -> None:
    config = configure_lora(tmp_path / "run", template=Template(kwargs={"enable_thinking": True}))
    with pytest.raises(ConfigError, match="the base's chat template never reads enable_thinking"):
        go(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["checkpoint", "adapter"])
@pytest.mark.parametrize(
    "full",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 52928 vs 52820"),
    ],
    ids=["file", "safetensors", "torch"],
)
def test_full_disk_leaves_nothing_half_written_and_the_run_resumable(
    configure_lora: ConfigureLora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, full: Exception
) -> None:
    save = PeftModel.save_pretrained

    def fail(model: Any, folder: str, **given: Any) -> None:
        if (".part" in folder) == (where == "adapter"):
            (Path(folder) / "adapter_config.json").write_text("{")
            raise full
        save(model, folder, **given)

    monkeypatch.setattr(PeftModel, "save_pretrained", fail)
    with pytest.raises(RunError, match="no room is left") as caught:
        go(configure_lora(tmp_path / "run", max_steps=1, samples=0))
    assert f"dsr1-tune lora --resume {tmp_path / 'run'}" in caught.value.hint
    folder = RunFolder(tmp_path / "run")
    assert folder.manifest()["status"] == "failed"
    assert (folder.latest_checkpoint() is None) == (where == "checkpoint")
    assert not folder.adapter.exists() and not litter(folder.path)
    monkeypatch.undo()
    assert go_on(folder.path).manifest()["status"] == "finished"


def test_opening_a_run_refuses_bad_input_before_weights_are_read(
    configure_lora: ConfigureLora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "load_located", lambda *given, **more: pytest.fail("weights were read"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "empty.json").write_text("[]")
    wrong = (
        {"data": Data(files=(tmp_path / "nothing.json",))},
        {"data": Data(files=(tmp_path / "empty.json",))},
        {"base": Base(model=str(tmp_path / "nowhere"))},
        {"max_tokens": 16},
        {"out": tmp_path / "full"},
    )
    for changes in wrong:
        with pytest.raises(TuneError):
            go(configure_lora(**{"out": tmp_path / "run", **changes}))
    assert not (tmp_path / "run").exists()


def test_manifest_pins_a_hub_id_to_its_commit(configure_lora: ConfigureLora, tmp_path: Path) -> None:
    config = configure_lora(tmp_path / "run")
    here = open_session.locate(config.base)
    assert open_session._pinned(config, here) == config
    on_hub = replace(here, name="org/model", repo_id="org/model", revision="1a2b")
    asked = config.model_copy(update={"base": Base(model="org/model", revision="main", dtype="bfloat16")})
    assert open_session._pinned(asked, on_hub).base == Base(model="org/model", revision="1a2b", dtype="bfloat16")
    assert open_session._pinned(asked, on_hub).schedule == config.schedule
