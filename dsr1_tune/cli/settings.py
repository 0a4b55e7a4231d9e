"""`dsr1-tune settings`: what --config and --set can say."""

from __future__ import annotations


def settings() -> None:
    """List every setting of a run, with its default and its meaning."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dsr1_tune.config import LoraRun, describe

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    for name in ("default", "meaning"):
        table.add_column(name, overflow="fold")
    for row in describe(LoraRun):
        table.add_row(*row)
    Console().print(table, markup=False)
