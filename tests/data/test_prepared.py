"""Prepared data adds up, and its report says what became of each file."""

from __future__ import annotations

from collections import Counter

import pytest

from dsr1_tune.data.prepared import FileSummary, Prepared
from dsr1_tune.data.record import Drop, Message, Place, Prompt, Record


def record(index: int, file: str = "a.json", **named: object) -> Record:
    messages = (Message("user", f"Q{index}"), Message("assistant", f"A{index}"))
    return Record(messages, Place(file, index + 1, index), **named)


DAMAGED = Drop("json_truncated", "ends").at(Place("a.json", 9, 8), "read", None)
COPY = Drop("exact_duplicate", "the same as line 1 (row 0)").at(Place("b.json", 1, 0), "duplicates", {"input": "Q0"})
REMARK = Drop("template_placeholder", "{{name}}").at(Place("a.json", 1, 0), "rules", None)
PREPARED = Prepared(
    (record(0, notes=(REMARK, REMARK)), record(1), Prompt((Message("user", "P"),), None, Place("b.json", 2, 1))),
    (DAMAGED, COPY),
    (
        FileSummary("a.json", "JSON array", "utf-8", "Alpaca", 3, Counter({"Alpaca": 2})),
        FileSummary("b.json", "JSON array", "utf-8", "prompts", 2, Counter({"prompt": 1, "Alpaca": 1}), 2.0, True),
    ),
    {"a.json": Counter(encoding=1)},
)


def test_prepared_rows_and_drops_add_up() -> None:
    with pytest.raises(AssertionError, match="rows in"):
        Prepared(PREPARED.rows[1:], PREPARED.drops, PREPARED.files)
    assert PREPARED.records == PREPARED.rows[:2] and PREPARED.damage == (DAMAGED,)
    assert PREPARED.eval_files == {"b.json"}
    assert (PREPARED.train_rows, PREPARED.eval_rows) == (PREPARED.rows[:2], PREPARED.rows[2:])


def test_prepared_report_counts_rows_by_file_and_code() -> None:
    report = PREPARED.report(split={"num_train": 2})
    assert [report[f"num_{name}"] for name in ("rows", "kept", "merged", "dropped")] == [5, 3, 1, 1]
    assert report["dropped"] == {"exact_duplicate": 1, "json_truncated": 1}
    # A row is remarked on once, however often the same is odd about it.
    assert report["noted"] == {"template_placeholder": 1} and report["mended"] == {"encoding": 1}
    assert report["kinds"] == {"record": 2, "prompt": 1} and report["split"] == {"num_train": 2}
    assert report["contamination"] == {"files": ["b.json"], "num_questions": 1, "num_unreadable": 1, "num_rows": 0}
    first, second = report["files"]
    assert (first["num_rows"], first["num_kept"], first["num_merged"], first["num_dropped"]) == (3, 2, 0, 1)
    assert (first["is_damaged"], first["weight"], first["format"]) == (True, 1.0, "Alpaca")
    assert (second["num_merged"], second["is_damaged"], second["weight"]) == (1, False, 2.0)
    assert second["formats"] == {"Alpaca": 1, "prompt": 1}
    assert report["examples"]["exact_duplicate"][0]["file"] == "b.json"
    assert [stage["stage"] for stage in report["stages"] if stage["num_in"] > stage["num_out"]] == [
        "read",
        "duplicates",
    ]
