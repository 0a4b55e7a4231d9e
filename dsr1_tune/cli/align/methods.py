"""`reward`, `dpo`, `kto`, `ppo`, `grpo`: what follows supervised training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import ConfigFile, DataFiles, Epochs, Map, OnAlarm, Out, Processes, Resume, Sets
from dsr1_tune.cli.start import Given, start

StartModel = Annotated[
    str | None,
    typer.Option(
        "--model", help="A Hub id, a folder, or a run of lora or qlora. [default: embedded base]", show_default=False
    ),
]
Method = Annotated[
    str | None,
    typer.Option("--method", metavar="lora|qlora|full", help="What is trained. [default: lora]", show_default=False),
]
RolloutMethod = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="lora|qlora|full",
        help="What is trained; full is for grpo alone. [default: lora]",
        show_default=False,
    ),
]
Rewards = Annotated[
    Path | None, typer.Option("--rewards", help="The YAML file of layered rewards.", show_default=False)
]
OnRewardError = Annotated[
    str | None,
    typer.Option(
        "--on-reward-error",
        metavar="stop|zero",
        help="What a reward that fails does: end the run, or count 0. [default: zero]",
        show_default=False,
    ),
]

ALIGNS = {
    "reward": "Train a reward model on pairs of a better and a worse answer.",
    "dpo": "Direct preference optimisation on pairs of a better and a worse answer.",
    "kto": "Kahneman-Tversky optimisation on answers with a label, good or bad.",
    "ppo": "Proximal policy optimisation: the model answers, layered rewards judge, the model learns.",
    "grpo": "Group-relative policy optimisation: several answers to a prompt are judged against one another.",
}
_ROLLOUTS = ("ppo", "grpo")


def command(name: str) -> Callable[..., None]:
    """The verb `name`; those that learn from their own answers also take rewards."""
    align = _with_rewards(name) if name in _ROLLOUTS else _with_data(name)
    align.__doc__ = f"{ALIGNS[name]}\n\n`dsr1-tune settings` lists everything that --config and --set can say."
    return align


def _with_data(name: str) -> Callable[..., None]:
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
        given = Given(data, model, out, map_, epochs, on_alarm, processes, config, sets, resume)
        start(name, given, method=method)

    return align


def _with_rewards(name: str) -> Callable[..., None]:
    def align(
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
        given = Given(data, model, out, map_, epochs, on_alarm, processes, config, sets, resume)
        start(name, given, method=method, rewards=rewards, on_reward_error=on_reward_error)

    return align
