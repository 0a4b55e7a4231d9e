"""What watches a run: the log, the bar, the marks on checkpoints, Ctrl-C, the gradient check."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import TrainerControl, TrainerState

from dsr1_tune.config import Base
from dsr1_tune.models.load import load
from dsr1_tune.moe.anatomy import find_routers
from dsr1_tune.moe.monitor import RoutingMonitor
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer import callbacks
from dsr1_tune.runs.trainer.callbacks import (
    BiasRule,
    GracefulStop,
    GradientCheck,
    ProgressBar,
    TrainLog,
    WholeCheckpoints,
    read_log,
    real_tokens,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def at(step: int, max_steps: int = 10) -> TrainerState:
    return TrainerState(global_step=step, max_steps=max_steps, epoch=step / max_steps)


def steps_in(folder: RunFolder) -> list[int]:
    return [json.loads(line)["step"] for line in folder.log_file.read_text().splitlines()]


# --- the log ---------------------------------------------------------------------------------------------------------


def test_train_log_writes_a_line_for_every_step(folder: RunFolder) -> None:
    said = [{"alarms": ["first"]}, {}]
    log = TrainLog(folder, log_fields=lambda: said.pop(0))
    log.on_train_begin(None, at(0), None)
    assert folder.log_file.read_text() == ""
    log.on_log(None, at(1), None, logs={"loss": 2.5, "grad_norm": 0.1, "epoch": 0.123456789})
    log.on_log(None, at(2), None, logs={"loss": 2.0})
    log.on_log(None, at(2), None, logs={"train_runtime": 3.0, "train_loss": 2.25})
    lines = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["loss"]) for line in lines] == [(1, 0.1, 2.5), (2, 0.2, 2.0)]
    assert lines[0]["grad_norm"] == 0.1 and lines[0]["alarms"] == ["first"] and "alarms" not in lines[1]
    assert read_log(folder) == lines


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_train_log_drops_steps_that_a_resumed_run_repeats(folder: RunFolder, step: int, kept: list[int]) -> None:
    lines = "".join(json.dumps({"step": number, "loss": 1.0}) + "\n" for number in (1, 2, 3))
    folder.log_file.write_text(lines + 'null\n{"loss": 2}\n{"step": 4, "lo')
    TrainLog(folder).on_train_begin(None, at(step), None)
    assert steps_in(folder) == kept
    TrainLog(folder).on_log(None, at(step + 1), None, logs={"loss": 1.0})
    assert steps_in(folder) == [*kept, step + 1]


def test_whole_checkpoints_are_marked(folder: RunFolder) -> None:
    (folder.checkpoints / "checkpoint-3").mkdir(parents=True)
    assert folder.latest_checkpoint() is None
    WholeCheckpoints(folder).on_save(None, at(3), None)
    assert folder.latest_checkpoint() == folder.checkpoints / "checkpoint-3"


# --- the bar ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [1, 7, 10, 11, 19, 25, 99, 100, 1001])
def test_progress_prints_a_line_now_and_then_without_a_terminal(max_steps: int) -> None:
    said = io.StringIO()
    bar = ProgressBar(Console(file=said, width=100))
    bar.on_train_begin(None, at(0, max_steps), None)
    for step in range(1, max_steps + 1):
        bar.on_step_end(None, at(step, max_steps), None)
        bar.on_log(
            None, at(step, max_steps), None, logs={"loss": 1.23456, "num_tokens": 100.0 * step, "seconds": 0.5 * step}
        )
    bar.on_log(None, at(max_steps, max_steps), None, logs={"train_loss": 1.0})
    bar.on_train_end(None, at(max_steps, max_steps), None)
    lines = said.getvalue().splitlines()
    assert min(6, max_steps) <= len(lines) <= 11
    assert lines[0].startswith(f"step 1/{max_steps}  loss 1.235  ") and "  about 0:00:0" in "".join(
        lines[:-1] or "  about 0:00:0"
    )
    assert lines[-1].startswith(f"step {max_steps}/{max_steps}  loss 1.235  ")
    assert lines[-1].endswith(" 200 tokens/s")
    assert "\x1b" not in said.getvalue()


def test_progress_is_a_bar_on_a_terminal() -> None:
    said = io.StringIO()
    bar = ProgressBar(Console(file=said, force_terminal=True, width=100))
    bar.on_train_begin(None, at(4), None)
    bar.on_step_end(None, at(5), None)
    bar.on_log(None, at(5), None, logs={"loss": 1.5})
    bar.close()
    bar.close()
    assert "5/10" in said.getvalue() and "loss 1.500" in said.getvalue()
    assert "step 5/10" not in said.getvalue()


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def survivor() -> Iterator[None]:
    """A SIGTERM that nobody takes over fails the test, and does not end all of them."""
    before = signal.signal(signal.SIGTERM, lambda *given: pytest.fail("nobody took the signal over"))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("survivor")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_graceful_stop_saves_at_the_first_signal_and_stops_at_the_second(number: int) -> None:
    said: list[str] = []
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop, control = GracefulStop(said.append), TrainerControl()
    stop.on_train_begin(None, None, None)
    stop.on_step_end(None, None, control)
    assert not (control.should_save or control.should_training_stop or stop.was_requested)
    os.kill(os.getpid(), number)
    assert stop.was_requested and "checkpoint" in said[0]
    stop.on_step_end(None, None, control)
    assert control.should_save and control.should_training_stop
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert len(said) == 1


def test_graceful_stop_restores_the_signal_handlers() -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = GracefulStop(print)
    stop.on_train_begin(None, None, None)
    assert signal.getsignal(signal.SIGINT) is not handlers[0]
    stop.on_train_end(None, None, None)
    stop.give_back()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize(("outcomes", "num_looks"), [([True], 1), ([False, False, True], 3)])
def test_gradient_check_repeats_until_gradients_are_fine(
    monkeypatch: pytest.MonkeyPatch, outcomes: list[bool], num_looks: int
) -> None:
    looks: list[tuple[Any, bool]] = []

    def look(model: Any, may_overflow: bool, all_gather: Any) -> bool:
        looks.append((model, may_overflow))
        return outcomes[len(looks) - 1]

    monkeypatch.setattr(callbacks, "check_gradients", look)
    check, model = GradientCheck(), nn.Linear(1, 1)
    for step in range(5):
        check.on_pre_optimizer_step(SimpleNamespace(fp16=True), at(step), None, model=model)
    assert looks == [(model, True)] * num_looks


IDS = torch.randint(2, 258, (2, 30), generator=torch.Generator().manual_seed(0))


def test_bias_rule_raises_the_bias_of_experts_below_the_mean_load_and_lowers_the_others(tiny_base: Path) -> None:
    model: Any = load(Base(model=str(tiny_base))).model.train()
    (router,) = find_routers(model)
    bias_E = next(buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    before_E = bias_E.clone()
    monitor = RoutingMonitor(model)
    rule = BiasRule(rate=0.25)
    rule.on_train_begin(None, None, None, model=model)
    model(input_ids=IDS.flip(0))  # as an evaluation between two steps, which does not count
    monitor.take()
    rule.on_step_begin(None, None, None)
    model(input_ids=IDS)
    load_E = monitor.take().load_LE[0]
    rule.on_step_end(None, None, None)
    torch.testing.assert_close(bias_E - before_E, 0.25 * torch.sign(load_E.mean() - load_E).to(bias_E))
    rule.on_train_end(None, None, None)
    moved_E = bias_E.clone()
    model(input_ids=IDS)
    rule.on_step_end(None, None, None)
    assert torch.equal(bias_E, moved_E), "a rule that has ended moves nothing"
    monitor.close()
    assert router is not None


def test_real_tokens_leaves_padding_out() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert real_tokens({"attention_mask": mask}).tolist() == [True, True, False, True, True, True]
    # Packed: two examples, of 3 and 2 tokens, and padding, whose positions are all 0.
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0]])
    assert real_tokens({"position_ids": positions}).tolist() == [True] * 5 + [False] * 2
