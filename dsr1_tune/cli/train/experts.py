"""`dsr1-tune experts`: which experts the data uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import ConfigFile, Map, ModelName, Sets


def experts(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSON, JSONL, CSV or Parquet.")],
    model: ModelName = None,
    out: Annotated[Path, typer.Option("--out", help="What to write; the picture goes beside it.")] = Path(
        "experts.json"
    ),
    map_: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Profile which experts the data uses: a table, experts.json and a picture; `esft` trains those that it chose.

    --set esft.share=0.4 chooses more of them; `dsr1-tune settings` lists everything else under esft.
    """
    from dsr1_tune.config import EsftRun
    from dsr1_tune.config.load import load_config
    from dsr1_tune.data.read.formats import parse_mapping
    from dsr1_tune.errors import ConfigError

    flags = {
        "data.files": [str(file) for file in files],
        "data.map": parse_mapping(map_) if map_ else None,
        "base.model": model,
    }
    settings = load_config(EsftRun, config, flags, sets or ())
    if settings.esft.experts:
        raise ConfigError(
            f"esft.experts: {settings.esft.experts} is what this command writes, it reads none", hint="leave it out"
        )
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder", hint=f"--out {out / 'experts.json'}")

    from dsr1_tune.train.experts import run

    run(settings, out)
