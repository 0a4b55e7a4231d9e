"""Calls in every form are read, and what is none is refused at the place where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Record

ASK, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
CITY = {"city": "Oslo"}
CALL = {"name": "seek", "arguments": CITY}
TURN = "$.conversations[1].value"


def sharegpt(write: Any, value: Any, role: str = "function_call", **more: Any) -> Any:
    turns = [
        {"from": "human", "value": "W?"},
        {"from": role, "value": value, **more},
        {"from": "observation", "value": "3"},
    ]
    (row,) = read([write("a.jsonl", [{"conversations": [*turns, {"from": "gpt", "value": "Cold."}]}])])
    return row


def openai(write: Any, **turn: Any) -> Any:
    (row,) = read([write("a.jsonl", [{"messages": [ASK, {"role": "assistant", "content": None, **turn}]}])])
    return row


def calls_of(row: Any) -> list[tuple[str, Any]]:
    assert isinstance(row, Record), row
    return [(call.name, json.loads(call.arguments)) for call in row.messages[1].calls]


# --- calls in turns of their own -------------------------------------------------------------------------------------

BROKEN: list[tuple[Any, str]] = [
    ("{'name': 'seek', 'arguments': {'city': 'Oslo'}}", ""),
    ('{"name": "seek", "arguments": {"city": "Os', ""),
    ("seek(city='Oslo')", ""),
    ("I look it up.", ""),
    ("[]", ""),
    ([], ""),
    ("{}", ""),
    ({}, ""),
    ("3", ""),
    (3, ""),
    ("null", ""),
    ("[1]", "[0]"),
    ([CALL, {"arguments": CITY}], "[1]"),
    ('[{"name": "seek"}, {"name": 3}]', "[1]"),
    ('{"name": "seek", "arguments": "Oslo"}', ".arguments"),
    ({"function": {"name": "seek", "arguments": [1]}}, ".function.arguments"),
    ({"function": {"arguments": {}}}, ".function"),
    ('<tool_call>{"name": "seek"</tool_call>', ""),
    ('<tool_call>{"name": "seek"}</tool_call><tool_call>{"na', ""),
    ([{"type": "text", "text": "seek"}], ""),
    ("<think>hm</think>seek", ""),
    ('{"name": "seek", "arguments": ' + "[" * 100_000, ""),
]


@pytest.mark.parametrize(("value", "behind"), BROKEN, ids=[str(value)[:50] for value, _ in BROKEN])
@pytest.mark.parametrize("role", ["function_call", "tool_call", "tool_calls"])
def test_call_that_cannot_be_read_is_refused_where_it_stands(write: Any, role: str, value: Any, behind: str) -> None:
    drop = sharegpt(write, value, role)
    assert isinstance(drop, Drop), drop
    assert (drop.code, drop.path) == ("bad_tool_call", TURN + behind)
    assert drop.detail and drop.fix


def test_call_in_pythons_notation_is_told_how_to_be_written(write: Any) -> None:
    assert "json.dumps" in sharegpt(write, repr(CALL)).fix
    assert "json.dumps" in sharegpt(write, repr([CALL])).fix
    assert "json.dumps" in openai(write, tool_calls=repr([CALL])).fix
    assert "json.dumps" in openai(write, tool_calls=[{"name": "seek", "arguments": repr(CITY)}]).fix


@pytest.mark.parametrize(
    "value",
    [
        CALL,
        [CALL],
        json.dumps(CALL),
        json.dumps([CALL]),
        json.dumps({"type": "function", "function": CALL}),
        f"\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>\n",
        [{"type": "text", "text": json.dumps(CALL)}],
        [json.dumps(CALL)],
    ],
    ids=str,
)
def test_call_in_a_turn_of_its_own_is_read(write: Any, value: Any) -> None:
    row = sharegpt(write, value)
    assert calls_of(row) == [("seek", CITY)] and row.messages[1].content == ""


def test_words_and_thoughts_around_a_call_are_kept(write: Any) -> None:
    tagged = sharegpt(write, f"Let me look. <tool_call>{json.dumps(CALL)}</tool_call>")
    assert calls_of(tagged) == [("seek", CITY)] and tagged.messages[1].content == "Let me look."
    thought = sharegpt(write, f"<think>\nhm\n</think>\n{json.dumps(CALL)}")
    assert calls_of(thought) == [("seek", CITY)]
    assert thought.messages[1].content == "<think>\nhm\n</think>\n\n"
    beside = sharegpt(write, "Let me look.", tool_calls=[CALL])
    assert calls_of(beside) == [("seek", CITY)] and beside.messages[1].content == "Let me look."


@pytest.mark.parametrize(
    ("content", "is_broken"),
    [
        ('<tool_call>\n{"name": "seek", "arguments": {"city": "Os', True),
        ("<tool_call>\n{'name': 'seek'}\n</tool_call>", True),
        ('<think>hm</think>\n<tool_call>\n{"arguments": {}}\n</tool_call>', True),
        (f"<tool_call>{json.dumps(CALL)}</tool_call>\n<tool_call>{{</tool_call>", True),
        (f"<tool_call>{json.dumps(CALL)}</tool_call>", False),
        ("<tool_call>\n<function=seek>\n<parameter=city>Oslo</parameter>\n</function>\n</tool_call>", False),
        ("<tool_call>seek\n<arg_key>city</arg_key>", False),
        ("Write <tool_call>{...}</tool_call>", False),
    ],
)
def test_answer_that_begins_with_a_broken_call_in_tags_is_refused(write: Any, content: str, is_broken: bool) -> None:
    row = openai(write, content=content)
    if is_broken:
        assert (row.code, row.path) == ("bad_tool_call", "$.messages[1].content")
    else:
        assert isinstance(row, Record) and row.messages[1].content == content


# --- calls beside the words ------------------------------------------------------------------------------------------

AT = "$.messages[1]"
PLACES: list[tuple[dict[str, Any], str]] = [
    ({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, f"{AT}.tool_calls[0].function.arguments"),
    ({"tool_calls": [{"function": {"name": "f", "parameters": 3}}]}, f"{AT}.tool_calls[0].function.parameters"),
    ({"tool_calls": [{"function": {"arguments": {}}}]}, f"{AT}.tool_calls[0].function"),
    ({"tool_calls": [{"name": "f", "arguments": "["}]}, f"{AT}.tool_calls[0].arguments"),
    ({"tool_calls": [None, {"name": "f"}, {"name": ""}]}, f"{AT}.tool_calls[2]"),
    ({"function_call": {"name": "f", "arguments": "x"}}, f"{AT}.function_call.arguments"),
    ({"function_call": "auto"}, f"{AT}.function_call"),
    ({"content": [{"type": "tool_use", "name": "f", "input": [1]}]}, f"{AT}.content[0].input"),
    (
        {"content": [{"type": "function", "function": {"name": "f", "arguments": 1}}]},
        f"{AT}.content[0].function.arguments",
    ),
    ({"tool_calls": "seek"}, f"{AT}.tool_calls"),
    ({"tool_calls": "[{"}, f"{AT}.tool_calls"),
    ({"tool_calls": '"seek"'}, f"{AT}.tool_calls"),
    ({"tool_calls": 3}, f"{AT}.tool_calls"),
    ({"tool_calls": True}, f"{AT}.tool_calls"),
    ({"tool_calls": ["seek"]}, f"{AT}.tool_calls[0]"),
    ({"tool_calls": [3]}, f"{AT}.tool_calls[0]"),
]


@pytest.mark.parametrize(("turn", "path"), PLACES, ids=[json.dumps(turn) for turn, _ in PLACES])
def test_fault_in_a_call_is_named_at_its_place(write: Any, turn: dict[str, Any], path: str) -> None:
    drop = openai(write, **turn)
    assert isinstance(drop, Drop), drop
    assert (drop.code, drop.path) == ("bad_tool_call", path)


def test_text_in_the_place_of_calls_says_what_is_found_and_what_is_wanted(write: Any) -> None:
    drop = openai(write, tool_calls="get_weather")
    assert "'get_weather'" in drop.detail and "list of calls" in drop.fix and "arguments as an object" not in drop.fix
    assert calls_of(openai(write, tool_calls=json.dumps([CALL]))) == [("seek", CITY)]
    assert calls_of(openai(write, tool_calls=json.dumps(CALL))) == [("seek", CITY)]


@pytest.mark.parametrize("none", [None, "", " ", "null", "[]", [], {}, [None], [{}]], ids=str)
def test_calls_that_are_none(write: Any, none: Any) -> None:
    assert calls_of(openai(write, content="A", tool_calls=none)) == []


@pytest.mark.parametrize("none", [None, "null", " null ", "", " ", "{}", {}, "[]", [], '"null"', '""', '"{}"'], ids=str)
def test_arguments_that_say_nothing_are_none(write: Any, none: Any) -> None:
    rows = [
        openai(write, tool_calls=[{"function": {"name": "f", "arguments": none}}]),
        openai(write, function_call={"name": "f", "arguments": none}),
        openai(write, content=[{"type": "tool_use", "name": "f", "input": none}]),
        sharegpt(write, json.dumps({"name": "f", "arguments": none})),
    ]
    assert [calls_of(row) for row in rows] == [[("f", {})]] * 4
    assert calls_of(openai(write, tool_calls=[{"function": {"name": "f"}}])) == [("f", {})]


@pytest.mark.parametrize("wrong", [0, False, [1], "[1]", "3", "false"], ids=str)
def test_arguments_that_are_no_object_are_refused(write: Any, wrong: Any) -> None:
    drop = openai(write, tool_calls=[{"function": {"name": "f", "arguments": wrong}}])
    assert (drop.code, drop.path) == ("bad_tool_call", f"{AT}.tool_calls[0].function.arguments")


def test_numbers_that_json_has_not(write: Any) -> None:
    turn = '{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": %s}}]}'
    rows = "".join(f'{{"messages": [{json.dumps(ASK)}, {turn % number}]}}\n' for number in ("NaN", "Infinity"))
    blank, endless = read([write("a.jsonl", rows)])
    assert calls_of(blank) == [("f", {"x": None})]
    assert (endless.code, endless.path) == ("bad_tool_call", f"{AT}.tool_calls[0].arguments")
