"""`dsr1-tune score`: what a reward model gives the answers in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import ConfigFile, Map, Sets


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run of reward, or its adapter or model folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Answers, pairs or feedback, in any accepted format.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file to write. [default: <FILE>-scores.jsonl, here]", show_default=False),
    ] = None,
    map_: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Score answers with a reward model: a line per row, how the scores are spread, and how often pairs come out right.

    --set score.batch_size=16, score.max_tokens=4096 and score.margin=0.1 (closer pairs count as ties) say the rest.
    """
    from dsr1_tune.config import ScoreRun
    from dsr1_tune.config.load import load_config
    from dsr1_tune.data.read.formats import parse_mapping

    settings = load_config(ScoreRun, config, {}, sets or ())
    mapping = parse_mapping(map_) if map_ else None
    out = out or Path(f"{file.stem}-scores.jsonl")

    from dsr1_tune.align.score import run

    run(model, file, out, settings.score, mapping)
