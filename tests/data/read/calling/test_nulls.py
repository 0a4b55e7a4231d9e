"""A null is what it says, unless a table has put it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Record
from dsr1_tune.data.row_check import RowCheck

ASK, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def tool(name: str = "f", **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def calling(arguments: Any, name: str = "f", **row: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    turns = [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"}, ANSWER]
    return {"messages": turns, **row}


def records(write: Any, *rows: Any) -> list[Record]:
    found = list(read([write("a.jsonl", list(rows))]))
    assert all(isinstance(row, Record) for row in found), found
    return found  # type: ignore[return-value]


def saved(tmp_path: Path, *rows: Any) -> list[dict[str, Any]]:
    """The rows as a table gives them back."""
    from datasets import Dataset

    Dataset.from_list(list(rows)).to_json(tmp_path / "saved.jsonl")
    return [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text().splitlines()]


def arguments_of(row: Record) -> list[Any]:
    return [json.loads(call.arguments) for message in row.messages for call in message.calls]


MEANT = [{"until": None}, {"city": "Oslo", "until": None}, {"at": {"zone": None, "n": [None]}}, {"l": [{"a": None}]}]


@pytest.mark.parametrize("arguments", MEANT, ids=str)
def test_nulls_written_by_hand_stay_in_calls(write: Any, arguments: Any) -> None:
    call, used = {"name": "f", "arguments": arguments}, {"type": "tool_use", "name": "f", "input": arguments}
    turns = [{"from": "human", "value": "Q"}, {"from": "function_call"}]
    forms = [
        calling(arguments),
        calling(json.dumps(arguments)),
        *({"conversations": [turns[0], {**turns[1], "value": value}]} for value in (call, json.dumps(call))),
        {"messages": [ASK, {"role": "assistant", "content": [used]}]},
    ]
    for form in forms:
        (row,) = records(write, form)
        assert arguments_of(row) == [arguments]


def test_nulls_written_by_hand_stay_beside_calls_of_other_functions(write: Any) -> None:
    said = [("f", {"city": "Oslo", "until": None}), ("g", {"city": "Rome", "until": "5"}), ("h", {"n": 1})]
    rows = records(write, *(calling(arguments, name) for name, arguments in said))
    assert [arguments_of(row) for row in rows] == [[arguments] for _, arguments in said]


def test_nulls_written_by_hand_stay_in_results(write: Any) -> None:
    result = {"temp": 3, "wind": None, "list": [None, {"a": None}]}
    row = calling({})
    row["messages"][2]["content"] = result
    (record,) = records(write, row)
    assert json.loads(record.messages[2].content) == result
    part = {"type": "tool_result", "tool_use_id": "x", "content": result}
    row["messages"][2] = {"role": "user", "content": [part]}
    (record,) = records(write, row)
    assert json.loads(record.messages[2].content) == result


def test_nulls_written_by_hand_stay_in_schemas_where_a_schema_has_some(write: Any) -> None:
    until = {"type": ["string", "null"], "default": None, "enum": ["a", None], "examples": [{"x": None}]}
    meant = tool(until=until, const={"const": None, "default": {"a": None}}, default={"type": "string"})
    (row,) = records(write, calling({}, tools=[meant]))
    assert json.loads(row.tools) == [meant]
    beside = {**meant, "function": {**meant["function"], "description": None, "strict": None}}
    (row,) = records(write, calling({}, tools=[beside]))
    assert json.loads(row.tools) == [meant]


def test_null_for_an_argument_that_the_function_has_not_is_none_where_a_table_has_filled_the_tools(write: Any) -> None:
    said = {"city": "Oslo", "until": None, "zone": None, "n": 1}
    tools = [tool(city={"type": "string"}, until={"type": "string"})]
    (row,) = records(write, calling(said, tools=tools))
    assert arguments_of(row) == [said]
    assert [note.code for note in RowCheck(None).check(row).notes] == ["unfit_arguments"]
    (row,) = records(write, calling(said, tools=[*tools, tool("g", city=None, zone={"type": "string"})]))
    assert arguments_of(row) == [{"city": "Oslo", "until": None, "n": 1}]


TABLES: dict[str, list[dict[str, Any]]] = {
    "one function": [calling({"city": "Paris"}), calling({"city": "Rome", "until": "5"})],
    "two functions": [calling({"city": "Paris"}), calling({"zone": "CET"}, "g")],
    "nested": [calling({"at": {"city": "Paris"}}), calling({"at": {"zone": "CET"}, "n": 1}, "g")],
    "lists": [calling({"stops": [{"city": "Paris"}]}), calling({"stops": [{"zone": "CET"}]})],
    "parts": [
        {"messages": [
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "name": name, "input": arguments}]},
            {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "3"}]}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        ]} for name, arguments in (("f", {"city": "Paris"}), ("g", {"n": 1}))
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_nulls_of_a_table_saved_as_json_lines_are_none(write: Any, tmp_path: Path, case: str) -> None:
    rows = TABLES[case]
    filled = saved(tmp_path, *rows)
    assert filled != rows
    assert [arguments_of(row) for row in records(write, *filled)] == [
        arguments_of(row) for row in records(write, *rows)
    ]


def test_nulls_of_a_table_are_told_by_its_calls_once_its_turns_are_written_anew(write: Any, tmp_path: Path) -> None:
    rows = [calling({"city": "Paris"}), calling({"zone": "CET"}, "g"), calling({"city": "Rome"})]
    anew = [
        {"messages": [{name: value for name, value in turn.items() if value is not None} for turn in row["messages"]]}
        for row in saved(tmp_path, *rows)
    ]
    assert all("tool_calls" not in row["messages"][0] for row in anew) and "null" in json.dumps(anew)
    assert [arguments_of(row) for row in records(write, *anew)] == [arguments_of(row) for row in records(write, *rows)]


def test_nulls_of_a_table_are_taken_out_of_schemas(write: Any, tmp_path: Path) -> None:
    city = {"type": "string", "default": "Oslo", "enum": ["Oslo", "Rome"]}
    rows = [
        calling({"city": "Oslo"}, tools=[tool(city=city)]),
        calling({"n": 1}, "g", tools=[tool("g", n={"type": "number"})]),
    ]
    filled = saved(tmp_path, *rows)
    assert '"default": null' in json.dumps(filled) or '"n": null' in json.dumps(filled)
    assert [json.loads(row.tools) for row in records(write, *filled)] == [row["tools"] for row in rows]


def test_turns_that_a_program_writes_with_all_their_fields_leave_nulls_alone_where_calls_differ(write: Any) -> None:
    # Not all turns have values of the same types in the same fields: no table holds such.
    row = calling({"city": "Oslo", "until": None})
    row["messages"] = [{"tool_calls": None, **turn} for turn in row["messages"]]
    row["messages"][2]["content"] = {"temp": 3}
    (record,) = records(write, row)
    assert arguments_of(record) == [{"city": "Oslo", "until": None}]


def test_nulls_that_the_function_requires_stay_in_tables_too(write: Any, tmp_path: Path) -> None:
    asks = tool(city={"type": "string"})
    asks["function"]["parameters"]["required"] = ["city"]
    rows = [calling({"city": None, "n": 1}, tools=[asks]), calling({"city": "Rome", "zone": "CET"}, tools=[asks])]
    found = records(write, *saved(tmp_path, *rows))
    assert arguments_of(found[0]) == [{"city": None, "n": 1}]
