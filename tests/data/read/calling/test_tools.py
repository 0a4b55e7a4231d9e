"""The tools of a row: every form is one list, what is no function is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Record
from dsr1_tune.data.row_check import RowCheck

TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
OPENAI = {"type": "function", "function": {"name": "seek", "parameters": SCHEMA}}
BARE = {"name": "seek", "parameters": SCHEMA}
ANTHROPIC = {"name": "seek", "input_schema": SCHEMA}


def row_with(write: Any, tools: Any) -> Any:
    (row,) = read([write("a.jsonl", [{"messages": TURNS, "tools": tools}])])
    return row


@pytest.mark.parametrize(
    "tool",
    [
        OPENAI,
        BARE,
        ANTHROPIC,
        {"name": "seek", "inputSchema": SCHEMA},
        {"name": "seek"},
        {"name": "seek", "parameters": []},
        {"name": "seek", "parameters": [{"name": "city", "type": "string", "required": True}]},
        {"name": "seek", "parameters": "null"},
        {"name": "seek", "parameters": "city"},
        {"name": "seek", "parameters": 3},
        {"type": "web_search"},
        {"type": "file_search", "vector_store_ids": ["x"]},
    ],
    ids=str,
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


OTHERS: list[tuple[Any, Any]] = [
    ({"tools": [BARE]}, [BARE]),
    ({"functions": [BARE], "tool_choice": "auto"}, [BARE]),
    ([{"function_declarations": [BARE]}], [BARE]),
    ([{"functionDeclarations": [BARE]}, OPENAI], [BARE, OPENAI]),
    ({"tools": []}, None),
    ({"seek": {"description": "Seeks.", "parameters": SCHEMA}}, [{"name": "seek", "description": "Seeks.", **BARE}]),
    ([{"seek": {"parameters": SCHEMA}}, {"look": {"description": "L"}}], [BARE, {"name": "look", "description": "L"}]),
    ([{"type": "function", "function": "seek"}], [{"type": "function", "function": {"name": "seek"}}]),
    ([{"type": "function", "function": "seek", "parameters": SCHEMA}], [OPENAI]),
    ([{"api_name": "seek", "parameters": SCHEMA}], [BARE]),
    ([{"name": "", "name_for_model": "seek", "parameters": SCHEMA}], [BARE]),
]


@pytest.mark.parametrize(("tools", "wanted"), OTHERS, ids=[str(tools)[:60] for tools, _ in OTHERS])
def test_tools_of_other_makers_become_functions_with_names(write: Any, tools: Any, wanted: Any) -> None:
    rows = [row_with(write, form) for form in (tools, json.dumps(tools), repr(tools))]
    assert all(isinstance(row, Record) for row in rows), rows
    assert [json.loads(row.tools or "null") for row in rows] == [wanted] * 3


def test_calls_of_functions_whose_arguments_nobody_knows_are_not_remarked_on(write: Any) -> None:
    turn = {"role": "assistant", "tool_calls": [{"name": "seek", "arguments": {"city": "Oslo"}}]}
    for schema in ([{"name": "town", "required": True}], "null", "town"):
        tools = [{"name": "seek", "parameters": schema}, {"type": "web_search"}]
        (row,) = read([write("a.jsonl", [{"messages": [TURNS[0], turn], "tools": tools}])])
        assert isinstance(row, Record) and RowCheck(None).check(row).notes == ()


WRONG: list[tuple[Any, str]] = [
    ({"a": 1}, "$.tools"),
    ('{"a": 1}', "$.tools"),
    ([{"a": 1}], "$.tools[0]"),
    ([BARE, {"name": ""}], "$.tools[1]"),
    ([BARE, {"name": 3}], "$.tools[1]"),
    ([{"type": "function", "function": {"parameters": {}}}], "$.tools[0].function"),
    ([{"type": "function"}], "$.tools[0]"),
    ([{"type": "function", "function": 3}], "$.tools[0].function"),
    ({"tools": [BARE, {"a": 1}]}, "$.tools.tools[1]"),
    ([[[[[[BARE]]]]]], "$.tools[0][0][0][0]"),
    (["seek"], "$.tools[0]"),
    ("seek", "$.tools"),
    (3, "$.tools"),
    ("3", "$.tools"),
    ([BARE, None], "$.tools[1]"),
    ("[" * 100_000, "$.tools"),
]


@pytest.mark.parametrize(("tools", "path"), WRONG, ids=[str(tools)[:40] for tools, _ in WRONG])
def test_what_is_no_function_is_refused_at_its_place(write: Any, tools: Any, path: str) -> None:
    drop = row_with(write, tools)
    assert isinstance(drop, Drop), drop
    assert (drop.code, drop.path) == ("wrong_type", path)
    assert drop.detail and drop.fix
