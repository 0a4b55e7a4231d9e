"""Single rows for a look: who says what, with everything visible that usually is not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from dsr1_tune.data.read.json_rows import Raw
from dsr1_tune.data.read.rows import Interpreter, Learned
from dsr1_tune.data.record import Drop, Feedback, Place, Preference, Prompt, Record, Row, prompt_of
from dsr1_tune.data.rules.codes import MEANINGS, meaning
from dsr1_tune.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

MAX_CHARS = 600
NUM_FIRST = 3
MAX_PICKED = 1_000

_COLORS = {
    "system": "magenta",
    "user": "cyan",
    "assistant": "green",
    "tool": "blue",
    "chosen": "green",
    "good answer": "green",
}
_REJECTED = ("file", "line", "index", "stage", "code", "detail", "row")


def pick(
    rows: Iterable[Row | Drop],
    *,
    row: int | None = None,
    line: int | None = None,
    sample: int | None = None,
    code: str | None = None,
    seed: int = 42,
) -> list[Row | Drop]:
    """The rows to look at: by index (from 0), by line (from 1), `sample` drawn at random, else the first three.

    `code` leaves only the rows dropped with that code. Raises DataError where there is no such row.
    """
    if code is not None:
        rows = (one for one in rows if isinstance(one, Drop) and one.code == code)
    if row is not None or line is not None:
        picked = _at(rows, row, line)
    elif sample is not None:
        picked = _drawn(rows, min(sample, MAX_PICKED), seed)
    else:
        picked = list(islice(rows, NUM_FIRST))
    if not picked:
        raise DataError(_nothing(row, line, code), hint=_where_to_look(row, line, code))
    return picked


def is_rejected(path: Path) -> bool:
    """Whether a file is a rejected.jsonl: rows that fell out, each with its reason."""
    try:
        with path.open("rb") as file:
            first = orjson.loads(file.readline(1 << 24))
    except (OSError, orjson.JSONDecodeError):
        return False
    return isinstance(first, dict) and all(name in first for name in _REJECTED)


def read_rejected(path: Path) -> Iterator[Drop]:
    """The rows of a rejected.jsonl, with the place, the reason and the row as it was. Raises DataError."""
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                yield _drop(json.loads(text))
            except (ValueError, KeyError, TypeError, RecursionError):
                message = f"{path}:{number}: is no line of a rejected.jsonl"
                raise DataError(message, hint="show the data file itself, or clean the data again") from None


def show_rows(rows: Iterable[Row | Drop], console: Console, full: bool = False) -> None:
    """Print rows as conversations; a dropped row with its reason first. Long texts are cut unless `full`."""
    limit = 0 if full else MAX_CHARS
    for number, row in enumerate(rows):
        if number:
            console.print()
        console.print(heading(row))
        if isinstance(row, Drop):
            console.print(reason(row))
        for text in _said(row, limit):
            console.print(text)


def _at(rows: Iterable[Row | Drop], row: int | None, line: int | None) -> list[Row | Drop]:
    """The rows at an index or on a line; where nothing begins on that line, the last row that began before it."""
    before: Row | Drop | None = None
    for one in rows:
        place = one.place
        if place is None:
            continue
        if place.index == row or place.line == line:
            return [one]
        if line is not None and place.line > line:
            break
        before = one
    return [before] if line is not None and before is not None and _spans(before) else []


def _spans(row: Row | Drop) -> bool:
    """Whether a row may fill more than one line: a row of JSON lines never does."""
    return row.place is not None and not row.place.file.removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def _drawn(rows: Iterable[Row | Drop], number: int, seed: int) -> list[Row | Drop]:
    """Rows drawn at random from a stream (reservoir sampling), in the order of the file."""
    draw = random.Random(seed)
    drawn: dict[int, tuple[int, Row | Drop]] = {}
    for position, row in enumerate(rows):
        slot = position if position < number else draw.randrange(position + 1)
        if slot < number:
            drawn[slot] = (position, row)
    return [row for _, row in sorted(drawn.values(), key=lambda pair: pair[0])]


def _nothing(row: int | None, line: int | None, code: str | None) -> str:
    asked = {"row": row, "line": line, "code": code}
    sought = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    return f"there is no row with {sought}" if sought else "there are no rows"


def _where_to_look(row: int | None, line: int | None, code: str | None) -> str:
    if code is not None and code not in MEANINGS:
        return "the code is not known; docs/data.md lists them"
    if row is not None:
        return "rows are counted from 0"
    if line is not None:
        return "lines are counted from 1; blank lines hold no row"
    return "`dsr1-tune data stats` counts the rows by code"


def _drop(value: dict[str, Any]) -> Drop:
    place = None
    if value["file"] is not None:
        place = Place(str(value["file"]), int(value["line"]), int(value["index"]))
    code, detail, fix, path, stage = (str(value.get(name) or "") for name in ("code", "detail", "fix", "path", "stage"))
    return Drop(code, detail, fix, path, stage, place, value["row"])


def heading(row: Row | Drop) -> Text:
    """Where a row stands, and what it is."""
    place = row.place
    where = visible(f"{place}, row {place.index}" if place else "a row", "bold")
    return where if isinstance(row, Drop) else where.append("  ").append(visible(_kind(row), "dim"))


def _kind(row: Row) -> str:
    if isinstance(row, Record):
        num_turns = sum(message.role == "user" for message in row.messages)
        return "conversation" + (f", {num_turns} questions" if num_turns > 1 else "") + (", tools" if row.tools else "")
    return type(row).__name__.lower()


def reason(drop: Drop) -> Text:
    """Why a row fell out, and what mends it."""
    text = visible(drop.code, "bold red")
    if drop.path not in ("", "$"):
        text.append(" ").append(visible(drop.path))
    text.append("\n").append(visible(drop.detail or meaning(drop.code)))
    if drop.fix:
        text.append("\n").append(visible(f"→ {drop.fix}", "dim"))
    return text


def _said(row: Row | Drop, limit: int) -> Iterator[Text]:
    """Each turn under its role; what cannot be read as a conversation as JSON."""
    from rich.text import Text

    if isinstance(row, Drop):
        said = Interpreter(Learned())(Raw(row.row, row.place or Place("", 0, 0)))
        if isinstance(said, Drop):
            yield _cut(_as_json(row.row), limit)
        else:
            yield from _said(said, limit)
        return
    turns = [("tools", row.tools)] if row.tools else []
    turns += [(message.role, message.said) for message in prompt_of(row)]
    match row:
        case Record():
            turns.append((row.messages[-1].role, row.answer))
        case Preference():
            turns += [("chosen", row.chosen.said), ("rejected", row.rejected.said)]
        case Feedback():
            turns.append(("good answer" if row.is_good else "bad answer", row.completion.said))
        case Prompt() if row.answer is not None:
            turns.append(("ground truth", row.answer))
    for role, content in turns:
        yield Text(f"{role}: ", f"bold {_COLORS.get(role, 'yellow')}").append(_cut(content, limit))
    for note in row.notes:
        yield visible(f"remark: {note.code} {note.detail}", "yellow")


def _cut(text: str, limit: int) -> Text:
    if not limit or len(text) <= limit * 1.2:
        return visible(text)
    more = f" ... {len(text) - limit:,} more characters, see them with --full"
    return visible(text[:limit]).append(visible(more, "dim"))


def visible(text: str, style: str = "") -> Text:
    """Text from the data: tabs as →, blanks before a line's end as ·, and as escapes whatever cannot be printed."""
    from rich.text import Text

    shown = Text(style=style)
    for number, line in enumerate(text.split("\n")):
        if number:
            shown.append("\n")
        kept = line.rstrip(" ")
        for is_plain, run in groupby(kept, lambda character: character.isprintable() or character == "\u3000"):
            if is_plain:
                shown.append("".join(run))
            else:
                marks = ("→" if character == "\t" else character.encode("unicode_escape").decode() for character in run)
                shown.append("".join(marks), "yellow")
        shown.append("·" * (len(line) - len(kept)), "yellow")
    return shown


def _as_json(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, indent=2, default=str)
    except (RecursionError, ValueError):
        return repr(type(value))
