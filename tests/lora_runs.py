"""Runs of `lora` on a tiny DeepSeek-V3: fixtures and helpers for tests of runs and of `lora`."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from dsr1_tune.config import Base, Data, LoraRun, Schedule

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from dsr1_tune.runs.folder import RunFolder

ROWS = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(5) for b in range(6)]

NUM_TRAIN, NUM_HELD_OUT, NUM_STEPS = 27, 3, 8  # two epochs in batches of 8

ConfigureLora = Callable[..., LoraRun]


@pytest.fixture(scope="session")
def lora_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty rows, of which three are held out, and one that is rejected."""
    path = tmp_path_factory.mktemp("data") / "sums.json"
    path.write_text(json.dumps([*ROWS, {"input": "what is nothing?", "output": ""}]))
    return path


@pytest.fixture(scope="session")
def configure_lora(tiny_base: Path, lora_data: Path) -> ConfigureLora:
    """configure_lora(out, seed=1) is a run of two epochs; keywords change its schedule, or are whole nouns."""

    def configure_(out: Path | None, **changes: Any) -> LoraRun:
        nouns = {name: changes.pop(name) for name in list(changes) if name in LoraRun.model_fields}
        schedule = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "save_steps": 100, "max_tokens": 128}
        given = {
            "data": Data(files=(lora_data,)),
            "base": Base(model=str(tiny_base)),
            "schedule": Schedule(**{**schedule, "gradient_checkpointing": False, **changes}),
            "sample_tokens": 4,
        }
        return LoraRun(out=out, **{**given, **nouns})

    return configure_


class Told(Console):
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.kept = io.StringIO()
        super().__init__(file=self.kept, width=500)

    @property
    def text(self) -> str:
        return self.kept.getvalue()


def go(config: LoraRun, resume: Path | None = None, told: Told | None = None) -> RunFolder:
    from dsr1_tune.train import lora

    return lora.run(config, resume, told or Told())


def go_on(folder: Path, told: Told | None = None) -> RunFolder:
    return go(LoraRun(), folder, told)


def in_a_thread(do: Callable[[], RunFolder]) -> RunFolder:
    """What `do` returns in a thread of its own, as a web server would call it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(do).result()


def in_asyncio(do: Callable[[], RunFolder]) -> RunFolder:
    """What `do` returns beside a running event loop."""

    async def call() -> RunFolder:
        return await asyncio.to_thread(do)

    return asyncio.run(call())


def in_a_notebook(do: Callable[[], RunFolder]) -> RunFolder:
    """What `do` returns in the main thread, where an event loop is running already."""

    async def call() -> RunFolder:
        return do()

    return asyncio.run(call())


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "train_log.jsonl").read_text().splitlines()]


def curve_of(path: Path) -> list[float]:
    """Everything that a run computed at its steps, in a row, without what a clock measured."""
    return [line[name] for line in log_of(path) for name in ("step", "epoch", "loss", "grad_norm", "learning_rate")]


def litter(path: Path) -> list[Path]:
    return [place for place in path.rglob("*") if place.name.endswith((".part", ".old"))]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class FinishedRun:
    """A finished run, what the trainer was given, the model as it stood in the end, and what was printed."""

    folder: RunFolder
    batches: list[dict[str, torch.Tensor]]
    model: PeftModel
    text: str

    @property
    def path(self) -> Path:
        return self.folder.path


@pytest.fixture(scope="session")
def lora_run(configure_lora: ConfigureLora, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """One unbroken run, for all tests that only look at it."""
    from dsr1_tune.runs.trainer import trainer
    from dsr1_tune.train import lora

    batches: list[dict[str, torch.Tensor]] = []
    models: list[PeftModel] = []
    told = Told()
    train, wrap = trainer.SFTTrainer.training_step, lora.add_lora

    def step(self: Any, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        batches.append({name: inputs[name].clone() for name in ("input_ids", "labels", "attention_mask")})
        return train(self, model, inputs, *rest)

    def add(*given: Any) -> PeftModel:
        models.append(wrap(*given))
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.SFTTrainer, "training_step", step)
        patch.setattr(lora, "add_lora", add)
        folder = go(configure_lora(tmp_path_factory.mktemp("runs") / "done"), told=told)
    return FinishedRun(folder, batches, models[0], told.text)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """at_step(3, do): in the middle of the third step of this test's next run, `do` happens."""
    from dsr1_tune.runs.trainer import trainer

    def arrange(step: int, do: Callable[[], None]) -> None:
        train = trainer.SFTTrainer.training_step

        def disturbed(self: Any, *given: Any) -> Any:
            if self.state.global_step == step - 1:
                monkeypatch.undo()
                do()
            return train(self, *given)

        monkeypatch.setattr(trainer.SFTTrainer, "training_step", disturbed)

    return arrange


@pytest.fixture
def survivor() -> Iterator[None]:
    """A SIGTERM that nobody takes over fails the test, and does not end all of them."""
    before = signal.signal(signal.SIGTERM, lambda *given: pytest.fail("nobody took the signal over"))
    yield
    signal.signal(signal.SIGTERM, before)


def press(*numbers: int) -> Callable[[], None]:
    """Send this process these signals, one after the other."""

    def send() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


def losses_on_tensorboard(path: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    points = events.Scalars("train/loss")
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def texts_in(path: Path, name: str) -> list[tuple[str, str]]:
    rows = map(json.loads, (path / "data" / f"{name}.jsonl").read_text().splitlines())
    return [tuple(message["content"] for message in row["messages"]) for row in rows]  # type: ignore[misc]


@pytest.fixture
def changed_lora(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[PeftModel], None]], None]:
    """changed_lora(change) changes the model between being wrapped and being trained."""
    from dsr1_tune.train import lora

    def arrange(change: Callable[[PeftModel], None]) -> None:
        wrap = lora.add_lora

        def changed(*given: Any) -> PeftModel:
            model = wrap(*given)
            change(model)
            return model

        monkeypatch.setattr(lora, "add_lora", changed)

    return arrange
