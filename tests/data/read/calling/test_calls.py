"""Calls in every form are read, and what is none is refused at the place where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Feedback, Preference, Record
from dsr1_tune.data.row_check import RowCheck

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
    ("{'name': 'seek', 'arguments': {'city': {...}}}", ""),
    ("{'name': 'seek', 'arguments': ", ""),
    (f"Let me look. {json.dumps(CALL)[:-8]}", ""),
    (f'{json.dumps(CALL)}\n{{"name": "se', ""),
    ('Let me look. {"arguments": {"name": "Oslo"}}', ""),
    ('{"name": "seek", "arguments": {"name": "Oslo"}, "x', ""),
    (f"<think>I could say {json.dumps(CALL)}</think>No.", ""),
    (f"<think>I could say {json.dumps(CALL)}", ""),
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


def test_refusal_of_a_turn_says_how_to_keep_it_as_text(write: Any) -> None:
    for value in ("I look it up.", [CALL, {"arguments": CITY}], '{"name": 3}'):
        assert "assistant (gpt)" in sharegpt(write, value).fix
    assert "assistant (gpt)" not in openai(write, tool_calls=[{"arguments": CITY}]).fix


def test_pythons_notation_is_read_wherever_a_text_is(write: Any) -> None:
    rows = [
        sharegpt(write, repr(CALL)),
        sharegpt(write, repr([CALL])),
        openai(write, tool_calls=repr([CALL])),
        openai(write, tool_calls=[{"name": "seek", "arguments": repr(CITY)}]),
    ]
    assert [calls_of(row) for row in rows] == [[("seek", CITY)]] * 4


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


QUOTING = {"name": "seek", "arguments": {"c": "a </think> b <tool_call>x</tool_call>"}}
OTHER = {"name": "look", "arguments": {"n": None, "yes": True}}
BOTH = [("seek", CITY), ("look", {"n": None, "yes": True})]
TEXTS: list[tuple[str, list[tuple[str, Any]], str]] = [
    (json.dumps(QUOTING), [("seek", QUOTING["arguments"])], ""),
    (repr(QUOTING), [("seek", QUOTING["arguments"])], ""),
    (f"<tool_call>{json.dumps(QUOTING)}</tool_call>", [("seek", QUOTING["arguments"])], ""),
    (f"<tool_call>{QUOTING!r}</tool_call>", [("seek", QUOTING["arguments"])], ""),
    (f"I look: {json.dumps(QUOTING)}", [("seek", QUOTING["arguments"])], "I look:"),
    (f"<think>a</think>{json.dumps(QUOTING)}", [("seek", QUOTING["arguments"])], "<think>\na\n</think>\n\n"),
    (f"<tool_call>{json.dumps([CALL, OTHER])}</tool_call>", BOTH, ""),
    (f"<tool_call>\n{CALL!r}\n</tool_call>\n<tool_call>\n{OTHER!r}\n</tool_call>", BOTH, ""),
    (f"<tool_call>\n{json.dumps(CALL)}\n{json.dumps(OTHER)}\n</tool_call>", BOTH, ""),
    (f"<tool_calls><tool_call>{json.dumps(CALL)}</tool_call></tool_calls>", BOTH[:1], ""),
    (f"<tool_call>{json.dumps(CALL)}", BOTH[:1], ""),
    (f"{json.dumps(CALL)}\n{json.dumps(OTHER)}", BOTH, ""),
    (f"{CALL!r}\n{OTHER!r}", BOTH, ""),
    (f"{CALL!r}, {OTHER!r}", BOTH, ""),
    (f"```json\n{json.dumps([CALL, OTHER], indent=2)}\n```", BOTH, ""),
    (f"```python\n{CALL!r}\n```", BOTH[:1], ""),
    (f"Let me [1] look.\n```json\n{json.dumps(CALL)}\n```", BOTH[:1], "Let me [1] look."),
    (f"Let me look. {json.dumps(CALL)}", BOTH[:1], "Let me look."),
    (f"{json.dumps(CALL)}\nThat was it.", BOTH[:1], "That was it."),
    ("""<functioncall> {"name": "seek", "arguments": '{"city": "Oslo"}'} <|endoftext|>""", BOTH[:1], ""),
    ("""Sure. <functioncall> {"name": "f", "arguments": '{"a": "it's\\n"}'}""", [("f", {"a": "it's\n"})], "Sure."),
    (json.dumps(CALL).replace("Oslo", "a\nb"), [("seek", {"city": "a\nb"})], ""),
]


@pytest.mark.parametrize(("text", "calls", "words"), TEXTS, ids=[text for text, _, _ in TEXTS])
def test_text_of_a_call_is_read_in_every_notation(write: Any, text: str, calls: Any, words: str) -> None:
    row = sharegpt(write, text)
    assert calls_of(row) == calls and row.messages[1].content == words


@pytest.mark.parametrize("broken", ['{"name": "seek", "argu', "I look it up.", '{"name": "f", "arguments": 3}', [1]])
def test_call_that_cannot_be_read_is_text_where_it_is_not_learned(write: Any, broken: Any) -> None:
    text = broken if isinstance(broken, str) else json.dumps(broken)
    shown = sharegpt(write, broken, weight=0)
    assert (shown.messages[1].content, shown.messages[1].is_learned, calls_of(shown)) == (text, False, [])
    good, bad = [{"from": "gpt", "value": "3."}], [{"from": "function_call", "value": broken}]
    ask = [{"from": "human", "value": "Q"}]
    rows = [
        {"prompt": ask, "chosen": good, "rejected": bad},
        {"conversations": ask, "chosen": good[0], "rejected": bad[0]},
        {"chosen": ask + good, "rejected": ask + bad},
        {"prompt": ask, "completion": bad, "label": False},
        {"conversations": ask + bad, "kto_tag": False},
    ]
    found = [row for one in rows for row in read([write("a.jsonl", [one])])]
    assert [row.rejected.content for row in found[:3] if isinstance(row, Preference)] == [text] * 3
    assert [row.completion.content for row in found[3:] if isinstance(row, Feedback)] == [text] * 2
    praised = [{**rows[0], "chosen": bad, "rejected": good}, {**rows[3], "label": True}]
    refused = [row for one in praised for row in read([write("a.jsonl", [one])])]
    assert [row.code for row in refused if isinstance(row, Drop)] == ["bad_tool_call"] * 2


TAGGED: list[tuple[str, bool]] = [
    ('<tool_call>\n{"name": "seek", "arguments": {"city": "Os', True),
    ('<think>hm</think>\n<tool_call>\n{"arguments": {}}\n</tool_call>', True),
    (f"<tool_call>{json.dumps(CALL)}</tool_call>\n<tool_call>{{</tool_call>", True),
    ("<tool_call>{...}</tool_call> is how a call is written.", True),
    (f"<tool_call>{json.dumps(CALL)}</tool_call>", False),
    (f"<tool_call>{json.dumps(QUOTING)}</tool_call>", False),
    (f"<tool_call>{CALL!r}</tool_call> is how a call is written.", False),
    ('<tool_call>\n[get_weather(city="Paris")]\n</tool_call>', False),
    ("<tool_call>\n<function=seek>\n<parameter=city>Oslo</parameter>\n</function>\n</tool_call>", False),
    ("<tool_call>seek\n<arg_key>city</arg_key>", False),
    ("Write <tool_call>{...}</tool_call>", False),
    (f"Write <tool_call>{CALL!r}</tool_call>", False),
]


@pytest.mark.parametrize(("content", "is_broken"), TAGGED)
def test_answer_with_tags_stays_text_and_one_that_begins_with_a_broken_call_is_remarked_on(
    write: Any, content: str, is_broken: bool
) -> None:
    for row in (openai(write, content=content), *read([write("a.jsonl", [{"input": "Q", "output": content}])])):
        assert isinstance(row, Record) and row.messages[1].content == content and not row.messages[1].calls
        assert [note.code for note in RowCheck(None).check(row).notes] == ["unread_call"] * is_broken


@pytest.mark.parametrize("thought", ["", "<think>\nhm\n</think>\n\n"])
@pytest.mark.parametrize("inner", [repr(CALL), json.dumps([CALL]), repr([CALL])])
def test_answer_that_is_calls_in_a_notation_of_its_own_is_read_as_calls(write: Any, thought: str, inner: str) -> None:
    row = openai(write, content=f"{thought}<tool_call>\n{inner}\n</tool_call>")
    assert calls_of(row) == [("seek", CITY)] and row.messages[1].content == thought


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


@pytest.mark.parametrize("none", [None, "", " ", "null", "None", "[]", [], {}, [None], [{}], False, 0], ids=str)
def test_calls_that_are_none(write: Any, none: Any) -> None:
    assert calls_of(openai(write, content="A", tool_calls=none)) == []
    assert calls_of(openai(write, content="A", function_call=none)) == []


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


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_has_not(write: Any, number: str) -> None:
    call = f'{{"name": "f", "arguments": {{"x": {number}}}}}'
    turns = [
        f'{{"role": "assistant", "tool_calls": [{call}]}}',
        f'{{"from": "tool_call", "value": {json.dumps(call)}}}',
    ]
    rows = [read([write("a.jsonl", f'{{"messages": [{json.dumps(ASK)}, {turn}]}}\n')]) for turn in turns]
    assert [calls_of(row) for found in rows for row in found] == [[("f", {"x": None})]] * 2
