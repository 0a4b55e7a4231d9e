"""Every code: what brings it about, and the exact place that is named."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import dsr1_tune.data
from dsr1_tune.config import Data
from dsr1_tune.data.prepare import examine
from dsr1_tune.data.rules.codes import MEANINGS

GOOD = {"input": "Q", "output": "A"}
USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def turns(*messages):
    return {"messages": list(messages)}


# code, JSON path, row
ROWS = [
    ("not_an_object", "$", 42),
    ("not_an_object", "$", [1, 2]),
    ("not_an_object", "$", "Q"),
    ("not_an_object", "$", None),
    ("unknown_fields", "$", {"foo": 1, "bar": 2}),
    ("unknown_fields", "$", {}),
    ("missing_field", "$.output", {"input": "Q"}),
    ("missing_field", "$.output", {"input": "Q", "ouput": "A"}),
    ("missing_field", "$.input", {"output": "A", "id": 1}),
    ("missing_field", "$", {"title": "Q", "text": "A"}),
    ("missing_field", "$.rejected", {"chosen": "A"}),
    ("missing_field", "$.prompt", {"chosen": "A", "rejected": "B"}),
    ("missing_field", "$.messages[0]", turns({"content": "Q"}, ASSISTANT)),
    ("missing_field", "$.messages[1]", turns(USER, {"role": "assistant"})),
    ("ambiguous_fields", "$", {"question": "Q", "answer": "A", "response": "B"}),
    ("null_value", "$.output", {"input": "Q", "output": None}),
    ("null_value", "$.output", {"input": "Q", "output": float("nan")}),
    ("null_value", "$.messages[1].content", turns(USER, {"role": "assistant", "content": None})),
    ("null_value", "$.messages", {"messages": None}),
    ("wrong_type", "$.output", {"input": "Q", "output": {"text": "A"}}),
    ("wrong_type", "$.input", {"input": ["a", "b"], "output": "A"}),
    ("wrong_type", "$.output", {"input": "Q", "output": 1e300}),
    ("wrong_type", "$.output", {"input": "Q", "output": float("inf")}),
    ("wrong_type", "$.messages", {"messages": "hello"}),
    ("wrong_type", "$.messages[0]", {"messages": ["hello"]}),
    (
        "wrong_type",
        "$.messages[0].content[1]",
        turns({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}),
    ),
    ("wrong_type", "$.history[0]", {"instruction": "Q", "output": "A", "history": [["q"]]}),
    ("wrong_type", "$.history", {"instruction": "Q", "output": "A", "history": "before"}),
    ("wrong_type", "$['the answer']", {"input": "Q", "the answer": {}}),
    ("wrong_type", "$.conversation", {"conversation": "Human: Q Human: R Assistant: A"}),
    ("null_value", "$.conversation[0].human", {"conversation": [{"human": None, "assistant": "A"}]}),
    (
        "bad_encoding",
        "$.history[1].bot",
        {"input": "Q", "output": "A", "history": [["q", "a"], {"user": "q", "bot": "\0"}]},
    ),
    ("turn_order", "$.history[0].content", {"input": "Q", "output": "A", "history": [ASSISTANT]}),
    ("unknown_role", "$.messages[0].role", turns({"role": "doctor", "content": "Q"}, ASSISTANT)),
    ("unknown_role", "$.messages[0].role", turns({"role": None, "content": "Q"}, ASSISTANT)),
    (
        "unknown_role",
        "$.conversations[1].from",
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "x", "value": "A"}]},
    ),
    ("turn_order", "$.messages[0].content", turns(ASSISTANT, USER, ASSISTANT)),
    ("turn_order", "$.messages[1].content", turns(USER, USER, ASSISTANT)),
    ("turn_order", "$.messages[2].content", turns(USER, ASSISTANT, ASSISTANT)),
    ("turn_order", "$.messages[2].content", turns(USER, {"role": "system", "content": "S"}, USER, ASSISTANT)),
    (
        "bad_tool_call",
        "$.messages[1].tool_calls[0].function.arguments",
        turns(USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
    ),
    ("bad_tool_call", "$.messages[1].function_call", turns(USER, {**ASSISTANT, "function_call": {"arguments": "{}"}})),
    ("bad_tool_call", "$.messages[1].tool_calls", turns(USER, {**ASSISTANT, "tool_calls": "f"})),
    ("wrong_type", "$.messages[1].weight", turns(USER, {**ASSISTANT, "weight": 0.5})),
    ("wrong_type", "$.tools", {**turns(USER, ASSISTANT), "tools": {"a": 1}}),
    (
        "turn_order",
        "$.rejected[0].content",
        {"chosen": [USER, ASSISTANT], "rejected": [{"role": "user", "content": "X"}, ASSISTANT]},
    ),
    ("no_assistant", "$.messages[0].content", turns(USER)),
    ("no_assistant", "$.messages[2].content", turns(USER, ASSISTANT, USER)),
    ("no_assistant", "$.messages", turns()),
    ("no_assistant", "$.chosen.content", {"prompt": "Q", "chosen": USER, "rejected": "B"}),
    ("unknown_label", "$.kto_tag", {"prompt": "Q", "completion": "A", "kto_tag": "maybe"}),
    ("no_assistant", "$.messages[0].content", {**turns(USER), "kto_tag": True}),
    ("bad_encoding", "$.output", {"input": "Q", "output": "\ud800"}),
    ("bad_encoding", "$.output", {"input": "Q", "output": "a\0b"}),
    ("too_large", "$.output", {"input": "Q", "output": "A" * 1_000_001}),
    ("empty_question", "$.input", {"input": " \n", "output": "A"}),
    ("empty_question", "$.instruction", {"instruction": "", "input": "", "output": "A"}),
    ("empty_answer", "$.output", {"input": "Q", "output": "\u3000\u200b"}),
    ("empty_answer", "$.messages[1].content", turns(USER, {"role": "assistant", "content": ""}, USER, ASSISTANT)),
    ("empty_answer", "$.chosen", {"prompt": "Q", "chosen": "", "rejected": "B"}),
    ("empty_answer", "$.completion", {"prompt": "Q", "completion": " ", "kto_tag": False}),
    ("equal_answers", "$.rejected", {"prompt": "Q", "chosen": "A B", "rejected": " A  B\n"}),
    ("exact_duplicate", "$", {"input": "Q ", "output": "A\n"}),
]


@pytest.mark.parametrize(("code", "path", "row"), ROWS, ids=[f"{code} {path}" for code, path, _ in ROWS])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_code_and_place(write, name, code, path, row):
    mapping = {"answer": "the answer"} if "the answer" in path else {}
    # Escaped, because a lone surrogate cannot be written in any other way.
    text = [json.dumps(value) for value in (GOOD, row, {"input": "Q2", "output": "A"})]
    file = write(name, "\n".join(text) if name == "a.jsonl" else "[\n" + ",\n".join(text) + "\n]")
    prepared = examine(Data(files=(file,), map=mapping))
    (drop,) = prepared.drops
    assert (drop.code, drop.path) == (code, path)
    assert (drop.place.index, drop.place.line) == (1, 2 if name == "a.jsonl" else 3)
    assert drop.detail and drop.fix
    assert repr(drop.row) == repr(row)
    assert len(prepared.rows) == 2


def test_lengths_are_the_users_to_choose(write):
    file = write(
        "a.json", [{"input": "嗨", "output": "是"}, {"input": "42?", "output": "B"}, {"input": "Q?", "output": "AB"}]
    )
    assert examine(Data(files=(file,))).drops == ()
    drops = examine(Data(files=(file,), min_question_chars=2, min_answer_chars=2)).drops
    assert [(drop.code, drop.path) for drop in drops] == [
        ("question_too_short", "$.input"),
        ("answer_too_short", "$.output"),
    ]


def test_every_code_is_in_the_table():
    """Whoever makes a Drop documents its code; whoever documents one says what it means."""
    used = set()
    for file in Path(dsr1_tune.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Drop", "Unusable") and node.args:
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    used.add(code.value)
    assert used <= MEANINGS.keys()
    assert {code for code, _, _ in ROWS} <= MEANINGS.keys()


def test_the_documentation_lists_every_code():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [code for code, meaning in MEANINGS.items() if f"| `{code}` | {meaning.en} |" not in text] == []
