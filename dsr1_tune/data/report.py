"""report.json, one schema for a run's data folder, a cleaned folder and `data check --json`: in, kept, out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsr1_tune import __version__
from dsr1_tune.data.output import dumps
from dsr1_tune.data.record import DAMAGE, Drop

STAGES = ("read", "rules", "privacy", "contamination", "duplicates", "judge", "selection")
MERGED = ("exact_duplicate", "near_duplicate")
"""Codes of rows that another row stands for; all other codes are of rows that are lost."""
MAX_EXAMPLES = 3
MAX_EXAMPLE_CHARS = 300


@dataclass
class RowCounts:
    """What is counted of a file or of a part of it: rows read, what fell out, what was odd or mended."""

    num_rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    personal_rows: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def drop(self, drop: Drop) -> None:
        """Count one more row that fell out."""
        self.dropped[drop.code] += 1
        self.stages[drop.stage] += 1

    def add(self, other: RowCounts) -> None:
        """Add the counts of another part, or of another file."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
        self.num_rows += other.num_rows
        for code, examples in other.examples.items():
            some = self.examples.setdefault(code, [])
            some += examples[: MAX_EXAMPLES - len(some)]

    def add_example(self, drop: Drop, question: str = "", answer: str = "", hide: Callable[[str], str] = str) -> None:
        """Keep the first few rows of every code for the report; `hide` takes personal data out of what is said."""
        some = self.examples.setdefault(drop.code, [])
        if len(some) >= MAX_EXAMPLES:
            return
        where = drop.as_json()
        where["detail"] = hide(where["detail"])
        shown = {name: where[name] for name in ("file", "line", "index", "path", "detail")}
        shown |= {"question": question[:MAX_EXAMPLE_CHARS], "answer": answer[:MAX_EXAMPLE_CHARS]}
        some.append({name: sound(value) if isinstance(value, str) else value for name, value in shown.items()})

    @property
    def num_merged(self) -> int:
        """Rows that another row stands for."""
        return sum(self.dropped[code] for code in MERGED)

    @property
    def num_dropped(self) -> int:
        """Rows that are lost, those that another row stands for not counted."""
        return sum(self.dropped.values()) - self.num_merged

    @property
    def num_kept(self) -> int:
        """Rows that are left."""
        return self.num_rows - sum(self.dropped.values())


def build_report(files: Sequence[tuple[dict[str, Any], RowCounts]], **sections: Any) -> dict[str, Any]:
    """The report as JSON values, from each file's description and counts.

    `sections` are the parts that only some commands have; one that a command lacks is null, so that every reader finds
    every name. Rows read = kept + merged + dropped.
    """
    counts = RowCounts()
    for _, of_file in files:
        counts.add(of_file)
    found: dict[str, Any] = {
        "schema": 1,
        "version": __version__,
        "num_rows": counts.num_rows,
        "num_kept": counts.num_kept,
        "num_merged": counts.num_merged,
        "num_dropped": counts.num_dropped,
        "utilisation": counts.num_kept / counts.num_rows if counts.num_rows else 0.0,
        "stages": _funnel(counts),
        "dropped": ranked(counts.dropped),
        "noted": ranked(counts.noted),
        "mended": ranked(counts.mended),
        "examples": dict(sorted(counts.examples.items())),
        "kinds": {},
        "opinions": None,
        "files": [_file(description, of_file) for description, of_file in files],
        "languages": None,
        "lengths": None,
        "personal_data": None,
        "duplicates": {
            "num_exact": counts.dropped["exact_duplicate"],
            "num_near": counts.dropped["near_duplicate"],
            "num_contradictory": counts.dropped["contradictory_answer"],
            "num_opposed": counts.dropped["contradictory_preference"] + counts.dropped["contradictory_label"],
            **sections.pop("groups", {}),
        },
        "contamination": None,
        "judge": None,
        "split": None,
        "settings": None,
        "seed": None,
    }
    assert sections.keys() <= found.keys(), "the schema names every section"
    return found | sections


def _funnel(counts: RowCounts) -> list[dict[str, Any]]:
    stages, left = [], counts.num_rows
    for stage in (*STAGES, *(name for name in counts.stages if name not in STAGES)):
        num_out = left - counts.stages[stage]
        stages.append({"stage": stage, "num_in": left, "num_out": num_out})
        left = num_out
    return stages


def _file(description: dict[str, Any], counts: RowCounts) -> dict[str, Any]:
    formats = ranked(counts.formats)
    return {
        "file": description["file"],
        "layout": description["layout"],
        "encoding": description["encoding"],
        "format": next(iter(formats), ""),
        "formats": formats,
        "num_rows": counts.num_rows,
        "num_kept": counts.num_kept,
        "num_merged": counts.num_merged,
        "num_dropped": counts.num_dropped,
        "weight": description["weight"],
        "is_damaged": any(code in DAMAGE for code in counts.dropped),
    }


def ranked(counts: Counter[str]) -> dict[str, int]:
    """The counts, largest first, equal ones by name: sets and processes bring them in any order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def sound(text: str) -> str:
    """The text without halves of characters, which no report can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def reject(drop: Drop, raw: bytes) -> bytes:
    """A line of rejected.jsonl: where the row stands, what is wrong, how to mend it, and the whole row as it was."""
    return dumps(drop.as_json())[:-1] + b',"row":' + raw + b"}"
