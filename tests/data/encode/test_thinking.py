"""Thoughts are found, told from what is said, and taken out; also where a tag is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsr1_tune.config import Data
from dsr1_tune.data.encode.thinking import Reasoned, find, part, strip
from dsr1_tune.data.prepare import prepare


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("42", "42"),
        ("", ""),
        ("<think>hm</think>42", "42"),
        ("<think>\nhm\n</think>\n\n42\n", "42\n"),
        ("  <think>hm</think> 42", "  42"),
        ("<think></think>42", "42"),
        ("<think>a</think>1 and <think>b</think>2", "1 and 2"),
        ("hm, so\n</think>\n\n42", "42"),  # opened by the prompt
        ("<think>hm, and then it breaks off", ""),
        ("<think>only thoughts</think>", ""),
        ("Write <think> before you answer.", "Write <think> before you answer."),
        ("<think>a</think>Write <think> first.", "Write <think> first."),
        ("<think>a <think> b</think>42", "42"),
    ],
)
def test_thinking_thoughts_are_taken_out(text: str, said: str) -> None:
    assert strip(text) == said
    assert "".join(text[end:first] for (_, end), (first, _) in zip([(0, 0), *find(text)], [*find(text), (len(text), 0)], strict=True)) == said  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>hm</think>42", Reasoned("hm", "42")),
        ("\n<think>\nhm\n</think>\n\n42", Reasoned("\nhm\n", "\n\n42")),
        ("hm</think>42", Reasoned("hm", "42")),
        ("42", None),
        ("<think>hm", None),
        ("First 42. <think>hm</think>", None),
    ],
)
def test_thinking_part_splits_the_reasoning_from_the_answer(text: str, answer: Reasoned | None) -> None:
    assert part(text) == answer


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_a_thought_in_a_field_of_its_own_is_read(tmp_path: Path, field: str) -> None:
    answers = [
        {"content": "42", field: "hm\n"},
        {"content": "<think>own</think>42", field: "hm"},
        {"content": "42", field: None},
        {"content": "42", field: " "},
    ]
    rows = [
        {"messages": [{"role": "user", "content": f"Q{n}", field: "?"}, {"role": "assistant", **answer}]}
        for n, answer in enumerate(answers)
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = prepare(Data(files=(file,))).records
    assert [record.answer for record in records] == ["<think>\nhm\n</think>\n\n42", "<think>own</think>42", "42", "42"]
    assert [record.question for record in records] == ["Q0", "Q1", "Q2", "Q3"]
