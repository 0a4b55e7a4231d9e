"""The tools of a row: every form is one list, what is no function is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Record

TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
OPENAI = {"type": "function", "function": {"name": "seek", "parameters": SCHEMA}}
BARE = {"name": "seek", "parameters": SCHEMA}
ANTHROPIC = {"name": "seek", "input_schema": SCHEMA}


def row_with(write: Any, tools: Any) -> Any:
    (row,) = read([write("a.jsonl", [{"messages": TURNS, "tools": tools}])])
    return row


@pytest.mark.parametrize(
    "tool", [OPENAI, BARE, ANTHROPIC, {"name": "seek"}, {"name": "seek", "parameters": []}], ids=str
)
def test_tools_in_every_form_are_a_list_of_functions(write: Any, tool: Any) -> None:
    forms = [[tool], tool, json.dumps([tool]), json.dumps(tool), [json.dumps(tool)], json.dumps([json.dumps(tool)])]
    rows = [row_with(write, form) for form in forms]
    assert all(isinstance(row, Record) for row in rows), rows
    assert [json.loads(row.tools) for row in rows] == [[tool]] * len(forms)


def test_schema_as_text_is_an_object(write: Any) -> None:
    for tool in (BARE, ANTHROPIC):
        key = "parameters" if tool is BARE else "input_schema"
        assert json.loads(row_with(write, [{**tool, key: json.dumps(SCHEMA)}]).tools) == [tool]
    inner = {"type": "function", "function": {"name": "seek", "parameters": json.dumps(SCHEMA)}}
    assert json.loads(row_with(write, [inner]).tools) == [OPENAI]


WRONG: list[tuple[Any, str]] = [
    ({"a": 1}, "$.tools"),
    ('{"a": 1}', "$.tools"),
    ([{"a": 1}], "$.tools[0]"),
    ([BARE, {"name": ""}], "$.tools[1]"),
    ([BARE, {"name": 3}], "$.tools[1]"),
    ([{"type": "function", "function": {"parameters": {}}}], "$.tools[0].function"),
    ([{"type": "function", "function": "seek"}], "$.tools[0].function"),
    ([{"type": "code_interpreter"}], "$.tools[0]"),
    (["seek"], "$.tools[0]"),
    ("seek", "$.tools"),
    (3, "$.tools"),
    ("3", "$.tools"),
    ([BARE, None], "$.tools[1]"),
    ([{"name": "seek", "parameters": "city"}], "$.tools[0].parameters"),
    ([{"function": {"name": "seek", "parameters": ["city"]}}], "$.tools[0].function.parameters"),
    ([{"name": "seek", "input_schema": 3}], "$.tools[0].input_schema"),
    ("[" * 100_000, "$.tools"),
]


@pytest.mark.parametrize(("tools", "path"), WRONG, ids=[str(tools)[:40] for tools, _ in WRONG])
def test_what_is_no_function_is_refused_at_its_place(write: Any, tools: Any, path: str) -> None:
    drop = row_with(write, tools)
    assert isinstance(drop, Drop), drop
    assert (drop.code, drop.path) == ("wrong_type", path)
    assert drop.detail and drop.fix
