"""`dsr1-tune settings`: what --config and --set can say."""

from __future__ import annotations

Row = tuple[str, str, str]


def settings() -> None:
    """List every setting of the ways of training and alignment, of `data clean` and of `export`, with its default."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dsr1_tune import config as configs
    from dsr1_tune.config.load import describe

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # for grep
    shared = describe(configs.TuneRun)
    kinds: dict[str, type[configs.ConfigSection]] = {
        "lora, qlora": configs.LoraRun,
        "full": configs.FullRun,
        "esft": configs.EsftRun,
    }
    tables = {"lora, qlora, full, esft": shared}
    tables |= {command: [row for row in describe(kind) if row not in shared] for command, kind in kinds.items()}
    known = [row for rows in tables.values() for row in rows] + describe(configs.ExportRun)
    tables |= _alignment(shared)
    tables["plan, adapt"] = [row for row in describe(configs.AdaptRun) if row not in known]
    others = {
        "score": describe(configs.ScoreRun),
        "data clean": describe(configs.CleanRun),
        "export, compare": describe(configs.ExportRun),
    }
    for command, rows in (tables | others).items():
        table = Table(title=f"dsr1-tune {command}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("setting", no_wrap=True)
        for name in ("default", "meaning"):
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table, markup=False)


def _alignment(shared: list[Row]) -> dict[str, list[Row]]:
    """What the ways of alignment add to that, first what they share, then what two of them share."""
    from dsr1_tune import config as configs
    from dsr1_tune.config.load import describe

    common, rollouts = describe(configs.AlignRun), describe(configs.RolloutRun)
    tables = {
        "reward, dpo, kto, ppo, grpo": [row for row in common if row not in shared],
        "ppo, grpo": [row for row in rollouts if row not in common and row not in shared],
    }
    kinds: dict[str, type[configs.AlignRun]] = {
        "reward": configs.RewardRun,
        "dpo": configs.DpoRun,
        "kto": configs.KtoRun,
        "ppo": configs.PpoRun,
        "grpo": configs.GrpoRun,
    }
    told = [*shared, *common, *rollouts]
    return tables | {name: [row for row in describe(kind) if row not in told] for name, kind in kinds.items()}
