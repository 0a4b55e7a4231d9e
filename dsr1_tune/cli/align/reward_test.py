"""`dsr1-tune reward-test`: what a reward file gives answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import Map


def reward_test(
    rewards: Annotated[Path, typer.Argument(metavar="REWARDS", help="The YAML file of layered rewards.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Answers: rows with question and answer, or pairs.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a JSON line for each answer, to a new file.", show_default=False)
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="So many answers one by one.")] = 10,
    map_: Map = None,
) -> None:
    """Try a reward file on answers: what each component, layer and gate gives them, and a summary.

    A column expected holds the checkable result. Of pairs, both answers are judged. Functions that the file names run.
    """
    from dsr1_tune.align.rewards import preview
    from dsr1_tune.align.rewards.layered import LayeredReward
    from dsr1_tune.atomic import check_new
    from dsr1_tune.data.read.formats import parse_mapping

    if out is not None:
        check_new(out)
    reward = LayeredReward.read(rewards)

    from rich.console import Console

    with Console(stderr=True).status("judging ...") as status:
        outcome = preview.run(
            reward, files, parse_mapping(map_ or []), lambda done, of: status.update(f"judging ... {done:,} of {of:,}")
        )
    preview.show(outcome, Console(), show)
    if out is not None:
        preview.write(outcome, out)
        typer.echo(f"Every answer is in {out}.")
