"""Every accepted format is understood; what a row lacks is said."""

from __future__ import annotations

import json

import pytest

from dsr1_tune.data.read import rows
from dsr1_tune.data.read.formats import parse_mapping
from dsr1_tune.data.read.json_rows import Raw
from dsr1_tune.data.read.read import open_files, read
from dsr1_tune.data.read.rows import Interpreter, Learned
from dsr1_tune.data.record import Drop, Place, Preference, Prompt, Record
from dsr1_tune.errors import ConfigError, DataError

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}


def said(row):
    """[(role, text), ...]"""
    messages = (*row.prompt, row.chosen, row.rejected) if isinstance(row, Preference) else row.messages
    return [(message.role, message.content) for message in messages]


@pytest.mark.parametrize(
    "row",
    [
        {"input": "Q", "output": "A"},
        {"input": "Q", "output": "A", "id": 7},
        {"question": "Q", "answer": "A"},
        {"Question": "Q", "Answer": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "response": "A"},
        {"prompt": "Q", "answer": "A"},
        {"query": "Q", "response": "A"},
        {"instruction": "Q", "response": "A"},
        {"instruct": "Q", "output": "A"},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "input": None, "output": "A"},
        {"instruction": "", "input": "Q", "output": "A"},
        {"instruction": ["Q"], "output": ["A"]},
        {"问题": "Q", "回答": "A"},
        {"title": "Q", "answer": "A"},
        {"title": "Q", "ask": "无", "answer": "A"},
        {"title": "T", "description": "D", "input": "Q", "output": "A"},
        {"department": "x", "title": "Q", "ask": "", "answer": "A"},
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "user", "content": [{"type": "text", "value": "Q"}]}, ASSISTANT]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, ASSISTANT]},
        {"messages": json.dumps([USER, ASSISTANT])},
        {"conversations": [HUMAN, GPT]},
        {"conversations": [USER, ASSISTANT]},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"messages": None, "question": "Q", "answer": "A"},
    ],
    ids=str,
)
def test_one_question_and_answer(write, row):
    (record,) = read([write("a.json", [row])])
    assert isinstance(record, Record)
    assert said(record) == [("user", "Q"), ("assistant", "A")]
    assert (record.question, record.answer, record.row) == ("Q", "A", row)
    assert (record.place.line, record.place.index) == (2, 0)


def test_alpaca_joins_instruction_and_input_after_system_and_history(write):
    row = {"instruction": "I", "input": "X", "output": "A", "system": "S", "history": [["q", "a"]]}
    (record,) = read([write("a.json", [row])])
    turns = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "I\nX"), ("assistant", "A")]
    assert said(record) == turns
    assert [message.path for message in record.messages] == [
        "$.system",
        "$.history[0][0]",
        "$.history[0][1]",
        "$.instruction",
        "$.output",
    ]


def test_forum_rows_join_headline_and_text(write):
    rows = [
        {"title": "发烧怎么办", "ask": "孩子三岁", "answer": "A"},
        {"title": "发烧", "ask": "发烧怎么办", "answer": "A"},
    ]
    first, second = read([write("a.json", rows)])
    assert (first.question, second.question) == ("发烧怎么办\n孩子三岁", "发烧怎么办")


def test_sharegpt_with_tools(write):
    turns = [
        HUMAN,
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "21"},
        GPT,
    ]
    (record,) = read([write("a.json", [{"conversations": turns, "system": "S", "tools": '[{"name": "f"}]'}])])
    roles = [role for role, _ in said(record)]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert record.tools == '[{"name": "f"}]'


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("human", "assistant"),
        ("user", "bot"),
        ("user", "assistant"),
        ("question", "answer"),
        ("prompt", "response"),
        ("instruction", "output"),
        ("input", "output"),
        ("Human", "Assistant"),
        ("q", "a"),
        ("问", "答"),
    ],
)
def test_pairs_in_one_object(write, asked, answered):
    """Firefly's turns: question and answer in one object."""
    pairs = [{asked: "q1", answered: "a1"}, {asked: "q2", answered: "a2"}]
    rows = [{"conversation_id": 1, "category": "Brainstorming", "conversation": pairs, "dataset": "moss"}]
    (reading,) = open_files([write("a.json", rows)])
    (record,) = reading.rows
    assert said(record) == [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    assert [message.path for message in record.messages[2:]] == [
        f"$.conversation[1].{asked}",
        f"$.conversation[1].{answered}",
    ]
    assert (reading.format, reading.formats) == ("pairs", {"pairs": 1})


def test_pairs_with_system_prompt_and_input(write):
    pairs = [{"system": "S", "instruction": "I", "input": "X", "output": "a1"}, {"human": "q2", "assistant": "a2"}]
    (record,) = read([write("a.json", [{"conversation": pairs}])])
    turns = [("system", "S"), ("user", "I\nX"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    assert said(record) == turns


def test_history_of_turns_and_pairs(write):
    history = [["q1", "a1"], {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]
    row = {"instruction": "Q", "output": "A", "history": [*history, {"human": "q3", "assistant": "a3"}]}
    (record,) = read([write("a.json", [row])])
    assert [text for _, text in said(record)] == ["q1", "a1", "q2", "a2", "q3", "a3", "Q", "A"]


def test_what_is_wrong_in_a_pair_is_named_at_its_place(write):
    pairs = [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": None}]
    (drop,) = read([write("a.json", [{"conversation": pairs}])])
    assert (drop.code, drop.path) == ("null_value", "$.conversation[1].assistant")


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name":"f"}]', [], "[]", None, ""], ids=str)
@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_are_json_text_or_a_list(write, name, tools):
    (record,) = read([write("a.json", [{"messages": [USER, ASSISTANT], name: tools}])])
    assert record.tools == ('[{"name":"f"}]' if tools and len(tools) != 2 else "")


def test_every_name_of_a_role(write):
    said_by = ["system", "user", "function_call", "observation", "tool", "bot"]
    roles = ["system", "user", "assistant", "tool", "tool", "assistant"]
    turns = [{"from": role, "value": str(number)} for number, role in enumerate(said_by)]
    (record,) = read([write("a.json", [{"conversations": turns}])])
    assert said(record) == [(role, str(number)) for number, role in enumerate(roles)]


def test_openai_tool_calls_become_their_json(write):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    turns = [USER, call, {"role": "tool", "content": "21"}, ASSISTANT]
    (record,) = read([write("a.json", [{"messages": turns}])])
    assert json.loads(record.messages[1].content) == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"question": "Q", "chosen": "A", "rejected": "B"},
        {"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "B"}]},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "B"}},
        {"messages": [USER], "chosen": ASSISTANT, "rejected": {"role": "assistant", "content": "B"}},
        {"prompt": "Q", "messages": [USER, ASSISTANT], "chosen": [USER, ASSISTANT], "rejected": "B"},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "B"}]},
    ],
    ids=str,
)
def test_preferences(write, row):
    (preference,) = read([write("a.json", [row])])
    assert isinstance(preference, Preference)
    assert said(preference) == [("user", "Q"), ("assistant", "A"), ("assistant", "B")]


def test_a_preference_needs_both_answers(write):
    rows = [{"prompt": "Q", "chosen": "A", "rejected": "B"}, {"prompt": "Q", "chosen": "A"}]
    _, drop = read([write("a.json", rows)])
    assert (drop.code, drop.path) == ("missing_field", "$.rejected")
    # One of the two beside a whole question and answer is just a further column.
    (record,) = read([write("b.json", [{"question": "Q", "answer": "A", "chosen": True}])])
    assert isinstance(record, Record)


@pytest.mark.parametrize("row", [{"prompt": "Q"}, {"question": "Q"}, {"prompt": [USER]}, {"messages": [USER]}], ids=str)
def test_prompts(write, row):
    (prompt,) = read([write("a.json", [row])])
    assert isinstance(prompt, Prompt)
    assert said(prompt) == [("user", "Q")]


def test_a_prompt_with_a_checkable_result(write):
    (prompt,) = read([write("a.json", [{"prompt": "Q", "ground_truth": 42}])])
    assert prompt.answer == "42"


def test_a_row_without_answer_is_a_prompt_only_among_prompts(write):
    whole = {"question": "Q", "answer": "A"}
    *_, drop = read([write("a.json", [whole, whole, {"question": "Q"}])])
    assert (drop.code, drop.path, drop.fix) == ("missing_field", "$.answer", "add 'answer'")
    *_, record = read([write("b.json", [{"question": "Q"}, {"question": "Q"}, whole])])
    assert isinstance(record, Record)


def test_mixed_formats_are_read_and_counted(write):
    mixed = [{"input": "Q", "output": "A"}] * 2 + [
        {"messages": [USER, ASSISTANT]},
        {"instruction": "Q", "output": "A"},
        {"conversation": [{"human": "Q", "assistant": "A"}]},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"input": "Q", "output": None},
        {"foo": 1},
        42,
    ]
    (reading,) = open_files([write("a.json", mixed)])
    assert (reading.format, reading.formats) == ("question-answer", {})
    outcomes = list(reading.rows)
    assert all(not isinstance(row, Drop) for row in outcomes[:6])
    # Of three rows no format is known, or it is known and the row is bad.
    assert reading.formats == {"question-answer": 3, "messages": 1, "Alpaca": 1, "pairs": 1, "preference": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "I", "input": "X", "output": "A"},
        {"instruction": "I", "input": " ", "output": "A", "system": "", "history": [], "tools": ""},
        {"instruction": "I", "input": "X", "output": "A", "system": None, "history": None, "tools": None},
        {"instruction": "", "input": "", "output": ""},
        {"instruction": "I", "output": "A", "system": []},
        {"instruction": "I", "output": "A", "tools": False},
        {"instruction": "I", "output": "A", "tools": "[]"},
        {"instruction": "I", "output": "A", "other": 1.5},
        {"instruction": "I", "output": "A", "other": float("nan")},
        {"instruction": "I", "output": "\0"},
        {"instruction": "\ud800", "output": "A"},
        {"instruction": " " * 1_000_001, "input": "X", "output": "A"},
        {"title": "T", "ask": "无", "answer": "A"},
        {"instruction": "<user>: Q <bot>: R <user>: S", "output": "A"},
    ],
    ids=lambda row: str(row)[:80],
)
def test_the_quick_way_reads_as_the_careful_one(row, monkeypatch):
    def outcomes():
        interpreter = Interpreter(Learned(prompts=False))
        some = [interpreter(Raw(row, Place("a", 1, 0))) for _ in range(2)]
        return [repr((type(o), o, [m.path for m in getattr(o, "messages", ())])) for o in some], interpreter.formats

    expected = outcomes()
    monkeypatch.setattr(rows, "_plain_record", lambda *_: None)
    assert outcomes() == expected


def test_as_many_kinds_of_rows_as_one_likes(write, monkeypatch):
    monkeypatch.setattr(rows, "MAX_PLANS", 3)
    many = [{"input": "Q", "output": "A", f"column {number}": 1} for number in range(20)]
    (reading,) = open_files([write("a.json", many)])
    assert all(isinstance(row, Record) for row in reading.rows)
    assert reading.formats == {"question-answer": 20}


@pytest.mark.parametrize(("value", "text"), [(42, "42"), (1.5, "1.5"), (True, "true"), (["B"], "B")])
def test_plain_values_are_taken_as_text(write, value, text):
    (record,) = read([write("a.json", [{"input": "Q", "output": value}])])
    assert record.answer == text


def test_mapping(write):
    file = write("a.csv", "id,title,ask,answer,reply\n1,T,X,no,A\n")
    (record,) = read([file], {"question": "title+ask", "answer": "reply"})
    assert said(record) == [("user", "T\nX"), ("assistant", "A")]
    (record,) = read([write("b.json", [{"chat": [USER, ASSISTANT]}])], {"messages": "chat"})
    assert said(record) == [("user", "Q"), ("assistant", "A")]
    (record,) = read(
        [write("c.json", [{"input": "Q", "good": "A", "bad": "B"}])], {"chosen": "good", "rejected": "bad"}
    )
    assert isinstance(record, Preference)


def test_mapping_may_fit_only_one_of_the_files(write):
    files = [write("a.json", [{"x": "Q", "y": "A"}]), write("b.json", [{"input": "Q", "output": "A"}])]
    assert all(isinstance(row, Record) for row in read(files, {"question": "x", "answer": "y"}))


def test_mapping_to_a_missing_column_names_those_that_exist(write):
    with pytest.raises(DataError, match="answer=replies: no row has such a field") as caught:
        list(read([write("a.json", [{"title": "Q", "reply": "A"}])], {"question": "title", "answer": "replies"}))
    assert caught.value.hint == "the fields are: reply, title"


def test_mapping_with_an_unknown_name(write):
    with pytest.raises(ConfigError, match="no name 'anser'") as caught:
        list(read([write("a.json", [{"q": "Q"}])], {"anser": "reply"}))
    assert "did you mean answer=reply?" in caught.value.hint


def test_parse_mapping():
    assert parse_mapping(["question=title+ask, answer=reply", "system=s"]) == {
        "question": "title+ask",
        "answer": "reply",
        "system": "s",
    }
    with pytest.raises(ConfigError, match="not of the form"):
        parse_mapping(["question"])


def test_several_possible_answers_are_not_guessed(write):
    (drop,) = read([write("a.json", [{"question": "Q", "answer": "42", "response": "It is 42"}])])
    assert isinstance(drop, Drop)
    assert (drop.code, drop.fix) == ("ambiguous_fields", "choose with --map answer=answer")
