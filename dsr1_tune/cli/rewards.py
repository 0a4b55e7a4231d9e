"""`dsr1-tune score` and `reward-test`: what a reward model or a reward file gives answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import ConfigFile, Map, Sets, compose, mapping


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run of reward, or its adapter or model folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Answers, pairs or feedback, in any accepted format.")],
    out: Annotated[Path | None, typer.Option(help="The file to write. [default: <FILE>-scores.jsonl, here]")] = None,
    map_: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Score answers with a reward model: a line per row, how the scores are spread, and how often pairs come out right.

    --set score.batch_size=16, score.max_tokens=4096 and score.margin=0.1 (closer pairs count as ties) say the rest.
    """
    from dsr1_tune.config import ScoreRun

    settings = compose(ScoreRun, config, sets, {})
    columns = mapping(map_)

    from dsr1_tune.align.score import run

    run(model, file, out or Path(f"{file.stem}-scores.jsonl"), settings.score, columns)


def reward_test(
    rewards: Annotated[Path, typer.Argument(metavar="REWARDS", help="The YAML file of layered rewards.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Answers: rows with question and answer, or pairs.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write a JSON line for each answer, to a new file.")] = None,
    show: Annotated[int, typer.Option(min=0, help="So many answers one by one.")] = 10,
    map_: Map = None,
) -> None:
    """Try a reward file on answers: what each component, layer and gate gives them, and a summary.

    A column expected holds the checkable result. Of pairs, both answers are judged. Functions that the file names run.
    """
    from contextlib import nullcontext

    from rich.console import Console

    from dsr1_tune.align.rewards import preview
    from dsr1_tune.align.rewards.layered import LayeredReward
    from dsr1_tune.atomic import new_file

    with new_file(out) if out else nullcontext():
        reward = LayeredReward.read(rewards)
        with Console(stderr=True).status("judging ...") as status:
            outcome = preview.run(
                reward, files, mapping(map_) or {}, lambda done, of: status.update(f"judging ... {done:,} of {of:,}")
            )
        preview.show(outcome, Console(), show)
        if out is not None:
            preview.write(outcome, out)
            typer.echo(f"Every answer is in {out}.")
