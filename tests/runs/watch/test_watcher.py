"""Watched runs on a tiny model: what the log tells, faults that are really put in, and what an alarm does."""

from __future__ import annotations

import io
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
from rich.console import Console
from torch import nn
from transformers import TrainerState

from dsr1_tune.config import Base, Data, LoraRun, Schedule, Watch
from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.errors import ConfigError, RunError
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.moe.monitor import RoutingMonitor
from dsr1_tune.runs import session
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.trainer import ResumableTrainer
from dsr1_tune.runs.watch import trackers
from dsr1_tune.runs.watch.expert_tables import ExpertTables
from dsr1_tune.runs.watch.gradients import GradientNorms
from dsr1_tune.runs.watch.rollback import StoppedByAlarm
from dsr1_tune.runs.watch.trackers import check_trackers
from dsr1_tune.train import lora

Fault = Callable[[nn.Module, int, dict[str, Any]], None]
GROUPS = ("attention", "dense_ffn", "shared_experts", "routed_experts")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.json"
    rows = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(10) for b in range(12)]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers that follow from nothing: they can be learned by heart, and that helps with no other."""
    path = tmp_path_factory.mktemp("data") / "noise.json"
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(48)]
    path.write_text(json.dumps([{"input": words[n], "output": words[n + 24]} for n in range(24)]))
    return path


def configure(out: Path, base: Path, data: Path, watch: Watch | None = None, **schedule: Any) -> LoraRun:
    usual = {"max_steps": 40, "learning_rate": 1e-2, "batch_size": 8, "save_steps": 8, "max_tokens": 128}
    return LoraRun(
        out=out,
        data=Data(files=(data,)),
        base=Base(model=str(base)),
        schedule=Schedule(**{**usual, "gradient_checkpointing": False, "max_grad_norm": 0.1, **schedule}),
        watch=watch or Watch(),
        samples=0,
    )


class Told(Console):
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.kept = io.StringIO()
        super().__init__(file=self.kept, width=500)

    @property
    def text(self) -> str:
        return self.kept.getvalue()


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """sabotage(fault) calls fault(model, step, batch) before every forward pass of training."""

    def put_in(fault: Fault) -> None:
        class Sabotaged(ResumableTrainer):
            def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
                fault(self.model, self.state.global_step + 1, inputs)
                return super().training_step(model, inputs, *args, **kwargs)

        monkeypatch.setattr(session, "ResumableTrainer", Sabotaged)

    return put_in


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "train_log.jsonl").read_text().splitlines()]


def updates(model: nn.Module, part: str, factor: str = "lora_B") -> list[nn.Parameter]:
    """The LoRA factors of a part of the model."""
    part_of = Anatomy(model)
    return [weight for name, weight in model.named_parameters() if factor in name and part_of(name) == part]


# --- the numbers of a healthy run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, sums: Path) -> tuple[RunFolder, str]:
    told = Told()
    config = configure(tmp_path_factory.mktemp("healthy") / "run", tiny_base, sums, Watch(eval_steps=10))
    return lora.run(config, console=told), told.text


def test_a_healthy_run_gives_no_alarm(healthy: tuple[RunFolder, str]) -> None:
    folder, text = healthy
    assert folder.manifest()["status"] == "finished"
    assert "alarms" not in folder.manifest() and "ALARM" not in text
    assert not any("alarms" in line for line in log_of(folder.path))


def test_every_step_tells_time_tokens_memory_gradients_and_experts(healthy: tuple[RunFolder, str]) -> None:
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


def test_the_held_out_loss_is_measured_while_training(healthy: tuple[RunFolder, str]) -> None:
    folder, _ = healthy
    measured = {line["step"]: line["eval_loss"] for line in log_of(folder.path) if "eval_loss" in line}
    assert set(measured) == {10, 20, 30, 40}
    assert measured[40] == pytest.approx(folder.evaluation()["after"]["loss"], abs=1e-5)


def test_measuring_while_training_does_not_change_what_is_trained(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, sums: Path
) -> None:
    folder = lora.run(configure(tmp_path / "run", tiny_base, sums), console=Told())
    assert [line["loss"] for line in log_of(folder.path)] == [line["loss"] for line in log_of(healthy[0].path)]
    counted, with_evaluation = (ExpertTables.read(path).training for path in (folder.path, healthy[0].path))
    assert counted is not None and with_evaluation is not None
    assert torch.equal(counted.load_LE, with_evaluation.load_LE)


def test_the_tables_hold_the_probe_and_all_that_was_trained_on(healthy: tuple[RunFolder, str]) -> None:
    folder, _ = healthy
    tables = ExpertTables.read(folder.path)
    assert tables.before is not None and tables.training is not None and tables.after is not None
    assert tables.before.layers == tables.after.layers == ("model.layers.1.mlp.experts",)
    assert tables.before.num_chosen == 2
    assert tables.before.rows_L.tolist() == tables.after.rows_L.tolist()  # the same probe
    assert tables.training.rows_L.tolist() == [2 * log_of(folder.path)[-1]["num_tokens"]]


def test_the_numbers_are_on_tensorboard_too(healthy: tuple[RunFolder, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(healthy[0].tensorboard))
    events.Reload()
    log = log_of(healthy[0].path)
    for curve, name in (
        ("grad_norm/routed_experts", "grad_norm/routed_experts"),
        ("experts/entropy_mean", "experts/entropy_mean"),
        ("train/tokens_per_second", "tokens_per_second"),
        ("train/eval_loss", "eval_loss"),
    ):
        points = {point.step: point.value for point in events.Scalars(curve)}
        assert points == pytest.approx({line["step"]: line[name] for line in log if name in line}, rel=1e-5)


def test_a_resumed_run_counts_on(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    def press_ctrl_c(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
        if step == 19 and not pressed:
            pressed.append(step)
            os.kill(os.getpid(), signal.SIGINT)

    pressed: list[int] = []
    sabotage(press_ctrl_c)
    config = configure(tmp_path / "run", tiny_base, sums, Watch(eval_steps=10))
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


def spoiled_answers(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    """From one step on every token that is to be learned is one that the data never holds."""
    if step >= 25:
        batch["labels"][batch["labels"] != IGNORED] = 200


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
        (nan_in_a_gradient, "nan_gradient", "routed_experts", range(25, 26)),
        (spoiled_answers, "loss_spike", "loss", range(25, 26)),
        (huge_gradients, "gradient_explosion", "attention", range(25, 26)),
        (no_gradients, "gradient_vanishing", "shared_experts", range(25, 26)),
        (crowded_router, "router_collapse", "model.layers.1.mlp.experts", range(5, 26)),
        (forbidden_expert, "dead_experts", "model.layers.1.mlp.experts", range(4, 7)),
    ],
)
def test_a_fault_that_is_put_in_stops_the_run(
    fault: Fault,
    what: str,
    where: str,
    since: range,
    tmp_path: Path,
    tiny_base: Path,
    sums: Path,
    sabotage: Callable[[Fault], None],
) -> None:
    sabotage(fault)
    told, path = Told(), tmp_path / "run"
    with pytest.raises(StoppedByAlarm) as caught:
        lora.run(configure(path, tiny_base, sums, Watch(on_alarm="stop")), console=told)
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


def test_learning_by_heart_is_noticed(tmp_path: Path, tiny_base: Path, noise: Path) -> None:
    watch = Watch(on_alarm="stop", eval_steps=10)
    config = configure(tmp_path / "run", tiny_base, noise, watch, max_steps=120, learning_rate=2e-2, save_steps=50)
    with pytest.raises(StoppedByAlarm) as caught:
        lora.run(config, console=Told())
    assert caught.value.alarm.what == "overfitting"


# --- what an alarm does ----------------------------------------------------------------------------------------------


def test_a_warning_is_said_once_and_the_run_goes_on(
    tmp_path: Path, tiny_base: Path, sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    sabotage(huge_gradients)
    told = Told()
    folder = lora.run(configure(tmp_path / "run", tiny_base, sums), console=told)
    alarms = folder.manifest()["alarms"]
    assert folder.manifest()["status"] == "finished" and len(log_of(folder.path)) == 40
    assert len({(alarm["what"], alarm["where"]) for alarm in alarms}) == len(alarms)
    assert told.text.count("ALARM: ") == len({(alarm["what"], alarm["step"]) for alarm in alarms})
    assert {alarm["answer"] for alarm in alarms} == {"warn"}


def test_a_stopped_run_goes_on_from_before_the_fault(
    tmp_path: Path, tiny_base: Path, sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    path = tmp_path / "run"
    sabotage(spoiled_answers)
    with pytest.raises(StoppedByAlarm):
        lora.run(configure(path, tiny_base, sums, Watch(on_alarm="stop")), console=Told())
    stopped_at = log_of(path)[-1]["step"]
    names = {place.name for place in (path / "checkpoints").iterdir()}
    assert f"suspect-{stopped_at}" in names and "checkpoint-16" in names
    assert not {f"checkpoint-{step}" for step in range(24, 41)} & names
    sabotage(nothing)
    told = Told()
    folder = lora.run(LoraRun(), path, told)
    assert "checkpoint-16" in told.text
    assert folder.manifest()["status"] == "finished"
    assert [line["step"] for line in log_of(path)] == list(range(1, 41))


def nothing(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    pass


def only_once(fault: Fault) -> Fault:
    """The fault, until a step is done again."""
    last, is_healed = 0, False

    def put_in(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
        nonlocal last, is_healed
        is_healed = is_healed or step <= last
        last = step
        if not is_healed:
            fault(model, step, batch)

    return put_in


def test_a_rollback_goes_back_once_with_half_the_learning_rate(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    sabotage(only_once(spoiled_answers))
    told = Told()
    config = configure(tmp_path / "run", tiny_base, sums, Watch(on_alarm="rollback"))
    folder = lora.run(config, console=told)
    rolled_back = folder.manifest()["rollback"]
    assert (rolled_back["to_step"], rolled_back["learning_rate_factor"]) == (16, 0.5)
    assert f"steps 17 to {rolled_back['from_step']} are done again" in told.text
    log, undisturbed = log_of(folder.path), log_of(healthy[0].path)
    assert [line["step"] for line in log] == list(range(1, 41))
    rates, wanted = ([line["learning_rate"] for line in lines] for lines in (log, undisturbed))
    assert rates[:16] == pytest.approx(wanted[:16])
    assert rates[16:] == pytest.approx([rate / 2 for rate in wanted[16:]])
    # The first step after is the same batch on the same weights: the loss is what it was without any fault.
    assert log[16]["loss"] == pytest.approx(undisturbed[16]["loss"], abs=1e-5)
    assert folder.manifest()["status"] == "finished"
    assert not list((folder.path / "checkpoints").glob("suspect-*"))


def test_a_second_alarm_stops(tmp_path: Path, tiny_base: Path, sums: Path, sabotage: Callable[[Fault], None]) -> None:
    sabotage(spoiled_answers)
    told = Told()
    with pytest.raises(StoppedByAlarm):
        lora.run(configure(tmp_path / "run", tiny_base, sums, Watch(on_alarm="rollback")), console=told)
    manifest = RunFolder(tmp_path / "run").manifest()
    answers = [alarm["answer"] for alarm in manifest["alarms"]]
    assert answers[0] == "rollback" and answers[-1] == "stop" and manifest["status"] == "stopped by alarm"
    assert told.text.count("rolled back from") == 1


def test_where_no_checkpoint_is_old_enough_a_rollback_begins_anew(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    sabotage(only_once(spoiled_answers))
    told = Told()
    config = configure(tmp_path / "run", tiny_base, sums, Watch(on_alarm="rollback"), save_steps=100)
    folder = lora.run(config, console=told)
    assert "to the beginning" in told.text
    log, undisturbed = log_of(folder.path), log_of(healthy[0].path)
    assert log[0]["loss"] == undisturbed[0]["loss"]
    assert log[5]["learning_rate"] == pytest.approx(undisturbed[5]["learning_rate"] / 2)
    assert [line["step"] for line in log] == list(range(1, 41))


def test_an_interrupted_run_keeps_the_lower_rate_when_it_goes_on(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    broken = only_once(spoiled_answers)

    def fault(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
        broken(model, step, batch)
        if step == 33:
            os.kill(os.getpid(), signal.SIGINT)

    sabotage(fault)
    with pytest.raises(KeyboardInterrupt):
        lora.run(configure(tmp_path / "run", tiny_base, sums, Watch(on_alarm="rollback")), console=Told())
    sabotage(nothing)
    folder = lora.run(LoraRun(), tmp_path / "run", Told())
    rates, wanted = ([line["learning_rate"] for line in log_of(path)][16:] for path in (folder.path, healthy[0].path))
    assert rates == pytest.approx([rate / 2 for rate in wanted])


# --- small parts -----------------------------------------------------------------------------------------------------


def test_gradient_norms_by_group_are_those_of_a_plain_sum() -> None:
    from transformers import AutoModelForCausalLM

    from tests.conftest import tiny_config

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("qwen3_moe"))
    norms = GradientNorms()
    norms.look(model)
    assert norms.take() == {}
    model(input_ids=torch.arange(20).unsqueeze(0)).logits.square().sum().backward()
    norms.look(model, scale=4.0)
    part_of = Anatomy(model)
    wanted: dict[str, float] = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            wanted[part_of(name)] = wanted.get(part_of(name), 0.0) + float((weight.grad.double() / 4).square().sum())
    found = norms.take()
    assert found == pytest.approx({part: math.sqrt(square) for part, square in wanted.items()}, rel=1e-5)
    assert len(found) >= 5 and norms.take() == {}


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    check_trackers(Watch(trackers=("tensorboard",)))
    with pytest.raises(ConfigError, match="wandb") as caught:
        check_trackers(Watch(trackers=("tensorboard", "wandb")))
    assert "pip install 'dsr1-tune[wandb]'" in str(caught.value)


def test_a_missing_tracker_ends_the_run_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sums: Path
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    config = configure(tmp_path / "run", tmp_path / "no model here", sums, Watch(trackers=("trackio",)))
    with pytest.raises(ConfigError, match="trackio"):
        lora.run(config, console=Told())


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_an_online_tracker_takes_the_numbers_and_goes_on(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config = LoraRun.model_validate({"watch": {"trackers": [package]}})
    folder = RunFolder(tmp_path / "run")
    folder.begin(config, "lora")
    for first_step in (1, 3):
        (tracker,) = trackers.open_trackers(config, folder, first_step)
        for step in range(first_step, first_step + 4):
            logs = {"loss": 1 / step, "grad_norm/attention": 0.5, "alarms": ["no number"]}
            tracker.on_log(None, TrainerState(global_step=step), None, logs=logs)
        tracker.close()
    assert any(path.is_file() for place in ("run/wandb", "trackio") for path in (tmp_path / place).rglob("*"))


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_what_is_shared_out_cannot_be_rolled_back(strategy: str) -> None:
    with pytest.raises(ValueError, match="rollback"):
        LoraRun.model_validate({"watch": {"on_alarm": "rollback"}, "parallel": {"strategy": strategy}})


def test_a_model_that_was_watched_has_no_hooks_left(
    healthy: tuple[RunFolder, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_base: Path, sums: Path
) -> None:
    open_monitors: list[RoutingMonitor] = []
    made = RoutingMonitor.__init__

    def watch(self: RoutingMonitor, model: nn.Module) -> None:
        made(self, model)
        open_monitors.append(self)

    monkeypatch.setattr(RoutingMonitor, "__init__", watch)
    lora.run(configure(tmp_path / "run", tiny_base, sums, max_steps=2), console=Told())
    assert len(open_monitors) == 3 and not any(monitor._hooks for monitor in open_monitors)
