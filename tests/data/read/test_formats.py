"""Every accepted format is understood; what a row lacks is said."""

from __future__ import annotations

import json
import unicodedata

import pytest

from dsr1_tune.data.read.formats import parse_mapping
from dsr1_tune.data.read.ground_truth import result_of
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Preference, Prompt, Record
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
def test_formats_one_question_and_answer(write, row):
    (record,) = read([write("a.json", [row])])
    assert isinstance(record, Record)
    assert said(record) == [("user", "Q"), ("assistant", "A")]
    assert (record.question, record.answer, record.row) == ("Q", "A", row)
    assert (record.place.line, record.place.index) == (2, 0)


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
def test_formats_preferences(write, row):
    (preference,) = read([write("a.json", [row])])
    assert isinstance(preference, Preference)
    assert said(preference) == [("user", "Q"), ("assistant", "A"), ("assistant", "B")]


def test_formats_a_preference_needs_both_answers(write):
    rows = [{"prompt": "Q", "chosen": "A", "rejected": "B"}, {"prompt": "Q", "chosen": "A"}]
    _, drop = read([write("a.json", rows)])
    assert (drop.code, drop.path) == ("missing_field", "$.rejected")
    # One of the two beside a whole question and answer is just a further column.
    (record,) = read([write("b.json", [{"question": "Q", "answer": "A", "chosen": True}])])
    assert isinstance(record, Record)


@pytest.mark.parametrize("row", [{"prompt": "Q"}, {"question": "Q"}, {"prompt": [USER]}, {"messages": [USER]}], ids=str)
def test_formats_prompts(write, row):
    (prompt,) = read([write("a.json", [row])])
    assert isinstance(prompt, Prompt)
    assert said(prompt) == [("user", "Q")]


def test_formats_a_prompt_with_a_checkable_result(write):
    (prompt,) = read([write("a.json", [{"prompt": "Q", "ground_truth": 42}])])
    assert prompt.answer == "42"


def test_formats_mapping(write):
    file = write("a.csv", "id,title,ask,answer,reply\n1,T,X,no,A\n")
    (record,) = read([file], {"question": "title+ask", "answer": "reply"})
    assert said(record) == [("user", "T\nX"), ("assistant", "A")]
    (record,) = read([write("b.json", [{"chat": [USER, ASSISTANT]}])], {"messages": "chat"})
    assert said(record) == [("user", "Q"), ("assistant", "A")]
    (record,) = read(
        [write("c.json", [{"input": "Q", "good": "A", "bad": "B"}])], {"chosen": "good", "rejected": "bad"}
    )
    assert isinstance(record, Preference)


@pytest.mark.parametrize(("stored", "given"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_formats_mapping_finds_names_however_accents_are_stored(write, stored, given):
    row = {unicodedata.normalize(stored, name): text for name, text in (("질문", "Q"), ("Réponse", "A"), ("정답", "B"))}
    names = {ours: unicodedata.normalize(given, said) for ours, said in (("question", "질문"), ("answer", "réponse"))}
    (record,) = read([write("a.json", [row])], names)
    assert said(record) == [("user", "Q"), ("assistant", "A")]
    assert result_of(row, unicodedata.normalize(given, "정답")) == "B"


def test_formats_mapping_may_fit_only_one_of_the_files(write):
    files = [write("a.json", [{"x": "Q", "y": "A"}]), write("b.json", [{"input": "Q", "output": "A"}])]
    assert all(isinstance(row, Record) for row in read(files, {"question": "x", "answer": "y"}))


def test_formats_mapping_to_a_missing_column_names_those_that_exist(write):
    with pytest.raises(DataError, match="answer=replies: no row has such a field") as caught:
        list(read([write("a.json", [{"title": "Q", "reply": "A"}])], {"question": "title", "answer": "replies"}))
    assert caught.value.hint == "the fields are: reply, title"


def test_formats_mapping_with_an_unknown_name(write):
    with pytest.raises(ConfigError, match="no name 'anser'") as caught:
        list(read([write("a.json", [{"q": "Q"}])], {"anser": "reply"}))
    assert "did you mean answer=reply?" in caught.value.hint


def test_formats_parse_mapping():
    assert parse_mapping(["question=title+ask, answer=reply", "system=s"]) == {
        "question": "title+ask",
        "answer": "reply",
        "system": "s",
    }
    with pytest.raises(ConfigError, match="not of the form"):
        parse_mapping(["question"])


def test_formats_several_possible_answers_are_not_guessed(write):
    (drop,) = read([write("a.json", [{"question": "Q", "answer": "42", "response": "It is 42"}])])
    assert isinstance(drop, Drop)
    assert (drop.code, drop.fix) == ("ambiguous_fields", "choose with --map answer=answer")
