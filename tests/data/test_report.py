"""One schema of report.json, whoever writes it."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest

from dsr1_tune.data.record import Drop, Place
from dsr1_tune.data.report import MAX_EXAMPLES, RowCounts, build_report, ranked, reject

FILE = {"file": "a.json", "layout": "JSON array", "encoding": "utf-8", "weight": 1.0}


def counts(num_rows: int, **dropped: int) -> RowCounts:
    return RowCounts(num_rows, Counter(dropped), Counter(duplicates=sum(dropped.values())))


def test_report_separates_merged_rows_from_lost_ones() -> None:
    report = build_report([(FILE, counts(10, exact_duplicate=2, near_duplicate=1, contradictory_label=4))])
    assert [report[f"num_{name}"] for name in ("rows", "kept", "merged", "dropped")] == [10, 3, 3, 4]
    assert report["utilisation"] == 0.3
    found = report["duplicates"]
    assert [found[f"num_{name}"] for name in ("exact", "near", "contradictory", "opposed")] == [2, 1, 0, 4]


def test_report_names_every_section_and_no_other() -> None:
    bare = build_report([(FILE, counts(1))])
    assert bare["judge"] is None and bare["split"] is None and bare["personal_data"] is None
    full = build_report([(FILE, counts(1))], seed=7, groups={"num_groups": 0})
    assert list(full) == list(bare) and full["seed"] == 7 and full["duplicates"]["num_groups"] == 0
    with pytest.raises(AssertionError):
        build_report([(FILE, counts(1))], sed=7)


def test_report_funnel_takes_each_stage_from_what_the_last_one_left() -> None:
    of_file = RowCounts(10, Counter(a=3), Counter(read=1, duplicates=1, encode=1))
    stages = build_report([(FILE, of_file)])["stages"]
    assert [stage["num_out"] for stage in stages] == [9, 9, 9, 9, 8, 8, 8, 7]
    assert stages[-1] == {"stage": "encode", "num_in": 8, "num_out": 7}


def test_row_counts_keep_the_first_examples_of_each_code() -> None:
    some = RowCounts()
    for line in range(5):
        some.add_example(
            Drop("too_long", f"{line} 13812345678").at(Place("a", line, line), "x", None), hide=lambda t: t[:1]
        )
    assert [example["detail"] for example in some.examples["too_long"]] == ["0", "1", "2"]
    other = RowCounts(3, Counter(too_long=1))
    other.add_example(Drop("too_long", "half \ud800").at(Place("b", 1, 0), "x", None), "Q" * 400)
    other.add(some)
    assert len(other.examples["too_long"]) == MAX_EXAMPLES
    assert other.examples["too_long"][0]["detail"] == "half ?" and len(other.examples["too_long"][0]["question"]) == 300


def test_ranked_puts_the_largest_first_and_equal_ones_by_name() -> None:
    assert list(ranked(Counter(b=1, a=1, c=5)).items()) == [("c", 5), ("a", 1), ("b", 1)]


def test_reject_holds_the_whole_row() -> None:
    drop = Drop("too_long", "long", "cut it").at(Place("a", 3, 2), "encode", None)
    line = orjson.loads(reject(drop, b'{"input": "Q"}'))
    assert line["row"] == {"input": "Q"} and (line["line"], line["code"], line["fix"]) == (3, "too_long", "cut it")
