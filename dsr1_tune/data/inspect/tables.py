"""What became of the data: counts per file and reason, and every bad row with its mend; as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dsr1_tune.data.read.charset import CERTAIN
from dsr1_tune.data.record import DAMAGE, Drop
from dsr1_tune.data.rules.codes import meaning
from dsr1_tune.data.rules.pairs import PreferenceStats

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsr1_tune.data.prepared import FileFacts, Prepared

MAX_ROWS_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class FileLine:
    """One file's outcome."""

    facts: FileFacts
    num_kept: int
    num_dropped: int
    is_damaged: bool


@dataclass(frozen=True, slots=True)
class CodeLine:
    """One reason's outcome, with the first row that it hit."""

    code: str
    num_rows: int
    example: str


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a data stage."""

    files: tuple[FileLine, ...]
    codes: tuple[CodeLine, ...]
    kinds: dict[str, int]
    drops: tuple[Drop, ...]
    noted: tuple[CodeLine, ...] = ()
    opinions: PreferenceStats = field(default_factory=PreferenceStats)

    @classmethod
    def of(cls, prepared: Prepared) -> Report:
        """Count what was kept and dropped."""
        kept = Counter(row.place.file for row in prepared.rows)
        dropped = Counter(drop.place.file for drop in prepared.drops if drop.place)
        damaged = {drop.place.file for drop in prepared.damage if drop.place}
        files = [FileLine(f, kept[f.file], dropped[f.file], f.file in damaged) for f in prepared.files]
        codes = _by_code(prepared.drops)
        noted = _by_code([note for row in prepared.rows for note in row.notes])
        kinds = dict(Counter(type(row).__name__.lower() for row in prepared.rows))
        return cls(tuple(files), codes, kinds, prepared.drops, noted, PreferenceStats.of(prepared.rows))

    @property
    def num_rows(self) -> int:
        """Rows read, good and bad."""
        return sum(line.facts.num_rows for line in self.files)

    @property
    def num_kept(self) -> int:
        """Rows that are fit to learn from."""
        return sum(line.num_kept for line in self.files)

    def summary(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        return {
            "num_rows": self.num_rows,
            "num_kept": self.num_kept,
            "num_dropped": len(self.drops),
            "kept": self.kinds,
            "dropped": {line.code: line.num_rows for line in self.codes},
            "noted": {line.code: line.num_rows for line in self.noted},
            "opinions": self.opinions.as_json() if self.opinions != PreferenceStats() else None,
            "files": [
                {
                    "file": line.facts.file,
                    "layout": line.facts.layout,
                    "encoding": line.facts.encoding,
                    "format": line.facts.format,
                    "num_rows": line.facts.num_rows,
                    "num_kept": line.num_kept,
                    "num_dropped": line.num_dropped,
                    "is_damaged": line.is_damaged,
                }
                for line in self.files
            ],
        }

    def as_json(self) -> dict[str, Any]:
        """The counts and every bad row as plain JSON values."""
        return {**self.summary(), "bad_rows": [drop.as_json() for drop in self.drops]}


def _by_code(drops: Sequence[Drop]) -> tuple[CodeLine, ...]:
    """How many rows have each code, with the first of them; a row may be remarked on twice."""
    examples: dict[str, str] = {}
    for drop in drops:
        examples.setdefault(drop.code, f"{drop.place}: {drop.detail}")
    counts = Counter(code for _, code in dict.fromkeys((drop.place, drop.code) for drop in drops))
    return tuple(CodeLine(code, number, examples[code]) for code, number in counts.most_common())


def show(report: Report, console: Console) -> None:
    """Print the report: files, remarks, reasons, then every bad row."""
    console.print(_files_table(report))
    if report.noted:
        console.print(_codes_table("Remarks on rows that are kept", report.noted))
    _show_opinions(report.opinions, console)
    if not report.drops:
        return
    console.print(_codes_table("Why rows are dropped", report.codes))
    shown = report.drops[:MAX_ROWS_SHOWN]
    for line in report.files:
        of_file = [drop for drop in shown if drop.place and drop.place.file == line.facts.file]
        if of_file:
            console.print(_rows_table(line.facts.file, of_file))
    if len(shown) < len(report.drops):
        console.print(f"... and {len(report.drops) - len(shown):,} more bad rows.")


def show_facts(facts: dict[str, Any], console: Console) -> None:
    """Print what `data clean` did, from its report.json: files, the way of the rows, reasons, personal data."""
    console.print(_cleaned_files(facts))
    console.print(_funnel(facts))
    if facts["dropped"]:
        console.print(_reasons(facts))
    if facts["noted"] or facts["mended"]:
        console.print(_remarks(facts))
    if counts := facts["opinions"]:
        _show_opinions(PreferenceStats.counted(counts), console)
    found = facts["personal_data"]["kinds"]
    if found:
        listed = ", ".join(
            f"{kind} {count['num_found']:,} in {count['num_rows']:,} rows" for kind, count in found.items()
        )
        done = {"count": "only counted; --privacy redact takes it out", "redact": "redacted", "drop": "dropped"}
        console.print(_plain(f"Personal data ({done.get(facts['personal_data']['action'], '')}): {listed}."))
    if facts["judge"]:
        said = "; ".join(
            [f"the judge dropped {facts['judge']['num_dropped']:,} rows", *facts["judge"].get("notes", ())]
        )
        console.print(_plain(f"{said[0].upper()}{said[1:]}."))
    for file in facts["files"]:
        if file["is_damaged"]:
            text = f"{file['file']} is damaged: rows behind the broken place may be lost. Mend it, or fetch it again."
            console.print(_plain(text, "red"))
    if facts["contamination"] and (num_unreadable := facts["contamination"]["num_unreadable"]):
        text = f"{num_unreadable:,} rows of the evaluation files cannot be read: nobody looked for their questions."
        console.print(_plain(text, "red"))
    kept, rows, split = facts["num_kept"], facts["num_rows"], facts["split"]
    text = f"{kept:,} of {rows:,} rows are kept ({facts['utilisation']:.1%}): {split['num_train']:,} to train on"
    console.print(_plain(f"{text}, {split['num_eval']:,} held out.", "bold"))


def _cleaned_files(facts: dict[str, Any]) -> Table:
    table = _table("Files")
    for name in ("file", "format"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "kept", "merged", "dropped"):
        table.add_column(name, justify="right")
    for file in facts["files"]:
        formats = ", ".join(f"{name} {number:,}" for name, number in file["formats"].items())
        format = f"mixed: {formats}" if len(file["formats"]) > 1 else file["format"] or "no known format"
        weight = "" if file["weight"] == 1 else f"; counts {file['weight']:g} times"
        what = f"{file['layout']}: {format}{weight}{'; damaged: rows may be lost' if file['is_damaged'] else ''}"
        counts = (f"{file[name]:,}" for name in ("num_rows", "num_kept", "num_merged", "num_dropped"))
        table.add_row(_plain(file["file"]), _plain(what), *counts)
    return table


def _funnel(facts: dict[str, Any]) -> Table:
    table = _table("The way of the rows")
    table.add_column("after", no_wrap=True)
    for name in ("rows", "less"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in facts["stages"]:
        less = stage["num_in"] - stage["num_out"]
        table.add_row(stage["stage"], f"{stage['num_out']:,}", f"{less:,}" if less else "")
    return table


def _reasons(facts: dict[str, Any]) -> Table:
    table = _table("Why rows are merged or dropped")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("code", no_wrap=True)
    table.add_column("meaning; the first such row", overflow="fold")
    for code, number in facts["dropped"].items():
        means = _plain(meaning(code))
        for example in facts["examples"].get(code, ())[:1]:
            means.append(_plain(f"\n{example['file']}:{example['line']}: {example['detail']}", "dim"))
        table.add_row(f"{number:,}", code, means)
    return table


def _remarks(facts: dict[str, Any]) -> Table:
    table = _table("Remarks on rows that are kept")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for code, number in facts["noted"].items():
        table.add_row(f"{number:,}", _plain(f"{code}: {meaning(code)}"))
    for name, number in facts["mended"].items():
        table.add_row(f"{number:,}", _plain(f"mended: {name.replace('_', ' ')}"))
    return table


def _files_table(report: Report) -> Table:
    table = _table("Files")
    for name in ("file", "format"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "kept", "dropped"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in report.files:
        facts = line.facts
        encoding = f", {facts.encoding}" if facts.encoding not in ("", "utf-8") else ""
        encoding += "" if facts.encoding in CERTAIN else " (a guess)"
        damaged = "; damaged: rows may be lost" if line.is_damaged else ""
        what = f"{facts.layout}{encoding}: {facts.format or 'no known format'}{damaged}"
        counts = (f"{number:,}" for number in (facts.num_rows, line.num_kept, line.num_dropped))
        table.add_row(_plain(facts.file), _plain(what), *counts)
    if len(report.files) > 1:
        table.add_section()
        table.add_row("together", "", f"{report.num_rows:,}", f"{report.num_kept:,}", f"{len(report.drops):,}")
    return table


def _show_opinions(opinions: PreferenceStats, console: Console) -> None:
    for text, is_warning in opinions.sentences():
        console.print(_plain(text, "yellow" if is_warning else ""))


def _codes_table(title: str, lines: Sequence[CodeLine]) -> Table:
    table = _table(title)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("code", no_wrap=True)
    table.add_column("meaning; the first such row", overflow="fold")
    for line in lines:
        means = _plain(f"{meaning(line.code)}\n")
        table.add_row(f"{line.num_rows:,}", line.code, means.append(_plain(line.example, "dim")))
    return table


def _rows_table(file: str, drops: list[Drop]) -> Table:
    """All bad rows of one file; the mend stands below what is wrong, so that it also fits a narrow terminal."""
    table = _table(f"Bad rows of {file}")
    table.add_column("line", justify="right", no_wrap=True)
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("code, place in the row", overflow="fold")
    table.add_column("what is wrong, how to mend it", overflow="fold", ratio=1)
    for drop in drops:
        assert drop.place
        color = "red" if drop.code in DAMAGE else "yellow"
        where = _plain(drop.code, color)
        if drop.path != "$":
            where.append("\n").append(_plain(drop.path))
        what = _plain(drop.detail)
        if drop.fix:
            what.append("\n").append(_plain(f"→ {drop.fix}", "dim"))
        table.add_row(str(drop.place.line), str(drop.place.index), where, what)
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=_plain(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, expand=False)


def _plain(text: str, style: str = "") -> Text:
    """Text from the data as it is: no markup, and nothing that moves the terminal's cursor."""
    from rich.text import Text

    seen = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return Text(seen, style=style)
