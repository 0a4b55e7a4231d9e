"""The whole way on a tiny base: done once, gone on with, and refused where something changed underneath."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsr1_tune.adapt.run import run
from dsr1_tune.adapt.state import STAGES, State
from dsr1_tune.config import AdaptRun
from dsr1_tune.errors import ConfigError
from dsr1_tune.export import lineage
from dsr1_tune.export.comparison.gates import GatesMissed
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.moe.quantized_experts import is_in_nf4
from tests.adapt.conftest import quiet, settings


def test_adapt_finishes_every_stage(whole: tuple[Path, str]) -> None:
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


def test_adapt_makes_a_model_in_4_bits(whole: tuple[Path, str]) -> None:
    assert is_in_nf4(load_with_adapter(whole[0] / "model").model)


def test_adapt_rerun_does_nothing_again(whole: tuple[Path, str], qwen: Path, short: Path) -> None:
    out = whole[0]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    console = quiet()
    run(settings(qwen, short, out), console)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before
    assert console.file.getvalue().count("done before") == len(STAGES)  # type: ignore[attr-defined]


def test_adapt_that_misses_a_gate_keeps_everything(
    whole: tuple[Path, str], qwen: Path, short: Path, tmp_path: Path
) -> None:
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


def test_adapt_lineage_names_the_users_own_file(whole: tuple[Path, str], short: Path) -> None:
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


def test_adapt_comparison_is_in_the_language_that_is_set(
    whole: tuple[Path, str], qwen: Path, short: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    run(settings(qwen, short, out, language="zh"), quiet())
    assert 'lang="zh-Hans"' in (out / "model" / "compare.html").read_text()
    assert lineage.verify(out / "model") == []


def test_adapt_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="no data"):
        run(AdaptRun(), quiet())


def test_adapt_says_why_both_ways_are_refused_in_place_of_that_they_do_not_fit(
    qwen: Path, short: Path, tmp_path: Path
) -> None:
    config = settings(qwen, short, tmp_path / "out", parallel={"processes": 5, "strategy": "experts"}, device="cpu")
    with pytest.raises(ConfigError, match=r"lora: .*cannot be shared out among 5.*qlora: ") as raised:
        run(config, quiet())
    assert "GiB" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_adapt_stopped_while_training_goes_on_from_the_checkpoint(
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
