"""Unrecognised files, which are no data set: what do they look like, and what was probably meant?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsr1_tune.data.phrase_table import load_yaml
from dsr1_tune.data.read.formats import listed, shown

ROWS = 'write one object a line, such as {"input": "the question", "output": "the answer"}'
MAX_LINES = 40
PIECE_OF_JSON = "a piece of JSON, of which the beginning is missing"

_TABLE: dict[str, Any] = load_yaml(Path(__file__).with_suffix(".yaml"))


def unrecognised_bytes(head: bytes) -> dict[str, str] | None:
    """What a file is that begins so and is no text at all, and the fix."""
    return next((known for known in _TABLE["bytes"] if head.startswith(known["magic"].encode("latin-1"))), None)


def foreign_text(text: str) -> str:
    """What a text is that is made for something else than data, or "" for none of these."""
    start = text[:200].lower()
    if start.startswith("<") and "<head" in start:
        start = "<html"
    return next((what for begins, what in _TABLE["beginnings"].items() if start.startswith(begins)), "")


def unrecognised_object(value: dict[str, Any]) -> tuple[str, str]:
    """(what it is, the fix) for a file that holds this one object and no rows."""
    is_registry = (isinstance(entry, dict) and entry.keys() & set(_TABLE["registry"]) for entry in value.values())
    if value and all(is_registry):
        what = "a registry that names data sets (such as dataset_info.json), not the data"
        return what, "give the files that it names (file_name)"
    for known in _TABLE["objects"]:
        has_keys = any(set(keys) <= value.keys() for keys in known.get("keys", ()))
        if has_keys or str(value.get("type")) in known.get("types", ()):
            return known["what"], known.get("fix", ROWS)
    if what := unrecognised_rows([value]):
        return what, ROWS
    for name, inside in value.items():
        if isinstance(inside, list) and inside and all(isinstance(item, dict) for item in inside):
            what = f"one object, in which {shown(name)!r} holds a list of {len(inside):,}"
            return what, "if these are the rows, write that list alone into a file"
    return (
        f"one object with {listed(value) or 'no fields'}: settings, perhaps, but no rows",
        f"{ROWS}; or name its columns with --map",
    )


def unrecognised_rows(rows: Sequence[Any]) -> str:
    """What a file is whose rows are all like these, or "" where that is not known."""
    fields = [row.keys() for row in rows if isinstance(row, dict)]
    if not fields or len(fields) < len(rows):
        return ""
    is_progress = [any("loss" in str(name) for name in row) and row & set(_TABLE["progress"]) for row in fields]
    if sum(map(bool, is_progress)) > len(rows) / 2:
        return "a training log: its rows hold a loss and steps"
    if all({"geometry", "type"} <= row for row in fields):
        return "GeoJSON, a map"
    if all(row & {"level", "levelname", "severity"} and row & {"message", "msg", "event"} for row in fields):
        return "a program's log"
    return ""


def unrecognised_lines(texts: Sequence[str]) -> str:
    """What a file is whose lines look like JSON but are none, or "" where that is not known."""
    what = unrecognised_text("\n".join(texts[:MAX_LINES]), "")
    return what if what.endswith("log") else ""


def unrecognised_text(text: str, ending: str) -> str:
    """What a text is that is neither JSON nor a table, or "" where it looks like nothing known."""
    lines = [line for line in text.split("\n")[:MAX_LINES] if line.strip()]
    for known in _TABLE["lines"]:
        if lines and sum(re.match(known["pattern"], line) is not None for line in lines) >= known["share"] * len(lines):
            return str(known["what"])
    first = lines[0].strip() if lines else ""
    for known in _TABLE["files"]:
        if ending in known["endings"] or ("first" in known and re.match(known["first"], first)):
            return str(known["what"])
    if re.search(r'"\s*[:,]\s*["\[{]|[}\]]\s*,\s*[{\[]', text[:2000]):
        return PIECE_OF_JSON
    if re.search(r"[.!?。！？…]", text) and len(re.findall(r"\w\s+\w|[\u4e00-\u9fff]{4}", text[:2000])) > 4:
        return "prose"
    return ""
