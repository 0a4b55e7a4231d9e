"""Which rows `data clean` takes for copies, and what stays together when rows are held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsr1_tune.config import Data, Dedup


def test_copies_stay_together_in_a_split_though_none_is_merged(
    tmp_path: Path, rows: Any, write_lines: Any, run: Any, lines: Any
) -> None:
    good = rows(200)
    twins = [{"instruction": r["instruction"], "output": r["output"] + " Vidor."} for r in good[1::2]]
    file = write_lines(tmp_path / "rows.jsonl", good + twins + good[:50])
    off = Dedup(exact=False, near=False, contradictions=False)
    folder, facts = run(tmp_path, file, rules="none", dedup=off, eval_share=0.2)
    assert facts["num_kept"] == 350 and facts["num_merged"] == 0
    train, held_out = (
        {row["messages"][0]["content"] for row in lines(folder / f"{n}.jsonl")} for n in ("train", "eval")
    )
    assert not train & held_out
    assert 60 <= facts["split"]["num_eval"] <= 80


def test_copies_are_merged_with_one_that_is_drawn(tmp_path: Path, rows: Any, write_lines: Any, run: Any) -> None:
    a, b = write_lines(tmp_path / "a.jsonl", rows(200, 1)), write_lines(tmp_path / "b.jsonl", rows(200, 1))
    _, facts = run(tmp_path, data=Data(files=(f"{a}:0.1", str(b)), eval_share=0.0))
    assert facts["split"]["num_train"] == 200 and facts["num_merged"] == 200


def test_answers_to_one_prompt_stay_on_one_side(
    tmp_path: Path, rows: Any, write_lines: Any, run: Any, lines: Any
) -> None:
    some = [
        {"prompt": row["instruction"], "chosen": other["output"], "rejected": "No."}
        for number, row in enumerate(rows(40, 1))
        for other in rows(3, seed=len(row["instruction"]) * 7 + number)
    ]
    folder, facts = run(tmp_path, write_lines(tmp_path / "p.jsonl", some), eval_share=0.2, rules="none")
    assert facts["num_kept"] == 120
    train, held_out = ({json.dumps(r["messages"]) for r in lines(folder / f"{n}.jsonl")} for n in ("train", "eval"))
    assert held_out and not train & held_out


def test_other_tools_make_another_conversation(tmp_path: Path, write_lines: Any, run: Any) -> None:
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "I will look it up for you now."}]
    some = [{"conversations": turns, "tools": json.dumps([{"name": name}])} for name in ("weather", "stock", "weather")]
    _, facts = run(tmp_path, write_lines(tmp_path / "t.jsonl", some), eval_share=0.0)
    assert facts["num_kept"] == 2 and facts["dropped"] == {"exact_duplicate": 1}


def test_other_numbers_in_the_answer_are_another_answer(tmp_path: Path, write_lines: Any, run: Any) -> None:
    answer = "Adults take {} mg with a glass of water after the evening meal, never more than twice on the same day."
    some = [{"instruction": "How much of it may an adult take?", "output": answer.format(dose)} for dose in (500, 5000)]
    _, facts = run(tmp_path, write_lines(tmp_path / "d.jsonl", some), eval_share=0.0)
    assert facts["num_kept"] == 2


def test_an_exact_copy_counts_as_one_whatever_becomes_of_its_original(
    tmp_path: Path, rows: Any, write_lines: Any, run: Any, lines: Any
) -> None:
    good = rows(20)
    longer = {**good[3], "output": good[3]["output"] + " Yes."}
    contradicted = [{"instruction": "Which river is longer?", "output": answer} for answer in ("one", "one", "two")]
    file = write_lines(tmp_path / "rows.jsonl", [*good, good[3], longer, *contradicted])
    folder, report = run(tmp_path, file, eval_share=0.0)
    found = {row["index"]: row["code"] for row in lines(folder / "rejected.jsonl")}
    assert found == {
        3: "near_duplicate",
        20: "exact_duplicate",
        22: "contradictory_answer",
        23: "exact_duplicate",
        24: "contradictory_answer",
    }
    assert (report["num_merged"], report["num_dropped"]) == (3, 2)
    details = {row["index"]: row["detail"] for row in lines(folder / "rejected.jsonl")}
    assert details[20] == "the same as line 4 (row 3)" and details[23] == "the same as line 23 (row 22)"
    (group,) = lines(folder / "duplicates.jsonl")
    assert group["kept"]["line"] == 22 and {one["line"]: one["kind"] for one in group["merged"]} == {
        4: "near",
        21: "near",
    }
