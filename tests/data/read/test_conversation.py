"""What is said in a row of any format, in its order and roles."""

from __future__ import annotations

import pytest

from dsr1_tune.data.read.read import open_files, read
from dsr1_tune.data.record import Preference, ToolCall

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}


def said(row):
    """[(role, text), ...]"""
    messages = (*row.prompt, row.chosen, row.rejected) if isinstance(row, Preference) else row.messages
    return [(message.role, message.content) for message in messages]


def test_conversation_of_alpaca_joins_instruction_and_input_after_system_and_history(write):
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


def test_conversation_of_a_forum_joins_headline_and_text(write):
    rows = [
        {"title": "发烧怎么办", "ask": "孩子三岁", "answer": "A"},
        {"title": "发烧", "ask": "发烧怎么办", "answer": "A"},
    ]
    first, second = read([write("a.json", rows)])
    assert (first.question, second.question) == ("发烧怎么办\n孩子三岁", "发烧怎么办")


def test_conversation_of_sharegpt_with_tools(write):
    turns = [
        HUMAN,
        {"from": "function_call", "value": '{"name": "f"}'},
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
def test_conversation_of_pairs_in_one_object(write, asked, answered):
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


def test_conversation_of_pairs_with_system_prompt_and_input(write):
    pairs = [{"system": "S", "instruction": "I", "input": "X", "output": "a1"}, {"human": "q2", "assistant": "a2"}]
    (record,) = read([write("a.json", [{"conversation": pairs}])])
    turns = [("system", "S"), ("user", "I\nX"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    assert said(record) == turns


def test_conversation_with_a_history_of_turns_and_pairs(write):
    history = [["q1", "a1"], {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]
    row = {"instruction": "Q", "output": "A", "history": [*history, {"human": "q3", "assistant": "a3"}]}
    (record,) = read([write("a.json", [row])])
    assert [text for _, text in said(record)] == ["q1", "a1", "q2", "a2", "q3", "a3", "Q", "A"]


def test_conversation_names_the_place_of_what_is_wrong_in_a_pair(write):
    pairs = [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": None}]
    (drop,) = read([write("a.json", [{"conversation": pairs}])])
    assert (drop.code, drop.path) == ("null_value", "$.conversation[1].assistant")


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name":"f"}]', [], "[]", None, ""], ids=str)
@pytest.mark.parametrize("name", ["tools", "functions"])
def test_conversation_takes_tools_as_json_text_or_a_list(write, name, tools):
    (record,) = read([write("a.json", [{"messages": [USER, ASSISTANT], name: tools}])])
    assert record.tools == ('[{"name":"f"}]' if tools and len(tools) != 2 else "")


def test_conversation_knows_every_name_of_a_role(write):
    said_by = ["system", "user", "function_call", "observation", "tool", "bot"]
    roles = ["system", "user", "assistant", "tool", "tool", "assistant"]
    turns = [{"from": role, "value": str(number)} for number, role in enumerate(said_by)]
    turns[2]["value"] = '{"name": "f"}'
    (record,) = read([write("a.json", [{"conversations": turns}])])
    assert said(record) == [(role, str(number) if number != 2 else "") for number, role in enumerate(roles)]


def test_conversation_reads_openai_tool_calls(write):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    turns = [USER, call, {"role": "tool", "content": "21"}, ASSISTANT]
    (record,) = read([write("a.json", [{"messages": turns}])])
    assert (record.messages[1].content, record.messages[1].calls) == ("", (ToolCall("f", "{}"),))
