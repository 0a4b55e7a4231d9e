"""Start a way of training or alignment: compose its config from flags, a file and `--set`, and call its run()."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from dsr1_tune.config import TuneRun


@dataclass(frozen=True)
class Given:
    """What the options that all ways of training and alignment share were given as; None where they were not."""

    data: list[Path] | None
    model: str | None
    out: Path | None
    map: list[str] | None
    epochs: float | None
    on_alarm: str | None
    processes: int | None
    config: Path | None
    sets: list[str] | None
    resume: Path | None

    def flags(self, own: dict[str, Any]) -> dict[str, Any]:
        """Them, and a command's `own` ones, by the names of their settings."""
        from dsr1_tune.data.read.formats import parse_mapping

        return {
            "data.files": [str(file) for file in self.data] if self.data else None,
            "data.map": parse_mapping(self.map) if self.map else None,
            "base.model": self.model,
            "schedule.epochs": self.epochs,
            "watch.on_alarm": self.on_alarm,
            "parallel.processes": self.processes,
            "out": str(self.out) if self.out else None,
            **{name: str(value) if isinstance(value, Path) else value for name, value in own.items()},
        }


def start(command: str, given: Given, **own: Any) -> None:
    """Compose the config of `command` from what was given and hand it to the method's run().

    `own` are the flags that only it has, by the names of their settings. Raises ConfigError for settings that cannot
    be used, and where neither data nor a run to go on with is given.
    """
    from dsr1_tune.config.load import load_config
    from dsr1_tune.runs.distributed.launch import is_launched, processes_of, run_in_processes

    flags = given.flags(own)
    if given.resume:
        _refuse_other_settings(command, given, flags)
    settings = load_config(_config_of(command), given.config, flags, given.sets or ())
    if not given.resume:
        _refuse_nothing_to_learn(command, settings)
    wanted = given.processes or (processes_of(given.resume) if given.resume else settings.parallel.processes)
    if wanted > 1 and not is_launched():
        raise typer.Exit(run_in_processes(sys.argv[1:], wanted))
    RUNS[command](settings, given.resume)


def _config_of(command: str) -> type[TuneRun]:
    from dsr1_tune import config as configs

    kinds: dict[str, type[TuneRun]] = {
        "lora": configs.LoraRun,
        "qlora": configs.QloraRun,
        "full": configs.FullRun,
        "esft": configs.EsftRun,
        "reward": configs.RewardRun,
        "dpo": configs.DpoRun,
        "kto": configs.KtoRun,
        "ppo": configs.PpoRun,
        "grpo": configs.GrpoRun,
    }
    return kinds[command]


def _refuse_other_settings(command: str, given: Given, flags: dict[str, Any]) -> None:
    """A run that goes on keeps its settings, but for the number of processes."""
    from dsr1_tune.errors import ConfigError

    changes = [value for name, value in flags.items() if name != "parallel.processes"]
    if given.config or given.sets or any(value is not None for value in changes):
        raise ConfigError(
            "--resume goes on with the run's own settings; no others can be given",
            hint=f"dsr1-tune {command} --resume {given.resume}",
        )


def _refuse_nothing_to_learn(command: str, settings: TuneRun) -> None:
    from dsr1_tune.config import RolloutRun
    from dsr1_tune.errors import ConfigError

    hint = f"dsr1-tune {command} --data {_EXAMPLES.get(command, 'medical.json')}"
    if isinstance(settings, RolloutRun) and not settings.rewards:
        raise ConfigError("no rewards are given: nothing says what a good answer is", hint=hint)
    if not settings.data.files:
        raise ConfigError("no data is given", hint=hint)


_EXAMPLES = {
    "reward": "preferences.jsonl",
    "dpo": "preferences.jsonl",
    "kto": "feedback.jsonl",
    "ppo": "prompts.jsonl --rewards rewards.yaml",
    "grpo": "prompts.jsonl --rewards rewards.yaml",
}

# Each is imported when it is started: they bring torch and transformers along.


def _lora(config: Any, resume: Path | None) -> None:
    from dsr1_tune.train import lora

    lora.run(config, resume)


def _qlora(config: Any, resume: Path | None) -> None:
    from dsr1_tune.train import qlora

    qlora.run(config, resume)


def _full(config: Any, resume: Path | None) -> None:
    from dsr1_tune.train import full

    full.run(config, resume)


def _esft(config: Any, resume: Path | None) -> None:
    from dsr1_tune.train import esft

    esft.run(config, resume)


def _reward(config: Any, resume: Path | None) -> None:
    from dsr1_tune.align import reward

    reward.run(config, resume)


def _dpo(config: Any, resume: Path | None) -> None:
    from dsr1_tune.align import dpo

    dpo.run(config, resume)


def _kto(config: Any, resume: Path | None) -> None:
    from dsr1_tune.align import kto

    kto.run(config, resume)


def _ppo(config: Any, resume: Path | None) -> None:
    from dsr1_tune.align import ppo

    ppo.run(config, resume)


def _grpo(config: Any, resume: Path | None) -> None:
    from dsr1_tune.align import grpo

    grpo.run(config, resume)


RUNS: dict[str, Callable[[Any, Path | None], None]] = {
    "lora": _lora,
    "qlora": _qlora,
    "full": _full,
    "esft": _esft,
    "reward": _reward,
    "dpo": _dpo,
    "kto": _kto,
    "ppo": _ppo,
    "grpo": _grpo,
}
"""Every way of training and alignment by its command."""
