"""From files to records: nothing is lost, the split is repeatable, and what is written can be read again."""

from __future__ import annotations

import json

import pytest

from dsr1_tune.config import Data
from dsr1_tune.data.prepare import examine, prepare, split, write_rejects
from dsr1_tune.data.prepare import write as write_folder
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Message, Place, Record
from dsr1_tune.errors import DataError

GOOD = [{"input": f"Q{number}", "output": f"A{number}"} for number in range(20)]
BAD = [{"input": "Q0", "output": "A0"}, {"input": "", "output": "A"}, {"input": "Q"}, 42]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def records(number):
    messages = (Message("user", "Q"), Message("assistant", "A"))
    return [Record(messages, Place("a", index + 1, index)) for index in range(number)]


def test_every_row_is_accounted_for(write):
    files = (write("a.json", GOOD + BAD), write("b.jsonl", [*GOOD[:3], {"input": "new", "output": "B"}]))
    prepared = prepare(Data(files=files))
    assert [file.num_rows for file in prepared.files] == [24, 4]
    assert (len(prepared.records), len(prepared.drops)) == (21, 7)
    with pytest.raises(AssertionError):
        Prepared(prepared.rows[1:], prepared.drops, prepared.files)


def test_a_later_step_can_drop_records(write):
    prepared = prepare(Data(files=(write("a.json", GOOD),)))
    long = prepared.records[3]
    after = prepared.with_drops([Drop("too_long", "2000 tokens").at(long.place, "encode", long.row)])
    assert long not in after.records
    assert (len(after.records), after.drops[-1].row) == (19, GOOD[3])


@pytest.mark.parametrize(
    ("number", "share", "held_out"),
    [(0, 0.1, 0), (1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (20, 0.1, 2), (20, 0.0, 0), (3, 0.99, 2)],
)
def test_split(number, share, held_out):
    all_ = records(number)
    train, eval_ = split(all_, share, seed=1)
    assert len(eval_) == held_out
    assert sorted((*train, *eval_), key=lambda record: record.place.index) == all_


def test_the_seed_decides_the_split():
    all_ = records(100)
    assert split(all_, 0.1, seed=1) == split(all_, 0.1, seed=1)
    assert split(all_, 0.1, seed=1) != split(all_, 0.1, seed=2)


def test_written_files(write, tmp_path):
    source = write("a.json", GOOD + BAD)
    prepared = prepare(Data(files=(source,)))
    train, held_out = split(prepared.records, 0.1, seed=1)
    folder = tmp_path / "run" / "data"
    write_folder(prepared, folder, held_out)
    assert [(r.question, r.answer) for r in read([folder / "train.jsonl"])] == [(r.question, r.answer) for r in train]
    assert len(lines_of(folder / "eval.jsonl")) == len(held_out) == 2
    assert lines_of(folder / "train.jsonl")[0]["source"]["file"] == str(source)
    rejected = lines_of(folder / "rejected.jsonl")
    assert [row["row"] for row in rejected] == BAD
    assert rejected[1] == {
        "file": str(source),
        "line": prepared.drops[1].place.line,
        "index": 21,
        "stage": "rules",
        "code": "empty_question",
        "path": "$.input",
        "detail": "the question is blank",
        "fix": "write the question, or remove the row",
        "row": {"input": "", "output": "A"},
    }
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (report["num_rows"], report["num_kept"], report["num_dropped"]) == (24, 20, 4)


def test_anything_that_was_read_can_be_rejected(tmp_path):
    rows = ["\ud800", 2**70, float("inf"), {"a": [[[[1]]]] * 2}, b"bytes", None]
    write_rejects([Drop("wrong_type", "x").at(Place("a", 1, 0), "read", row) for row in rows], tmp_path / "r.jsonl")
    assert [row["row"] for row in lines_of(tmp_path / "r.jsonl")][:2] == ["\ud800", 2**70]


def test_damaged_files_are_refused_unless_allowed(write):
    text = json.dumps(GOOD)
    file = write("a.json", text[: text.index("Q15")])
    with pytest.raises(DataError, match=r"a\.json:1: the file ends inside this row") as caught:
        prepare(Data(files=(file,)))
    assert "train on the 15 that could be read" in caught.value.hint
    assert len(prepare(Data(files=(file,), allow_damaged=True)).records) == 15


def test_rows_of_other_kinds_are_dropped_from_supervised_training(write):
    preference = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    file = write("a.json", [*GOOD, preference])
    assert len(examine(Data(files=(file,))).rows) == 21
    (drop,) = prepare(Data(files=(file,))).drops
    assert (drop.code, drop.row) == ("not_supervised", preference)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "Q", "chosen": "A", "rejected": "B"}], "no row has an answer to learn (1 preference rows)"),
        ([{"prompt": "Q"}, {"prompt": "R"}], "no row has an answer to learn (2 prompt rows)"),
        ([{"input": "", "output": "A"}, {"input": "Q", "output": ""}], "none of the 2 rows can be used"),
        ([1, 2, 3], "none of the 3 rows can be used (3 not_an_object); the first"),
    ],
)
def test_nothing_to_learn_from(write, rows, said):
    with pytest.raises(DataError) as caught:
        prepare(Data(files=(write("a.json", rows),)))
    assert said in caught.value.message
    assert caught.value.hint
