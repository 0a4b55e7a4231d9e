"""What a run prints on the terminal: one stage after the other, and tables of results."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from dsr1_tune.data.inspect import tables
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.models.trained.lora import PartCoverage
from dsr1_tune.moe.anatomy import Part
from dsr1_tune.moe.quantized_experts import HELD_WHOLE, PartBits
from dsr1_tune.runs.evaluate import HeldOut, Sample
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.text.amount import amount


def quiet_libraries() -> None:
    """Keep the libraries' warnings and bars off the terminal; errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("bitsandbytes", "datasets", "accelerate", "peft", "trl"):
        logging.getLogger(library).setLevel(logging.ERROR)


def plain_table(title: str, *columns: str) -> Table:
    """An empty table with its title on the left: the first column holds names, the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number))
    return table


def _title(part: Part) -> str:
    return part.replace("_", " ").replace("ffn", "FFN")


class Narrator:
    """Prints the progress and results of one run on one console."""

    def __init__(self, console: Console, is_heard: bool = True) -> None:
        """Of several processes one `is_heard`; the others print nothing."""
        self.console = console if is_heard else Console(quiet=True)

    def say(self, text: str) -> None:
        """A plain line."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def stage(self, text: str) -> None:
        """The heading of the next stage."""
        self.console.print(f"\n[bold]{escape(text)}[/bold]", highlight=False)

    def data(self, prepared: Prepared, num_train: int, num_held_out: int) -> None:
        """What the files hold, every bad row, and how the good ones are split."""
        tables.show(prepared.report(), self.console, prepared.drops)
        self.say(f"{amount(num_train, 'record')} to train on, {num_held_out:,} held out")

    def coverage(self, lines: Sequence[PartCoverage]) -> None:
        """The coverage audit."""
        table = plain_table("What is trained", "part", "parameters", "adapted", "trained", "frozen")
        for line in lines:
            share = f"{line.num_adapted / line.num_base:.0%}"
            numbers = (f"{line.num_base:,}", share, f"{line.num_trained:,}", f"{line.num_frozen:,}")
            table.add_row(_title(line.part), *numbers, style="" if line.num_trained else "dim")
        counts = [(line.num_base, line.num_adapted, line.num_trained, line.num_frozen) for line in lines]
        num_base, num_adapted, num_trained, num_frozen = map(sum, zip(*counts, strict=True))
        share = f"{num_adapted / num_base:.0%}"
        table.add_section()
        table.add_row("together", f"{num_base:,}", share, f"{num_trained:,}", f"{num_frozen:,}")
        self.console.print(table)
        self.say(f"{num_trained / num_base:.2%} of the base's number of parameters are trained")

    def bits(self, lines: Sequence[PartBits], num_bytes: int) -> None:
        """The base's weights in 4 bits, by part of the model."""
        columns = ("weights", "in 4 bits", "bits a weight", "MiB in all", "worst error")
        table = plain_table("What is in 4 bits", "part", *columns)
        for line in lines:
            held = (f"{line.bits:.2f}", f"{line.worst_error:.1%}") if line.num_in_4bit else ("", "")
            table.add_row(
                *(_title(line.part), f"{line.num_weights:,}", f"{line.share:.0%}", held[0]),
                *(f"{line.num_bytes / 2**20:,.1f}", held[1]),
                style="" if line.num_in_4bit else "dim",
            )
        num, in_16 = sum(line.num_weights for line in lines), sum(2 * line.num_weights for line in lines)
        share = sum(line.num_in_4bit for line in lines) / num
        table.add_section()
        table.add_row("together", f"{num:,}", f"{share:.0%}", "", f"{num_bytes / 2**20:,.1f}", "")
        self.console.print(table)
        left = sum(line.num_weights - line.num_in_4bit for line in lines if line.part not in HELD_WHOLE) / num
        self.say(
            f"the weights take {num_bytes / in_16:.0%} of what they would in 16 bits; {1 - share:.0%} of them stay in "
            f"16, {left:.1%} beside routers, norms and embeddings"
        )

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar that counts records; yields the function that moves it."""
        with Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)

    def before_and_after(self, before: HeldOut, after: HeldOut, are_held_out: bool) -> None:
        """The loss of the base and of the trained model on the same records."""
        what = "Held-out loss" if are_held_out else "Loss on training records"
        title = f"{what} ({amount(after.num_records, 'record')}, {amount(after.num_tokens, 'token')})"
        table = plain_table(title, "", "before", "after", "change")
        change = f"{after.loss / before.loss - 1:+.1%}" if before.loss else ""
        table.add_row("loss", f"{before.loss:.4f}", f"{after.loss:.4f}", change)
        table.add_row("perplexity", f"{before.perplexity:.2f}", f"{after.perplexity:.2f}", "")
        self.console.print(table)

    def answers(self, before: Sequence[Sample], after: Sequence[Sample]) -> None:
        """The sample answers, one below the other."""
        for old, new in zip(before, after, strict=True):
            self.console.print(f"\n[bold]{escape(old.question)}[/bold]", highlight=False)
            for title, text in (("before", old.answer), ("after", new.answer), ("in the data", new.reference)):
                self.console.print(f"  [cyan]{title}:[/cyan] {escape(text)}", highlight=False)

    def where(self, folder: RunFolder) -> None:
        """What to do with the run."""
        outputs = {"adapter": folder.adapter, "model": folder.model, "folder of trained experts": folder.experts}
        what, place = next((item for item in outputs.items() if item[1].exists()), ("run", folder.path))
        self.say(f"\nThe {what} is in {place}. Talk to it with: dsr1-tune chat {folder.path}")
