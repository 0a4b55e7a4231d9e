"""`lora` to `grpo`: every way of training and alignment; each composes its config and calls its module's run()."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
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
        help="What a reward that fails does: end the run, or leave the answer out. [default: zero]",
    ),
]

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
    """The verb `name`, one of TRAINS or ALIGNS."""

    def train(
        data: DataFiles = None,
        model: ModelName = None,
        out: Out = None,
        map_: Map = None,
        epochs: Epochs = None,
        on_alarm: OnAlarm = None,
        processes: Processes = None,
        config: ConfigFile = None,
        sets: Sets = None,
        resume: Resume = None,
    ) -> None:
        shared = {"model": model, "epochs": epochs, "on_alarm": on_alarm, "processes": processes}
        _start(name, config, sets, resume, data=data, out=out, map=mapping(map_), **shared)

    def align(
        data: DataFiles = None,
        model: StartModel = None,
        out: Out = None,
        method: Method = None,
        map_: Map = None,
        epochs: Epochs = None,
        on_alarm: OnAlarm = None,
        processes: Processes = None,
        config: ConfigFile = None,
        sets: Sets = None,
        resume: Resume = None,
    ) -> None:
        shared = {"model": model, "epochs": epochs, "on_alarm": on_alarm, "processes": processes}
        _start(name, config, sets, resume, data=data, out=out, map=mapping(map_), method=method, **shared)

    def roll_out(
        data: DataFiles = None,
        rewards: Rewards = None,
        model: StartModel = None,
        out: Out = None,
        method: RolloutMethod = None,
        map_: Map = None,
        epochs: Epochs = None,
        on_reward_error: OnRewardError = None,
        on_alarm: OnAlarm = None,
        processes: Processes = None,
        config: ConfigFile = None,
        sets: Sets = None,
        resume: Resume = None,
    ) -> None:
        shared = {"model": model, "epochs": epochs, "on_alarm": on_alarm, "processes": processes}
        own = {"rewards": rewards, "method": method, "on_reward_error": on_reward_error}
        _start(name, config, sets, resume, data=data, out=out, map=mapping(map_), **own, **shared)

    verb: Callable[..., None] = train if name in TRAINS else roll_out if name in _ROLLOUTS else align
    told = {**TRAINS, **ALIGNS}[name]
    verb.__doc__ = f"{told}\n\n`dsr1-tune settings` lists everything that --config and --set can say."
    return verb


def _start(name: str, config: Path | None, sets: list[str] | None, resume: Path | None, **given: Any) -> None:
    """Compose the config and hand it to the verb's run(); `given` are the options that stand for a setting.

    Raises ConfigError for settings that cannot be used, and where neither data nor a run to go on with is given.
    """
    from dsr1_tune import config as configs
    from dsr1_tune.errors import ConfigError
    from dsr1_tune.runs.distributed.launch import is_launched, processes_of, run_in_processes

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
    _run(name, settings, resume)


def _run(name: str, settings: Any, resume: Path | None) -> None:
    # Imported when it is started: each brings torch and transformers along.
    run: Callable[[Any, Path | None], Any]
    match name:
        case "lora":
            from dsr1_tune.train.lora import run
        case "qlora":
            from dsr1_tune.train.qlora import run
        case "full":
            from dsr1_tune.train.full import run
        case "esft":
            from dsr1_tune.train.esft import run
        case "reward":
            from dsr1_tune.align.reward import run
        case "dpo":
            from dsr1_tune.align.dpo import run
        case "kto":
            from dsr1_tune.align.kto import run
        case "ppo":
            from dsr1_tune.align.ppo import run
        case "grpo":
            from dsr1_tune.align.grpo import run
    gc.freeze()  # what was imported stays: no collection, of which a run makes several, need look at it
    run(settings, resume)


def _refuse_nothing_to_learn(name: str, settings: TuneRun) -> None:
    from dsr1_tune.config import RolloutRun
    from dsr1_tune.errors import ConfigError

    hint = f"dsr1-tune {name} --data {_EXAMPLES.get(name, 'medical.json')}"
    if isinstance(settings, RolloutRun) and not settings.rewards:
        raise ConfigError("no rewards are given: nothing says what a good answer is", hint=hint)
    if not settings.data.files:
        raise ConfigError("no data is given", hint=hint)
