"""`lora` to `grpo`: every way of training and alignment; each composes its config and calls its module's run()."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsr1_tune.cli.options import (
    ConfigFile,
    DataFiles,
    Epochs,
    Map,
    ModelName,
    OnAlarm,
    Out,
    Processes,
    Resume,
    Sets,
    compose,
    mapping,
)

if TYPE_CHECKING:
    from dsr1_tune.config import TuneRun

StartModel = Annotated[
    str | None, typer.Option("--model", help="A Hub id, a folder, or a run of lora or qlora. [default: embedded base]")
]
Method = Annotated[
    str | None, typer.Option("--method", metavar="lora|qlora|full", help="What is trained. [default: lora]")
]
RolloutMethod = Annotated[
    str | None,
    typer.Option(
        "--method", metavar="lora|qlora|full", help="What is trained; full is for grpo alone. [default: lora]"
    ),
]
Rewards = Annotated[Path | None, typer.Option("--rewards", help="The YAML file of layered rewards.")]
OnRewardError = Annotated[
    str | None,
    typer.Option(
        "--on-reward-error",
        metavar="stop|zero",
        help="What a reward that fails does: end the run, or count 0. [default: zero]",
    ),
]

_OPTIONS = {
    "data": DataFiles,
    "rewards": Rewards,
    "model": StartModel,
    "out": Out,
    "method": Method,
    "map": Map,
    "epochs": Epochs,
    "on_reward_error": OnRewardError,
    "on_alarm": OnAlarm,
    "processes": Processes,
    "config": ConfigFile,
    "sets": Sets,
    "resume": Resume,
}
_SETTINGS = {
    "data": "data.files",
    "map": "data.map",
    "model": "base.model",
    "epochs": "schedule.epochs",
    "on_alarm": "watch.on_alarm",
    "processes": "parallel.processes",
}
"""The settings that options stand for, where those have other names."""

TRAINS = {
    "lora": "Check data, clean it, and train LoRA on attention, dense layers, shared and routed experts.",
    "qlora": "Like `lora`, over a base whose experts and linear layers are held in 4 bits.",
    "full": "Train the base's own weights: all of them, or with --set train.only=[...] experts, attention, the last "
    "layers.",
    "esft": "Train only the experts that the data uses (ESFT); `dsr1-tune experts` shows which those are.",
}
ALIGNS = {
    "reward": "Train a reward model on pairs of a better and a worse answer.",
    "dpo": "Direct preference optimisation on pairs of a better and a worse answer.",
    "kto": "Kahneman-Tversky optimisation on answers with a label, good or bad.",
    "ppo": "Proximal policy optimisation: the model answers, layered rewards judge, the model learns.",
    "grpo": "Group-relative policy optimisation: several answers to a prompt are judged against one another.",
}
_ROLLOUTS = ("ppo", "grpo")
_EXAMPLES = {
    "reward": "preferences.jsonl",
    "dpo": "preferences.jsonl",
    "kto": "feedback.jsonl",
    "ppo": "prompts.jsonl --rewards rewards.yaml",
    "grpo": "prompts.jsonl --rewards rewards.yaml",
}


def command(name: str) -> Callable[..., None]:
    """The verb `name`."""

    def run(**given: Any) -> None:
        _run(name, given)

    options = [Parameter(option, Parameter.KEYWORD_ONLY, default=None, annotation=of) for option, of in _options(name)]
    run.__signature__ = Signature(options)  # type: ignore[attr-defined]
    told = {**TRAINS, **ALIGNS}[name]
    run.__doc__ = f"{told}\n\n`dsr1-tune settings` lists everything that --config and --set can say."
    return run


def _options(name: str) -> Iterator[tuple[str, Any]]:
    """Those that learn from their own answers take rewards, and all that align take a method."""
    own = {"model": ModelName, "method": None} if name in TRAINS else {}
    own |= {"method": RolloutMethod} if name in _ROLLOUTS else {"rewards": None, "on_reward_error": None}
    yield from ((option, of) for option, of in {**_OPTIONS, **own}.items() if of is not None)


def _run(name: str, given: dict[str, Any]) -> None:
    """Compose the config and hand it to the run() of the module that is called as the verb.

    Raises ConfigError for settings that cannot be used, and where neither data nor a run to go on with is given.
    """
    from dsr1_tune import config as configs
    from dsr1_tune.errors import ConfigError
    from dsr1_tune.runs.distributed.launch import is_launched, processes_of, run_in_processes

    config, sets, resume = (given.pop(option) for option in ("config", "sets", "resume"))
    given["map"] = mapping(given["map"])
    # A run that goes on keeps its settings, but for the number of processes.
    changes = [config, sets, *(value for option, value in given.items() if option != "processes")]
    if resume and any(change is not None for change in changes):
        raise ConfigError(
            "--resume goes on with the run's own settings; no others can be given",
            hint=f"dsr1-tune {name} --resume {resume}",
        )
    flags = {_SETTINGS.get(option, option): value for option, value in given.items()}
    settings = compose(configs.RUNS[name], config, sets, flags)
    if not resume:
        _refuse_nothing_to_learn(name, settings)
    wanted = given["processes"] or (processes_of(resume) if resume else settings.parallel.processes)
    if wanted > 1 and not is_launched():
        raise typer.Exit(run_in_processes(sys.argv[1:], wanted))
    # Imported when it is started: it brings torch and transformers along.
    import_module(f"dsr1_tune.{'train' if name in TRAINS else 'align'}.{name}").run(settings, resume)


def _refuse_nothing_to_learn(name: str, settings: TuneRun) -> None:
    from dsr1_tune.config import RolloutRun
    from dsr1_tune.errors import ConfigError

    hint = f"dsr1-tune {name} --data {_EXAMPLES.get(name, 'medical.json')}"
    if isinstance(settings, RolloutRun) and not settings.rewards:
        raise ConfigError("no rewards are given: nothing says what a good answer is", hint=hint)
    if not settings.data.files:
        raise ConfigError("no data is given", hint=hint)
