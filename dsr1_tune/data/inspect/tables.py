"""What became of the data, from its report: counts per file and reason, and every bad row with its mend; as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsr1_tune.data.read.charset import CERTAIN
from dsr1_tune.data.record import DAMAGE, Drop
from dsr1_tune.data.rules.codes import meaning
from dsr1_tune.data.rules.pairs import PreferenceStats
from dsr1_tune.text.amount import amount

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MAX_ROWS_SHOWN = 1000


def show(report: Mapping[str, Any], console: Console, drops: Sequence[Drop] = ()) -> None:
    """Print what report.json says of rows and reasons: files, remarks, reasons; then every one of the dropped rows."""
    console.print(_files_table(report))
    if report["noted"] or report["mended"]:
        console.print(_remarks_table(report))
    if counts := report["opinions"]:
        for text, is_warning in PreferenceStats.counted(counts).sentences():
            console.print(plain(text, "yellow" if is_warning else ""))
    if report["dropped"]:
        console.print(_codes_table("Why rows are merged or dropped", report["dropped"], report["examples"]))
    shown = drops[:MAX_ROWS_SHOWN]
    for file in report["files"]:
        of_file = [drop for drop in shown if drop.place and drop.place.file == file["file"]]
        if of_file:
            console.print(_rows_table(file["file"], of_file))
    if len(shown) < len(drops):
        console.print(f"... and {len(drops) - len(shown):,} more bad rows.")


def show_cleaned(report: Mapping[str, Any], console: Console) -> None:
    """Print what `data clean` did: the same, the way of the rows, personal data, the judge, and what is left."""
    show(report, console)
    console.print(_funnel(report))
    if found := report["personal_data"]["kinds"]:
        said = (f"{kind} {count['num_found']:,} in {amount(count['num_rows'], 'row')}" for kind, count in found.items())
        listed = ", ".join(said)
        done = {"count": "only counted; --privacy redact takes it out", "redact": "redacted", "drop": "dropped"}
        console.print(plain(f"Personal data ({done.get(report['personal_data']['action'], '')}): {listed}."))
    if judge := report["judge"]:
        said_by_judge = "; ".join([f"the judge dropped {amount(judge['num_dropped'], 'row')}", *judge.get("notes", ())])
        console.print(plain(f"{said_by_judge[0].upper()}{said_by_judge[1:]}."))
    for file in report["files"]:
        if file["is_damaged"]:
            text = f"{file['file']} is damaged: rows behind the broken place may be lost. Mend it, or fetch it again."
            console.print(plain(text, "red"))
    if report["contamination"] and (num_unreadable := report["contamination"]["num_unreadable"]):
        text = (
            f"In the evaluation files {amount(num_unreadable, 'row')} cannot be read, and nobody looked for the like."
        )
        console.print(plain(text, "red"))
    kept, rows, split = report["num_kept"], report["num_rows"], report["split"]
    text = f"{kept:,} of {rows:,} rows are kept ({report['utilisation']:.1%}): {split['num_train']:,} to train on"
    console.print(plain(f"{text}, {split['num_eval']:,} held out.", "bold"))


def _files_table(report: Mapping[str, Any]) -> Table:
    columns = ("num_rows", "num_kept", "num_merged", "num_dropped")
    table = titled("Files", ["file", "format"], [name.removeprefix("num_") for name in columns])
    for file in report["files"]:
        formats = ", ".join(f"{name} {number:,}" for name, number in file["formats"].items())
        format = f"mixed: {formats}" if len(file["formats"]) > 1 else file["format"] or "no known format"
        encoding = f", {file['encoding']}" if file["encoding"] not in ("", "utf-8") else ""
        encoding += "" if file["encoding"] in CERTAIN else " (a guess)"
        weight = "" if file["weight"] == 1 else f"; counts {file['weight']:g} times"
        damaged = "; damaged: rows may be lost" if file["is_damaged"] else ""
        what = f"{file['layout']}{encoding}: {format}{weight}{damaged}"
        table.add_row(plain(file["file"]), plain(what), *(f"{file[name]:,}" for name in columns))
    if len(report["files"]) > 1:
        table.add_section()
        table.add_row("together", "", *(f"{report[name]:,}" for name in columns))
    return table


def _funnel(report: Mapping[str, Any]) -> Table:
    table = titled("The way of the rows")
    table.add_column("after", no_wrap=True)
    for name in ("rows", "less"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in report["stages"]:
        less = stage["num_in"] - stage["num_out"]
        table.add_row(stage["stage"], f"{stage['num_out']:,}", f"{less:,}" if less else "")
    return table


def _codes_table(title: str, counts: Mapping[str, int], examples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    table = titled(title, numbers=["rows"])
    table.add_column("code", no_wrap=True)
    table.add_column("meaning; the first such row", overflow="fold")
    for code, number in counts.items():
        means = plain(meaning(code))
        for example in examples.get(code, ())[:1]:
            means.append(plain(f"\n{example['file']}:{example['line']}: {example['detail']}", "dim"))
        table.add_row(f"{number:,}", code, means)
    return table


def _remarks_table(report: Mapping[str, Any]) -> Table:
    table = _codes_table("Remarks on rows that are kept", report["noted"], report["examples"])
    for name, number in report["mended"].items():
        table.add_row(f"{number:,}", "", plain(f"mended: {name.replace('_', ' ')}"))
    return table


def _rows_table(file: str, drops: Sequence[Drop]) -> Table:
    """All bad rows of one file; the mend stands below what is wrong, so that it also fits a narrow terminal."""
    table = titled(f"Bad rows of {file}", numbers=["line", "row"])
    table.add_column("code, place in the row", overflow="fold")
    table.add_column("what is wrong, how to mend it", overflow="fold", ratio=1)
    for drop in drops:
        assert drop.place
        color = "red" if drop.code in DAMAGE else "yellow"
        where = plain(drop.code, color)
        if drop.path != "$":
            where.append("\n").append(plain(drop.path))
        what = plain(drop.detail)
        if drop.fix:
            what.append("\n").append(plain(f"→ {drop.fix}", "dim"))
        table.add_row(str(drop.place.line), str(drop.place.index), where, what)
    return table


def titled(title: str, texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """A table with its title above it, as all of these commands print them, and columns of texts and of numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=plain(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def plain(text: str, style: str = "") -> Text:
    """Text from the data as it is: no markup, and nothing that moves the terminal's cursor."""
    from rich.text import Text

    seen = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return Text(seen, style=style)
