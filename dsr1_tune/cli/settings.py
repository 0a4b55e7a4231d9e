"""`dsr1-tune settings`: what --config and --set can say."""

from __future__ import annotations


def settings() -> None:
    """List every setting of `lora` and of `data clean`, with its default and its meaning."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dsr1_tune.config import CleanRun, LoraRun
    from dsr1_tune.settings import describe

    console = Console()
    for command, kind in (("lora", LoraRun), ("data clean", CleanRun)):
        table = Table(title=f"dsr1-tune {command}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("setting", no_wrap=True)
        for name in ("default", "meaning"):
            table.add_column(name, overflow="fold")
        for row in describe(kind):
            table.add_row(*row)
        console.print(table, markup=False)
