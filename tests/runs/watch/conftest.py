"""What tests of the watcher share: numbers for detectors, a healthy watched run, and faults that are put in."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from dsr1_tune.config import Base, Data, LoraRun, Schedule, Watch
from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.moe.monitor import Routing
from dsr1_tune.runs import session
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.trainer import ResumableTrainer
from dsr1_tune.runs.watch.alarms import Alarm, Detector, Numbers
from dsr1_tune.train import lora

NUM_EXPERTS, NUM_CHOSEN = 16, 2


def first_alarm(detector: Detector, steps: Iterable[Numbers]) -> tuple[int, Alarm] | None:
    """The step at which the detector first speaks, and what it says."""
    for numbers in steps:
        for alarm in detector.check(numbers):
            return numbers.step, alarm
    return None


def losses(*values: float) -> list[Numbers]:
    return [Numbers(step, value) for step, value in enumerate(values, start=1)]


def norms(**groups: list[float]) -> list[Numbers]:
    columns = zip(*groups.values(), strict=True)
    return [Numbers(step, 2.0, dict(zip(groups, row, strict=True))) for step, row in enumerate(columns, start=1)]


def noisy(level: float, scatter: float, count: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [level * math.exp(generator.gauss(0, scatter)) for _ in range(count)]


def route(weights: list[float], num_tokens: int, seed: int) -> Routing:
    """Each token takes NUM_CHOSEN different experts, drawn by their weights."""
    generator = torch.Generator().manual_seed(seed)
    chances_TE = torch.tensor(weights, dtype=torch.float64).expand(num_tokens, -1)
    chosen_TK = torch.multinomial(chances_TE, NUM_CHOSEN, generator=generator)
    load_LE = torch.bincount(chosen_TK.flatten(), minlength=NUM_EXPERTS).double().unsqueeze(0)
    return Routing(("layer",), load_LE, load_LE, NUM_CHOSEN)


def routed(weights: list[float], count: int, first_step: int = 1, num_tokens: int = 64) -> list[Numbers]:
    return [
        Numbers(step, 2.0, routing=route(weights, num_tokens, seed=step))
        for step in range(first_step, first_step + count)
    ]


USUAL = [1.0 + number / 8 for number in range(NUM_EXPERTS)]

BASE = route(USUAL, 2000, seed=99)


Fault = Callable[[nn.Module, int, dict[str, Any]], None]


@pytest.fixture(scope="session")
def many_sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.json"
    rows = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(10) for b in range(12)]
    path.write_text(json.dumps(rows))
    return path


def watched_config(out: Path, base: Path, data: Path, watch: Watch | None = None, **schedule: Any) -> LoraRun:
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


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, many_sums: Path) -> tuple[RunFolder, str]:
    told = Told()
    config = watched_config(tmp_path_factory.mktemp("healthy") / "run", tiny_base, many_sums, Watch(eval_steps=10))
    return lora.run(config, console=told), told.text


def spoiled_answers(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    """From one step on every token that is to be learned is one that the data never holds."""
    if step >= 25:
        batch["labels"][batch["labels"] != IGNORED] = 200
