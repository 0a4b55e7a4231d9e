"""The whole way on a tiny base: done once, gone on with, and refused where something changed underneath."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.adapt.run import run
from dsr1_tune.adapt.state import STAGES, State, begun_with
from dsr1_tune.config import AdaptRun
from dsr1_tune.errors import ConfigError, DataError, RunError
from dsr1_tune.export import lineage
from dsr1_tune.export.comparison.gates import GatesMissed
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.moe.quantized_experts import is_in_nf4
from tests.adapt.conftest import settings


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def whole(qwen: Path, short: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished way, and what it said. Copy it to change it."""
    out, console = tmp_path_factory.mktemp("adapt") / "out", quiet()
    assert run(settings(qwen, short, out), console) == out / "model"
    return out, console.file.getvalue()  # type: ignore[attr-defined]


def test_every_stage_is_whole(whole: tuple[Path, str]) -> None:
    out, said = whole
    state = State(out)
    assert [name for name in STAGES if state.is_done(name)] == list(STAGES)
    assert state.stage("plan")["method"] == "lora" and "lora: it fits" in said
    assert state.stage("clean")["num_dropped"] == 1
    assert state.stage("train")["num_steps"] == 2
    assert state.stage("merge")["certificate"]
    assert state.stage("quantize")["bytes"] < state.stage("merge")["bytes"]
    assert state.stage("compare")["missed"] == [] and state.stage("compare")["agreement"] > 0.5
    known = lineage.known(out / "model")
    assert [known.stage(name) is not None for name in ("train", "merge", "quantize")] == [True] * 3
    assert "compare.json" in known.files and (out / "model" / "README.md").is_file()


def test_what_came_of_it_is_a_model_in_4_bits(whole: tuple[Path, str]) -> None:
    assert is_in_nf4(load_with_adapter(whole[0] / "model").model)


def test_the_report_links_what_is_there(whole: tuple[Path, str]) -> None:
    page = (whole[0] / "report.html").read_text()
    for link in ("plan.json", "data/report.html", "run/report.html", "model/compare.html", "model/README.md"):
        assert f'href="{link}"' in page and (whole[0] / link).is_file()
    assert "finished" in page and "<script" not in page and "certified" in page


def test_the_report_speaks_chinese(whole: tuple[Path, str]) -> None:
    from dsr1_tune.adapt.page import render

    page = render(whole[0], State(whole[0]).read(), "zh")
    assert "从数据到模型" in page and "量化" in page and "held-out" not in page


def test_a_rerun_does_nothing_again(whole: tuple[Path, str], qwen: Path, short: Path) -> None:
    out = whole[0]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    console = quiet()
    run(settings(qwen, short, out), console)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before
    assert console.file.getvalue().count("done before") == len(STAGES)  # type: ignore[attr-defined]


def test_it_goes_on_with_its_own_settings(whole: tuple[Path, str], qwen: Path, short: Path) -> None:
    begun = begun_with(whole[0])
    assert begun == settings(qwen, short.absolute(), whole[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"schedule": {"max_steps": 3, "max_tokens": 128}}, "schedule.max_steps=2, now it is 3"),
     ({"method": "full"}, 'method="auto", now it is "full"'),
     ({"quantize": {"to": "none"}}, "quantize.to")],
)  # fmt: skip
def test_other_settings_are_refused(
    whole: tuple[Path, str], qwen: Path, short: Path, change: dict[str, Any], said: str
) -> None:
    before = (whole[0] / "adapt.json").read_bytes()
    with pytest.raises(RunError, match="was begun with") as refused:
        run(settings(qwen, short, whole[0], **change), quiet())
    assert said in refused.value.message and "another --out" in refused.value.hint
    assert (whole[0] / "adapt.json").read_bytes() == before


def test_changed_data_is_refused(whole: tuple[Path, str], qwen: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"input": "what is one?", "output": "it is one"}]))
    state = State(tmp_path / "out")
    (tmp_path / "out").mkdir()
    from dsr1_tune.adapt.state import begin

    begin(state, settings(qwen, data, tmp_path / "out"))
    data.write_text(json.dumps([{"input": "what is one?", "output": "it is two"}]))
    with pytest.raises(RunError, match=r"data\.json: has changed since"):
        begin(state, settings(qwen, data, tmp_path / "out"))


def test_a_missed_gate_keeps_everything(whole: tuple[Path, str], qwen: Path, short: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    strict = settings(qwen, short, out, gates={"max_loss_increase": 0.5, "min_agreement": 1.0, "max_general_drop": 0.0})
    with pytest.raises(GatesMissed) as missed:
        run(strict, quiet())
    assert missed.value.exit_code == 1 and "gates.min_agreement" in missed.value.hint
    assert (out / "model" / "config.json").is_file() and (out / "merged" / "config.json").is_file()
    assert State(out).stage("compare")["status"] == "missed"
    assert "a gate was missed" in (out / "report.html").read_text()
    run(settings(qwen, short, out), quiet())  # allowed more, and only compared again
    assert State(out).is_done("compare")


def test_a_stage_that_was_whole_before_it_was_noted_is_taken(
    whole: tuple[Path, str], qwen: Path, short: Path, tmp_path: Path
) -> None:
    """Killed between the last file of a stage and its entry."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    state = State(out)
    stages = {name: facts for name, facts in state.read()["stages"].items() if name in ("plan", "clean")}
    state.write(stages={**stages, "train": {"status": "begun"}})
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    run(settings(qwen, short, out), quiet())
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before


@pytest.mark.parametrize("leaves", ["strangers", "damaged", "file"])
def test_an_out_that_is_something_else_is_refused(qwen: Path, short: Path, tmp_path: Path, leaves: str) -> None:
    out = tmp_path / "out"
    if leaves == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("adapt.json" if leaves == "damaged" else "mine.txt")).write_text("{")
    before = {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(RunError) as refused:
        run(settings(qwen, short, out), quiet())
    assert "another --out" in refused.value.hint
    assert {file: file.read_text() for file in before} == before


def test_the_lineage_names_the_users_own_file(whole: tuple[Path, str], short: Path) -> None:
    digest = hashlib.sha256(short.read_bytes()).hexdigest()
    for name in ("merged", "model"):
        known = lineage.known(whole[0] / name)
        data = known.stage("data")
        assert data and data.facts["files"] == {str(short): {"sha256": digest}}
        assert (data.facts["num_rows"], data.facts["num_kept"], data.facts["num_dropped"]) == (31, 30, 1)
        assert sum(data.facts["dropped"].values()) == 1
        cleaned = [str(whole[0] / "data" / f"{name}.jsonl") for name in ("train", "eval")]
        assert list(data.facts["cleaned"]["files"]) == cleaned
        assert lineage.Origin("data", str(short), "the same") in lineage.origins(known)
    card = (whole[0] / "model" / "README.md").read_text()
    assert digest in card and short.name in card and "31" in card and "train.jsonl" not in card


@pytest.mark.parametrize("is_there", [False, True])
def test_refused_input_leaves_the_out_free(qwen: Path, tmp_path: Path, is_there: bool) -> None:
    out = tmp_path / "out"
    if is_there:
        out.mkdir()
    with pytest.raises(DataError, match="no such file"):
        run(settings(qwen, tmp_path / "nope.json", out), quiet())
    assert list(out.iterdir()) == [] if is_there else not out.exists()


def test_nothing_is_taken_back_once_a_stage_is_whole(whole: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "out")
    State(tmp_path / "out").withdraw()
    assert State(tmp_path / "out").is_done("card") and (tmp_path / "out" / "plan.json").is_file()


def test_the_comparison_speaks_the_language_that_is_set(
    whole: tuple[Path, str], qwen: Path, short: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    run(settings(qwen, short, out, language="zh"), quiet())
    assert 'lang="zh-Hans"' in (out / "model" / "compare.html").read_text()
    assert lineage.verify(out / "model") == []


def test_no_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="no data"):
        run(AdaptRun(), quiet())


def test_memory_may_be_said_in_words() -> None:
    assert AdaptRun.model_validate({"memory": "24GiB"}).memory == 24
    assert AdaptRun.model_validate({"memory": "512 MiB"}).memory == 0.5
    assert AdaptRun.model_validate({"gates": {"min_agreement": 0.9}}).gates.max_loss_increase == 0.02
    assert AdaptRun.model_validate({"gates": {"min_agreement": None}}).gates.min_agreement is None


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_stopped_while_training_it_goes_on_from_the_checkpoint(
    qwen: Path, short: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    out = tmp_path / "out"
    (tmp_path / "config.json").write_text(
        settings(qwen, short, out, schedule={"max_steps": 60, "save_steps": 5, "max_tokens": 128}).model_dump_json()
    )
    words = [sys.executable, "-m", "dsr1_tune", "adapt"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [*words, "--config", str(tmp_path / "config.json")], stdout=said, stderr=said, cwd=tmp_path
        )
        deadline = time.monotonic() + 200
        while not list((out / "run").glob("checkpoints/checkpoint-*/.whole")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sign)
        code = process.wait(100)
    text = (tmp_path / "said").read_text()
    assert code == (130 if sign == signal.SIGINT else -9), text
    assert not State(out).is_done("train")
    done = subprocess.run([*words, "--out", str(out)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout and State(out).stage("train")["num_steps"] == 60
