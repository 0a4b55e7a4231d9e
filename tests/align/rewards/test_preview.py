"""`dsr1-tune reward-test` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsr1_tune.config import Data
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.read.ground_truth import RESULTS
from dsr1_tune.data.record import Prompt


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
