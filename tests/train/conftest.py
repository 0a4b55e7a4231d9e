"""What tests of several ways of training share: small data, and a way to stop a run in the middle."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer import trainer


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty records; three of them are held out."""
    path = tmp_path_factory.mktemp("sums") / "sums.json"
    rows = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(5) for b in range(6)]
    path.write_text(json.dumps(rows))
    return path


class Told(Console):
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.kept = io.StringIO()
        super().__init__(file=self.kept, width=200)

    @property
    def text(self) -> str:
        """All of it."""
        return self.kept.getvalue()


@pytest.fixture
def told() -> Told:
    """A console for a run to speak to."""
    return Told()


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], Any]], None]]:
    """stopped(3, go) runs go() and presses Ctrl-C in the middle of the third step."""

    def stop(step: int, go: Callable[[], Any]) -> None:
        train = trainer.SFTTrainer.training_step

        def disturbed(self: Any, *given: Any) -> Any:
            if self.state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return train(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.SFTTrainer, "training_step", disturbed)
            with pytest.raises(KeyboardInterrupt):
                go()

    before = signal.getsignal(signal.SIGINT)
    yield stop
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def curve() -> Callable[[RunFolder], list[float]]:
    """curve(folder): everything that a run computed at its steps, without what a clock measured."""

    def read(folder: RunFolder) -> list[float]:
        lines = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
        return [line[name] for line in lines for name in ("step", "epoch", "loss", "grad_norm", "learning_rate")]

    return read
