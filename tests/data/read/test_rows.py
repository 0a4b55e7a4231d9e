"""Raw rows become records, prompts and the like, whatever formats a file mixes."""

from __future__ import annotations

import pytest

from dsr1_tune.data.read import rows
from dsr1_tune.data.read.json_rows import Raw
from dsr1_tune.data.read.read import open_files, read
from dsr1_tune.data.read.rows import Interpreter, Learned
from dsr1_tune.data.record import Drop, Place, Record

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def test_interpreter_takes_a_row_without_answer_for_a_prompt_only_among_prompts(write):
    whole = {"question": "Q", "answer": "A"}
    *_, drop = read([write("a.json", [whole, whole, {"question": "Q"}])])
    assert (drop.code, drop.path, drop.fix) == ("missing_field", "$.answer", "add 'answer'")
    *_, record = read([write("b.json", [{"question": "Q"}, {"question": "Q"}, whole])])
    assert isinstance(record, Record)


def test_interpreter_reads_and_counts_mixed_formats(write):
    mixed = [{"input": "Q", "output": "A"}] * 2 + [
        {"messages": [USER, ASSISTANT]},
        {"instruction": "Q", "output": "A"},
        {"conversation": [{"human": "Q", "assistant": "A"}]},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"input": "Q", "output": None},
        {"foo": 1},
        42,
    ]
    (reading,) = open_files([write("a.json", mixed)])
    assert (reading.format, reading.formats) == ("question-answer", {})
    outcomes = list(reading.rows)
    assert all(not isinstance(row, Drop) for row in outcomes[:6])
    # Of three rows no format is known, or it is known and the row is bad.
    assert reading.formats == {"question-answer": 3, "messages": 1, "Alpaca": 1, "pairs": 1, "preference": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "I", "input": "X", "output": "A"},
        {"instruction": "I", "input": " ", "output": "A", "system": "", "history": [], "tools": ""},
        {"instruction": "I", "input": "X", "output": "A", "system": None, "history": None, "tools": None},
        {"instruction": "", "input": "", "output": ""},
        {"instruction": "I", "output": "A", "system": []},
        {"instruction": "I", "output": "A", "tools": False},
        {"instruction": "I", "output": "A", "tools": "[]"},
        {"instruction": "I", "output": "A", "other": 1.5},
        {"instruction": "I", "output": "A", "other": float("nan")},
        {"instruction": "I", "output": "\0"},
        {"instruction": "\ud800", "output": "A"},
        {"instruction": " " * 1_000_001, "input": "X", "output": "A"},
        {"title": "T", "ask": "无", "answer": "A"},
        {"instruction": "<user>: Q <bot>: R <user>: S", "output": "A"},
    ],
    ids=lambda row: str(row)[:80],
)
def test_interpreter_reads_quickly_what_it_reads_with_care(row, monkeypatch):
    def outcomes():
        interpreter = Interpreter(Learned(prompts=False))
        some = [interpreter(Raw(row, Place("a", 1, 0))) for _ in range(2)]
        return [repr((type(o), o, [m.path for m in getattr(o, "messages", ())])) for o in some], interpreter.formats

    expected = outcomes()
    monkeypatch.setattr(rows, "_plain_record", lambda *_: None)
    assert outcomes() == expected


def test_interpreter_takes_as_many_kinds_of_rows_as_there_are(write, monkeypatch):
    monkeypatch.setattr(rows, "MAX_PLANS", 3)
    many = [{"input": "Q", "output": "A", f"column {number}": 1} for number in range(20)]
    (reading,) = open_files([write("a.json", many)])
    assert all(isinstance(row, Record) for row in reading.rows)
    assert reading.formats == {"question-answer": 20}
