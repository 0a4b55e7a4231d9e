"""Watched runs on a tiny model: what the log tells, faults that are really put in, and what an alarm does."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsr1_tune.config import LoraRun, Watch
from dsr1_tune.errors import RunError
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.moe.monitor import RoutingMonitor
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.watch.expert_tables import ExpertTables
from dsr1_tune.runs.watch.rollback import StoppedByAlarm
from dsr1_tune.runs.watch.watcher import GradientNorms
from dsr1_tune.train import lora
from tests.runs.watch.conftest import Fault, Told, log_of, spoiled_answers, watched_config

GROUPS = ("attention", "dense_ffn", "shared_experts", "routed_experts")


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers that follow from nothing: they can be learned by heart, and that helps with no other."""
    path = tmp_path_factory.mktemp("data") / "noise.json"
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(48)]
    path.write_text(json.dumps([{"input": words[n], "output": words[n + 24]} for n in range(24)]))
    return path


def updates(model: nn.Module, part: str, factor: str = "lora_B") -> list[nn.Parameter]:
    """The LoRA factors of a part of the model."""
    part_of = Anatomy(model)
    return [weight for name, weight in model.named_parameters() if factor in name and part_of(name) == part]


# --- the numbers of a healthy run -------------------------------------------------------------------------------------


def test_watcher_gives_no_alarm_in_a_healthy_run(healthy: tuple[RunFolder, str]) -> None:
    folder, text = healthy
    assert folder.manifest()["status"] == "finished"
    assert "alarms" not in folder.manifest() and "ALARM" not in text
    assert not any("alarms" in line for line in log_of(folder.path))


def test_watcher_logs_time_tokens_memory_gradients_and_experts(healthy: tuple[RunFolder, str]) -> None:
    log = log_of(healthy[0].path)
    assert [line["step"] for line in log] == list(range(1, 41))
    for line in log:
        groups = {name: norm for name, norm in line.items() if name.startswith("grad_norm/")}
        assert set(groups) == {f"grad_norm/{group}" for group in GROUPS}
        # Together they are the whole gradient, as it is before it is clipped.
        assert math.sqrt(sum(norm**2 for norm in groups.values())) == pytest.approx(line["grad_norm"], rel=1e-4)
        assert line["tokens_per_second"] > 0 and line["memory/rss_gib"] > 0.1
        assert 0 <= line["experts/entropy_min"] <= line["experts/entropy_mean"] <= 1
        assert 0 <= line["experts/max_violation_max"] <= 1  # of 4 experts 2 are chosen
        assert line["experts/dead"] == 0 and 0 <= line["experts/drift_max"] <= 1
    assert any(line["grad_norm"] > 0.1 for line in log), "nothing was clipped, so this proves little"
    tokens, seconds = [line["num_tokens"] for line in log], [line["seconds"] for line in log]
    assert tokens == sorted(tokens) and seconds == sorted(seconds)


def test_watcher_measures_the_held_out_loss_while_training(healthy: tuple[RunFolder, str]) -> None:
    folder, _ = healthy
    measured = {line["step"]: line["eval_loss"] for line in log_of(folder.path) if "eval_loss" in line}
    assert set(measured) == {10, 20, 30, 40}
    assert measured[40] == pytest.approx(folder.evaluation()["after"]["loss"], abs=1e-5)


def test_watcher_evaluation_does_not_change_what_is_trained(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, many_sums: Path
) -> None:
    folder = lora.run(watched_config(tmp_path / "run", tiny_base, many_sums), console=Told())
    assert [line["loss"] for line in log_of(folder.path)] == [line["loss"] for line in log_of(healthy[0].path)]
    counted, with_evaluation = (ExpertTables.read(path).training for path in (folder.path, healthy[0].path))
    assert counted is not None and with_evaluation is not None
    assert torch.equal(counted.load_LE, with_evaluation.load_LE)


@pytest.mark.slow
def test_watcher_counts_on_in_a_resumed_run(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, many_sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    def press_ctrl_c(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
        if step == 19 and not pressed:
            pressed.append(step)
            os.kill(os.getpid(), signal.SIGINT)

    pressed: list[int] = []
    sabotage(press_ctrl_c)
    config = watched_config(tmp_path / "run", tiny_base, many_sums, Watch(eval_steps=10))
    with pytest.raises(KeyboardInterrupt):
        lora.run(config, console=Told())
    at_the_break = log_of(tmp_path / "run")[-1]
    folder = lora.run(LoraRun(), tmp_path / "run", Told())
    unbroken, log = log_of(healthy[0].path), log_of(folder.path)
    for name in ("step", "num_tokens", "loss"):
        assert [line[name] for line in log] == pytest.approx([line[name] for line in unbroken], abs=1e-5)
    assert log[at_the_break["step"]]["seconds"] > at_the_break["seconds"]
    counted, wanted = ExpertTables.read(folder.path).training, ExpertTables.read(healthy[0].path).training
    assert counted is not None and wanted is not None
    assert torch.equal(counted.load_LE, wanted.load_LE)


# --- faults ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def nan_in_a_weight(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    if step == 25:
        updates(model, "attention")[0][0] = math.nan


def nan_in_a_gradient(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    if step == 25:
        updates(model, "routed_experts")[0].register_hook(lambda gradient: gradient * math.nan)


def huge_gradients(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    if step == 25:
        for weight in updates(model, "attention"):
            weight.register_hook(lambda gradient: gradient * 1e4)


def no_gradients(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    if step == 25:
        for factor in ("lora_A", "lora_B"):
            for weight in updates(model, "shared_experts", factor):
                weight.register_hook(lambda gradient: gradient * 0)


def _bias(model: nn.Module) -> torch.Tensor:
    return next(buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))


def crowded_router(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    if step >= 5:  # now and then as it was, so that no expert is dead
        _bias(model)[:2] = 0.0 if step % 15 == 0 else 100.0


def forbidden_expert(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    if step == 5:
        _bias(model)[1] = -100.0


@pytest.mark.parametrize(
    ("fault", "what", "where", "since"),
    [
        (nan_in_a_weight, "nan_loss", "loss", range(25, 26)),
        pytest.param(nan_in_a_gradient, "nan_gradient", "routed_experts", range(25, 26), marks=pytest.mark.slow),
        (spoiled_answers, "loss_spike", "loss", range(25, 26)),
        pytest.param(huge_gradients, "gradient_explosion", "attention", range(25, 26), marks=pytest.mark.slow),
        (no_gradients, "gradient_vanishing", "shared_experts", range(25, 26)),
        pytest.param(
            crowded_router, "router_collapse", "model.layers.1.mlp.experts", range(5, 26), marks=pytest.mark.slow
        ),
        (forbidden_expert, "dead_experts", "model.layers.1.mlp.experts", range(4, 7)),
    ],
)
def test_watcher_stops_the_run_at_a_fault_that_is_put_in(
    fault: Fault,
    what: str,
    where: str,
    since: range,
    tmp_path: Path,
    tiny_base: Path,
    many_sums: Path,
    sabotage: Callable[[Fault], None],
) -> None:
    sabotage(fault)
    told, path = Told(), tmp_path / "run"
    with pytest.raises(StoppedByAlarm) as caught:
        lora.run(watched_config(path, tiny_base, many_sums, Watch(on_alarm="stop")), console=told)
    assert isinstance(caught.value, RunError) and caught.value.exit_code == 2
    manifest = RunFolder(path).manifest()
    assert manifest["status"] == "stopped by alarm"
    found = next(alarm for alarm in manifest["alarms"] if (alarm["what"], alarm["where"]) == (what, where))
    assert found["since_step"] in since and found["try"] and found["detail"] and found["answer"] == "stop"
    assert "ALARM: " in told.text and where in told.text
    last = log_of(path)[-1]
    assert {alarm["what"] for alarm in last["alarms"]} == {alarm["what"] for alarm in manifest["alarms"]}
    assert last["step"] < 40
    assert where in (path / "report.html").read_text() or what == "nan_loss"


def test_watcher_notices_overfitting(tmp_path: Path, tiny_base: Path, noise: Path) -> None:
    watch = Watch(on_alarm="stop", eval_steps=10)
    config = watched_config(tmp_path / "run", tiny_base, noise, watch, max_steps=120, learning_rate=2e-2, save_steps=50)
    with pytest.raises(StoppedByAlarm) as caught:
        lora.run(config, console=Told())
    assert caught.value.alarm.what == "overfitting"


# --- what an alarm does ----------------------------------------------------------------------------------------------


def test_watcher_warns_once_and_the_run_goes_on(
    tmp_path: Path, tiny_base: Path, many_sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    sabotage(huge_gradients)
    told = Told()
    folder = lora.run(watched_config(tmp_path / "run", tiny_base, many_sums), console=told)
    alarms = folder.manifest()["alarms"]
    assert folder.manifest()["status"] == "finished" and len(log_of(folder.path)) == 40
    assert len({(alarm["what"], alarm["where"]) for alarm in alarms}) == len(alarms)
    assert told.text.count("ALARM: ") == len({(alarm["what"], alarm["step"]) for alarm in alarms})
    assert {alarm["answer"] for alarm in alarms} == {"warn"}


# --- small parts -----------------------------------------------------------------------------------------------------


def test_watcher_leaves_no_hooks_on_the_model(
    healthy: tuple[RunFolder, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_base: Path, many_sums: Path
) -> None:
    open_monitors: list[RoutingMonitor] = []
    made = RoutingMonitor.__init__

    def watch(self: RoutingMonitor, model: nn.Module) -> None:
        made(self, model)
        open_monitors.append(self)

    monkeypatch.setattr(RoutingMonitor, "__init__", watch)
    lora.run(watched_config(tmp_path / "run", tiny_base, many_sums, max_steps=2), console=Told())
    assert len(open_monitors) == 3 and not any(monitor._hooks for monitor in open_monitors)


def test_gradient_norms_by_group_are_those_of_a_plain_sum() -> None:
    from transformers import AutoModelForCausalLM

    from tests.conftest import tiny_config

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("qwen3_moe"))
    norms = GradientNorms()
    norms.measure(model)
    assert norms.take() == {}
    model(input_ids=torch.arange(20).unsqueeze(0)).logits.square().sum().backward()
    norms.measure(model, scale=4.0)
    part_of = Anatomy(model)
    wanted: dict[str, float] = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            wanted[part_of(name)] = wanted.get(part_of(name), 0.0) + float((weight.grad.double() / 4).square().sum())
    found = norms.take()
    assert found == pytest.approx({part: math.sqrt(square) for part, square in wanted.items()}, rel=1e-5)
    assert len(found) >= 5 and norms.take() == {}
