"""The report is whole, fits the terminal, and shows data as text."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from dsr1_tune.config import CleanRun, Data, Judge
from dsr1_tune.data.clean import run
from dsr1_tune.data.inspect import tables as report_module
from dsr1_tune.data.inspect.tables import show, show_cleaned
from dsr1_tune.data.prepare import examine

ROWS = [
    {"instruction": "感冒了怎么办？", "output": "多休息，多喝水；如果高烧不退，请及时就医。"},
    {"instruction": "感冒了怎么办？", "output": " "},
    {"instruction": "感冒了怎么办？", "ouput": "多喝水"},
    {"messages": [{"role": "医生" * 30, "content": "你好"}]},
    {"非常长的字段名称" * 5: 1, "out[bold]put\x1b[31m": 2},
]


def shown(prepared, width):
    console = Console(file=io.StringIO(), width=width)
    show(prepared.report(), console, prepared.drops)
    return console.file.getvalue()


@pytest.fixture
def prepared(write):
    return examine(Data(files=(write("医学.json", ROWS), write("b.json", [{"input": "Q", "output": "A"}]))))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_terminal(prepared, width):
    text = shown(prepared, width)
    assert max(cell_len(line) for line in text.split("\n")) <= width
    for drop in prepared.drops:
        assert drop.code in text


def test_data_is_shown_as_text(prepared):
    text = shown(prepared, 120)
    assert "\x1b" not in text
    assert "out[bold]put\\x1b[31m" in text


def test_counts(prepared):
    summary = prepared.report()
    assert (summary["num_rows"], summary["num_kept"], summary["num_dropped"]) == (6, 2, 4)
    assert summary["kinds"] == {"record": 2}
    assert summary["dropped"] == {"empty_answer": 1, "missing_field": 1, "unknown_role": 1, "unknown_fields": 1}
    assert [(f["num_rows"], f["num_kept"], f["num_dropped"], f["format"]) for f in summary["files"]] == [
        (5, 1, 4, "Alpaca"),
        (1, 1, 0, "question-answer"),
    ]
    assert [(drop.place.index, drop.path) for drop in prepared.drops][:2] == [(1, "$.output"), (2, "$.output")]


def test_a_flood_is_cut_and_counted(prepared, monkeypatch):
    monkeypatch.setattr(report_module, "MAX_ROWS_SHOWN", 1)
    assert "... and 3 more bad rows" in shown(prepared, 80)


def test_the_judge_says_what_it_could_not_do(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"instruction": "What is aspirin for?", "output": "It lowers pain and fever."}\n' * 2)
    facts = run.run(
        CleanRun(data=Data(files=(file,)), judge=Judge(ask=True, minutes=0), out=tmp_path / "o", workers=1)
    ).report
    console = Console(width=200, file=io.StringIO())
    show_cleaned(facts, console)
    assert "The judge dropped 0 rows" in console.file.getvalue()
