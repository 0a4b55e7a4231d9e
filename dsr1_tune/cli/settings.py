"""`dsr1-tune settings`: what --config and --set can say."""

from __future__ import annotations

Row = tuple[str, str, str]


def settings() -> None:
    """List every setting of the ways of training and alignment, of `data clean` and of `export`, with its default."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # for grep
    for command, rows in _tables().items():
        table = Table(title=f"dsr1-tune {command}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("setting", no_wrap=True)
        for name in ("default", "meaning"):
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table, markup=False)


def _tables() -> dict[str, list[Row]]:
    """By the commands that heed them: first what several share, then what each of them adds to that."""
    from dsr1_tune import config as configs
    from dsr1_tune.config.load import describe

    shared, common, rollouts = map(describe, (configs.TuneRun, configs.AlignRun, configs.RolloutRun))
    exports = describe(configs.ExportRun)
    own = {name: describe(kind) for name, kind in configs.RUNS.items()}
    told = [*shared, *common, *rollouts]
    tables = {
        "lora, qlora, full, esft": shared,
        "lora, qlora": [row for row in own["lora"] if row not in shared],
        "full": [row for row in own["full"] if row not in shared],
        "esft": [row for row in own["esft"] if row not in shared],
    }
    known = [*(row for rows in tables.values() for row in rows), *exports]
    return {
        **tables,
        "reward, dpo, kto, ppo, grpo": [row for row in common if row not in shared],
        "ppo, grpo": [row for row in rollouts if row not in [*common, *shared]],
        **{name: [row for row in own[name] if row not in told] for name in ("reward", "dpo", "kto", "ppo", "grpo")},
        "plan, adapt": [row for row in describe(configs.AdaptRun) if row not in known],
        "score": describe(configs.ScoreRun),
        "data clean": describe(configs.CleanRun),
        "export, compare": exports,
    }
