"""What tests of several ways of training share: small data, and a way to stop a run in the middle."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.config import Base, Data, Esft, EsftRun, Schedule
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer import trainer
from dsr1_tune.train import esft


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


ESFT_METHODS = ["weights", "lora"]

ConfigureEsft = Callable[..., EsftRun]


@pytest.fixture(scope="session")
def esft_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Where the base of this module's runs lies."""
    return Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("esft") / "base"))


@pytest.fixture(scope="session")
def configure_esft(esft_base: Path, sums: Path) -> ConfigureEsft:
    """configure_esft(out, epochs=1) is a run of two epochs; keywords change its schedule, or are whole nouns."""

    def configure_(out: Path | None, **changes: Any) -> EsftRun:
        nouns = {name: changes.pop(name) for name in list(changes) if name in EsftRun.model_fields}
        schedule = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "save_steps": 100, "max_tokens": 128}
        given = {
            "data": Data(files=(sums,)),
            "base": Base(model=str(esft_base)),
            "schedule": Schedule(**{**schedule, "gradient_checkpointing": False, **changes}),
            "esft": Esft(share=0.4),
            "samples": 1,
            "sample_tokens": 4,
        }
        return EsftRun(out=out, **{**given, **nouns})

    return configure_


@pytest.fixture(scope="session", params=ESFT_METHODS)
def esft_run(
    request: pytest.FixtureRequest, configure_esft: ConfigureEsft, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """One unbroken run of each method, for all tests that only look at it."""
    out = tmp_path_factory.mktemp("runs") / request.param
    return esft.run(configure_esft(out, esft=Esft(share=0.4, method=request.param)))
