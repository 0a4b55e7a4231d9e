"""Cells that say nan, None, NULL or N/A are blanks, and words that are meant are not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dsr1_tune.config import Data
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.read.missing import MARKERS, Missing
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Feedback, Preference, Prompt, Record

PROSE = "It is the city where the government sits, and by far the largest one of the country."


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., list]:
    """table(columns, *rows): what is read from a CSV file, or with tabs=True from a TSV file, of these rows."""

    def table_(columns: str, *rows: tuple[str, ...], tabs: bool = False, mapping: dict | None = None) -> list:
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if tabs else ",")
        writer.writerows([columns.split(), *rows])
        file = tmp_path / ("a.tsv" if tabs else "a.csv")
        file.write_text(text.getvalue(), encoding="utf-8")
        return list(read([file], mapping))

    return table_


def said(record: Record) -> list[str]:
    return [message.content for message in record.messages]


def codes(row: Record | Preference | Feedback | Prompt) -> list[str]:
    return [note.code for note in row.notes]


def test_markers_are_those_of_pandas() -> None:
    # pandas._libs.parsers.STR_NA_VALUES of pandas 2.2, less the empty text; and how a missing time is written.
    known = ["-1.#IND", "1.#QNAN", "1.#IND", "-1.#QNAN", "#N/A N/A", "#N/A", "N/A", "n/a", "NA", "<NA>", "#NA"]
    known += ["NULL", "null", "NaN", "-NaN", "nan", "-nan", "None"]
    assert {*known, "NaT"} == MARKERS


@pytest.mark.parametrize("marker", sorted(MARKERS))
@pytest.mark.parametrize("tabs", [False, True])
def test_a_context_that_says_so_is_no_part_of_the_question(table: Callable[..., list], marker: str, tabs: bool) -> None:
    first, second = table("instruction input output", ("Q", marker, "A"), ("R", "context", "B"), tabs=tabs)
    assert said(first) == ["Q", "A"] and said(second) == ["R\ncontext", "B"]
    assert [(note.code, note.path, note.place.line) for note in first.notes] == [("blank_marker", "$.input", 2)]
    assert repr(marker) in first.notes[0].detail and second.notes == ()


@pytest.mark.parametrize("marker", sorted(MARKERS))
def test_an_answer_or_question_that_says_so_is_null(table: Callable[..., list], marker: str) -> None:
    rows = ("Capital?", marker), ("Where is it?", PROSE), (marker, PROSE), ("Which?", PROSE)
    bad, good, worse, fine = table("question answer", *rows)
    for drop, path in ((bad, "$.answer"), (worse, "$.question")):
        assert (drop.code, drop.path) == ("null_value", path)
        assert drop.detail == f"the cell says {marker!r}, which is how tables write that nothing is there"
        assert marker in drop.row.values(), "rejected rows are shown as they were read"
    assert (bad.place.line, worse.place.line) == (2, 4)
    assert said(good) == ["Where is it?", PROSE] and said(fine) == ["Which?", PROSE]


def test_only_whole_cells_count(table: Callable[..., list]) -> None:
    cells = ("None of them", "nan bread", "NA, Namibia", "null and void", "nano", "NONE", "none", "Nan")
    for cell in cells:
        (row,) = table("instruction input output", (cell, cell, cell))
        assert said(row) == [f"{cell}\n{cell}", cell] and row.notes == ()


def test_a_short_answer_is_meant_where_its_question_asks_for_a_value(table: Callable[..., list]) -> None:
    rows = (
        ("Which value does an uninitialised variable have?", "None"),
        ("What is the country code of Namibia?", "NA"),
        ("What does 0/0 return in JavaScript?", "NaN"),
        ("C 语言里空指针的值是什么？", "NULL"),
        ("Which river is the longest?", "None"),
        ("Which value does it have?", "nan"),
        ("What does print(float('nan')) show?", "nan"),
        ("Capital of France?", "Paris"),
    )
    found = table("question answer", *rows)
    kept = [number for number, row in enumerate(found) if isinstance(row, Record)]
    assert kept == [0, 1, 2, 3, 6, 7]
    assert [found[number].answer for number in kept] == ["None", "NA", "NaN", "NULL", "nan", "Paris"]
    assert [codes(found[number]) for number in kept] == [["marker_kept"]] * 5 + [[]]
    assert [(found[number].code, found[number].path) for number in (4, 5)] == [("null_value", "$.answer")] * 2


def test_among_long_answers_such_a_word_is_no_answer(table: Callable[..., list]) -> None:
    asked = "Write a Python function that returns the largest value."
    rows = [(f"{asked} ({number})", PROSE) for number in range(9)]
    assert [isinstance(row, Drop) for row in table("question answer", *rows, (asked, "None"))] == [False] * 9 + [True]
    (named,) = table("question answer", *rows, ("When does it return None?", "None"))[-1:]
    assert named.answer == "None" and codes(named) == ["marker_kept"]


def test_a_rare_word_among_short_contexts_is_meant(table: Callable[..., list]) -> None:
    lands = ["DE", "FR", "IT", "ES", "PT", "GB", "SE", "NO", "DK", "PL", "CZ", "NA"]
    found = table("instruction input output", *((f"Which country is it? ({land})", land, PROSE) for land in lands))
    assert said(found[-1])[0].endswith("\nNA") and codes(found[-1]) == ["marker_kept"]
    # Where many cells say so, or most are blank or long, it is how blanks are written.
    for others in (["NA"] * 4, [""] * 12, [PROSE] * 20):
        found = table("instruction input output", *((f"Which? ({n})", c, PROSE) for n, c in enumerate(others + lands)))
        assert said(found[-1])[0] == f"Which? ({len(others) + 11})" and codes(found[-1]) == ["blank_marker"]
    found = table("instruction input output", *((f"Which? ({land})", land, PROSE) for land in [*lands[:-1], "nan"]))
    assert said(found[-1])[0] == "Which? (nan)"


def test_other_columns_of_tables(table: Callable[..., list]) -> None:
    (row,) = table("system question history answer", ("nan", "Q", "None", "A"))
    assert said(row) == ["Q", "A"] and codes(row) == ["blank_marker"] * 2
    bad, good = table("prompt chosen rejected", ("P", PROSE, "nan"), ("Q", PROSE, "No."))
    assert (bad.code, bad.path) == ("null_value", "$.rejected") and isinstance(good, Preference)
    good, _, bad = table("prompt completion kto_tag", ("P", "A", "true"), ("R", "A", "false"), ("Q", "B", "nan"))
    assert isinstance(good, Feedback) and (bad.code, bad.path) == ("null_value", "$.kto_tag")
    first, second, third = table(
        "prompt expected", ("Add 1 and 2", "3"), ("Add 2 and 2", "nan"), ("What value has x = None?", "None")
    )
    assert [row.answer for row in (first, second, third)] == ["3", None, "None"] and isinstance(first, Prompt)
    (row,) = table("title ask reply", ("Q", "nan", "A"), mapping={"question": "title+ask", "answer": "reply"})
    assert said(row) == ["Q", "A"]
    # A column that nothing is read from is not remarked on.
    (row,) = table("question answer id", ("Q", "A", "nan"))
    assert isinstance(row, Record) and row.notes == ()


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_elsewhere_only_what_a_row_can_do_without_is_blank(tmp_path: Path, ending: str) -> None:
    rows = [
        {"instruction": "Q", "input": "nan", "output": PROSE, "system": "None"},
        {"instruction": "R", "input": "The context of R", "output": "None", "system": "Be brief."},
        {"instruction": "nan", "input": "<NA>", "output": "nan", "system": "nan"},
    ]
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    found = list(read([file]))
    assert [said(row) for row in found] == [["Q", PROSE], ["Be brief.", "R\nThe context of R", "None"], ["nan", "nan"]]
    assert [codes(row) for row in found] == [["blank_marker"] * 2, [], ["blank_marker"] * 2]


def test_a_rare_word_among_short_contexts_of_json_is_meant(tmp_path: Path) -> None:
    lands = ["DE", "FR", "IT", "ES", "PT", "GB", "SE", "NO", "DK", "PL", "CZ", "NA"]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"instruction": "Which?", "input": one, "output": "A"}) for one in lands))
    *_, last = read([file])
    assert said(last) == ["Which?\nNA", "A"] and codes(last) == ["marker_kept"]


def test_rows_without_markers_are_not_copied_and_odd_rows_do_no_harm() -> None:
    row = {"a": "x"}
    notes: list[Drop] = []
    assert Missing(is_table=True).blanked(row, notes) is row
    assert Missing(optional=("a", "b")).blanked({"a": ["nan"]}, notes) == {"a": ["nan"]} and notes == []
    assert Missing.learn([42, None], None, is_table=False) == Missing()


def test_rewards_compare_with_no_blank(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("question,answer,expected\nAdd 1 and 2,It makes 3.,nan\nAdd 2 and 2,It makes 4.,4\n")
    assert [row.answer for row in prepare(Data(files=(file,)), Prompt).rows] == ["It makes 3.", "4"]
