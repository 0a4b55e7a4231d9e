"""What a scan does to each row of a chunk: contamination, personal data, odd values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import Dedup, Privacy


def test_scan_drops_rows_that_hold_evaluation_questions(
    tmp_path: Path, rows: Any, write_lines: Any, run: Any, lines: Any
) -> None:
    good = rows(50)
    leaked = {"instruction": "A test: " + good[3]["output"], "output": "Yes."}
    file = write_lines(tmp_path / "rows.jsonl", [*good[:40], leaked])
    against = write_lines(tmp_path / "held.jsonl", [{"question": good[3]["output"], "answer": "B"}])
    folder, facts = run(tmp_path, file, dedup=Dedup(against=(against,)))
    assert facts["dropped"] == {"contaminated": 2}
    found = facts["contamination"]
    assert found == {"files": [str(against)], "num_questions": 1, "num_unreadable": 0, "num_rows": 2}
    assert {row["index"] for row in lines(folder / "rejected.jsonl")} == {3, 40}


def test_scan_keeps_odd_values_of_other_fields(tmp_path: Path, rows: Any, run: Any, lines: Any) -> None:
    good = rows(3)
    text = "".join(json.dumps({**row, "id": 1}) + "\n" for row in good)
    text = text.replace('"id": 1', '"id": 123456789012345678901234567890', 1)
    odd = [text, json.dumps({**good[0], "note": "\ud800"}), json.dumps({**good[1], "note": float("nan")})]
    file = tmp_path / "rows.jsonl"
    odd.append(json.dumps({"half \ud800": 1}))
    file.write_text("\n".join(odd), encoding="utf-8")
    folder, facts = run(tmp_path, file)
    assert facts["num_rows"] == 6 and facts["num_merged"] == 2 and facts["dropped"]["unknown_fields"] == 1
    assert [row["row"].get("note") for row in lines(folder / "rejected.jsonl")] == ["\ud800", None, None]


@pytest.mark.parametrize("action", ["count", "redact", "drop"])
def test_scan_counts_redacts_or_drops_personal_data(
    tmp_path: Path, action: Any, rows: Any, write_lines: Any, run: Any, lines: Any
) -> None:
    mine = {
        "instruction": "Who am I? Mail me at jo.doe@clinic.org, or jo.doe@clinic.org.",
        "output": "Jo, 13812345678?",
    }
    bad = {"instruction": "Mail max@clinic.org what?", "output": " "}
    folder, facts = run(
        tmp_path, write_lines(tmp_path / "rows.jsonl", [*rows(10), mine, bad]), privacy=Privacy(action=action)
    )
    found = facts["personal_data"]
    assert found["action"] == action
    assert found["kinds"] == {
        "email": {"num_found": 2, "num_rows": 1},
        "cn_mobile": {"num_found": 1, "num_rows": 1},
    }
    kept = (folder / "train.jsonl").read_text() + (folder / "eval.jsonl").read_text()
    page = (folder / "report.html").read_text() + (folder / "report.json").read_text()
    assert ("jo.doe" in kept) is (action == "count")
    assert ("[EMAIL_1], or [EMAIL_1]" in kept) is (action == "redact")
    assert ("jo.doe" in page) is False and ("max@clinic" in page) is (action == "count")
    assert facts["mended"] == ({"personal_data": 1} if action == "redact" else {})
    # What was dropped is whole.
    codes = {line["code"]: line["row"] for line in lines(folder / "rejected.jsonl")}
    assert codes == {"empty_answer": bad} | ({"personal_data": mine} if action == "drop" else {})


def test_scan_hides_a_part_of_a_number_in_an_excerpt(tmp_path: Path, rows: Any, run: Any) -> None:
    good = "".join(json.dumps(row) + "\n" for row in rows(5))
    (tmp_path / "a.jsonl").write_text(good + '{"instruction": "110101199003071233", "output": "x" "y"}\n' + good)
    folder, _ = run(tmp_path, tmp_path / "a.jsonl", privacy=Privacy(action="redact"))
    assert "3071233" not in (folder / "report.json").read_text() + (folder / "report.html").read_text()
