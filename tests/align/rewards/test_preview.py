"""`dsr1-tune reward-test` as a user types it: what it refuses, and its tables: answers, the summary, and pairs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from dsr1_tune.align.rewards import preview
from dsr1_tune.align.rewards.component import Answered
from dsr1_tune.align.rewards.layered import LayeredReward
from dsr1_tune.config import Data
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.read.ground_truth import RESULTS
from dsr1_tune.data.record import Drop, Place, Prompt


def test_preview_compares_with_what_training_compares_with(typed: Any, lines: Callable[..., str]) -> None:
    Path("numeric.yaml").write_text("layers: [{name: task, components: [numeric]}]")
    rows: list[dict[str, Any]] = [
        {"prompt": f"{number}?", "answer": "6 * 7, so 42", name: {"ground_truth": 42} if "model" in name else 42}
        for number, name in enumerate(RESULTS)
    ]
    rows += [{"prompt": "a?", "answer": "42", "expected": " ", "num_tokens": 3.0}]
    code, _, err = typed("numeric.yaml", lines("answers.jsonl", *rows), "--out", "a.jsonl")
    assert code == 0, err
    found = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [(one["expected"], one["total"]) for one in found] == [("42", 1)] * len(RESULTS) + [(None, 0)]
    trained = prepare(Data(files=(Path("answers.jsonl"),)), Prompt).rows
    assert [row.answer for row in trained if isinstance(row, Prompt)] == ["42"] * (len(RESULTS) + 1)

    named = lines("named.jsonl", {"problem": "a?", "solution": "so 42", "answer": 42.0, "expected": [1]})
    mapping = ["--map", "question=problem,answer=solution,ground_truth=answer"]
    code, _, err = typed("numeric.yaml", named, *mapping, "--out", "b.jsonl")
    assert code == 0 and json.loads(Path("b.jsonl").read_text())["total"] == 1, err
    code, _, err = typed("numeric.yaml", named, "--map", "answer=solution,ground_truth=nothing")
    assert code == 2 and "--map ground_truth=nothing: no row has such a field" in err


def test_preview_of_bad_input_exits_2_and_says_what_to_do(typed: Any, lines: Callable[..., str]) -> None:
    answers = lines("answers.jsonl", {"question": "a?", "answer": "good"})
    lines("prompts.jsonl", {"prompt": "a?"}, {"prompt": "b?"})
    Path("numeric.yaml").write_text("layers: [{name: task, components: [numeric]}]")
    Path("exits.py").write_text("import sys\nsys.exit(0)\n")
    Path("exits.yaml").write_text("layers: [{name: task, components: [{type: function, call: 'exits.py:good'}]}]")
    Path("wrong.yaml").write_text("layers: [{name: task, components: [numbric]}]")
    for arguments, said in (
        (["nowhere.yaml", answers], "nowhere.yaml: cannot be read"),
        (
            ["wrong.yaml", answers],
            "layers[0].components[0].type: there is no component 'numbric'; did you mean numeric?",
        ),
        (["rewards.yaml", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["rewards.yaml", "prompts.jsonl"], "holds no answers to test"),
        (["numeric.yaml", answers], "no row has an expected answer, and task/numeric of numeric.yaml compares"),
        (["rewards.yaml", answers, "--out", answers], f"{answers}: is already there"),
        (["rewards.yaml", answers, "--out", "."], ".: is already there"),
        (["rewards.yaml", answers, "--out", f"{answers}/x"], "answers.jsonl is a file, not a folder"),
        (["exits.yaml", answers], "exits.py cannot be imported: SystemExit: 0"),
    ):
        code, out, err = typed(*arguments)
        assert (code, out) == (2, "")
        assert said in err and "hint: " in err and "Traceback" not in err
    assert json.loads(Path(answers).read_text())["answer"] == "good"


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_preview_prints_a_table_for_each_answer_a_summary_and_a_file(typed: Any, lines: Callable[..., str]) -> None:
    rows = [
        {"question": "a?", "answer": "good", "expected": 3},
        {"question": "b?", "answer": "raise"},
        {"question": "c?", "answer": "bad and twenty-five long"},
        *[{"question": "d?", "answer": "good"}] * 17,
        {"question": "e?"},
    ]
    code, out, err = typed("rewards.yaml", lines("answers.jsonl", *rows), "--out", "out/scores.jsonl")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "answers.jsonl:1: 3.000" in out and "answers.jsonl:10: 3.000" in out and "answers.jsonl:11" not in out
    assert "failed: task/function: ValueError: cannot" in out
    assert "and 10 more answers" in out and "20 answers" in out
    assert "not tested: answers.jsonl:21" in out
    summary = {
        line.split()[0]: line.split()[1:] for line in out[out.index("20 answers") :].splitlines() if line.split()
    }
    assert summary["function"] == ["0.900", "0.000", "1.000", "10%", "1"]
    assert summary["total"][:3] == [f"{(18 * 3 + 1 + (1 + 7 / 11) / 2) / 20:.3f}", "0.818", "3.000"]
    found = [json.loads(line) for line in Path("out/scores.jsonl").read_text().splitlines()]
    assert len(found) == 20 and found[0]["expected"] == "3" and found[0]["total"] == 3
    assert found[1]["errors"] == ["task/function: ValueError: cannot"] and found[1]["components"]["task/function"] == 0
    assert found[2]["gates"] == {"form": 1.0, "task": 1.0}


def test_preview_of_pairs_says_how_often_the_chosen_answer_gets_more(typed: Any, lines: Callable[..., str]) -> None:
    pairs = [
        {"prompt": "a?", "chosen": "good", "rejected": "bad"},
        {"prompt": "b?", "chosen": "bad", "rejected": "good"},
        {"prompt": "c?", "chosen": "good", "rejected": "good too"},
        {"prompt": "d?", "chosen": "good", "rejected": ""},
    ]
    code, out, err = typed("rewards.yaml", lines("pairs.jsonl", *pairs), "--show", "2")
    assert code == 0, err
    assert "pairs.jsonl:1, chosen: 3.000" in out and "pairs.jsonl:1, rejected: 1.000" in out
    assert "pairs.jsonl:2, chosen" not in out
    assert " ".join(out.split()).endswith(
        "The chosen answer gets more in 2 of 4 pairs (50%), the same in 1; on average +0.625."
    )


def test_preview_table_shows_layers_gates_failures_and_rows_that_are_none(
    tmp_path: Path, answered: Callable[..., Answered]
) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text("layers: [{name: form, components: [not_empty]}, {name: task, weight: 2, components: [numeric]}]")
    reward = LayeredReward.read(file)
    answers = [answered("so 4", "4"), answered("...", "4"), answered("5", "many")]
    tested = [
        preview.Tested(Place("a.jsonl", at + 1, 0), one, reward.score([one])[0]) for at, one in enumerate(answers)
    ]
    drop = Drop("no_answer", "has a prompt only", "add a column answer").at(Place("a.jsonl", 9, 0), "read", {})
    console = Console(file=io.StringIO(), width=80)
    preview.show(preview.Outcome(reward, tuple(tested), (drop,)), console, num_shown=2)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a.jsonl:1: 3.000" in printed and "a.jsonl:2: 0.000" in printed and "a.jsonl:3" not in printed
    assert "and 1 more answers" in printed and "not tested: a.jsonl:9: has a prompt only" in printed
    summary = {
        line.split()[0]: line.split()[1:] for line in printed[printed.index("3 answers") :].splitlines() if line.split()
    }
    assert summary["not_empty"] == ["0.667", "0.000", "1.000", "33%"]
    assert summary["numeric"] == ["0.333", "0.000", "1.000", "67%", "1"]
    assert summary["total"] == ["1.333", "0.000", "3.000", "33%"]
