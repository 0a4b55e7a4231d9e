"""Turns in one text: told apart where tags plainly mark a dialogue, left alone everywhere else."""

from __future__ import annotations

import pytest

from dsr1_tune.data.read.read import open_files, read
from dsr1_tune.data.read.role_tags import Dialogue, begins_with_role_tag, split_role_tags
from dsr1_tune.data.record import Drop, Preference, Prompt, Record

THREE = [("user", "Q1"), ("assistant", "A1"), ("user", "Q2")]


def said(messages):
    return [(message.role, message.content) for message in messages]


@pytest.mark.parametrize(
    "text",
    [
        " <user>: Q1 <bot>: A1 <user>: Q2",
        "<user>:Q1<bot>:A1<user>:Q2",
        "<User>： Q1\n<Bot>： A1\n<User>： Q2\n",
        "<human>: Q1 <assistant>: A1 <human>: Q2 <assistant>:",
        "Human: Q1 Assistant: A1 Human: Q2",
        "\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\n\nAssistant:",
        "USER: Q1\nASSISTANT: A1\nUSER: Q2",
        "Human: Q1\nAI: A1\nHuman: Q2\nAI:",
        "### Human: Q1### Assistant: A1### Human: Q2",
        "用户：Q1\n助手：A1\n用户：Q2",
        "用户: Q1 助手: A1 用户: Q2 助手:",
        "问：Q1\n答：A1\n问：Q2",
        "问: Q1 答: A1 问: Q2 答：",
    ],
)
def test_role_tags_tagged_questions(write, text):
    rows = [{"instruction": text, "input": "", "output": "A2"}, {"question": text, "answer": "A2"}]
    for record, path in zip(read([write("a.json", rows)]), ("$.instruction", "$.question"), strict=True):
        assert said(record.messages) == [*THREE, ("assistant", "A2")]
        assert {message.path for message in record.messages[:-1]} == {path}
        (note,) = record.notes
        assert (note.code, note.stage, note.path, note.place) == ("flattened_turns", "read", path, record.place)
        assert "3 turns stood in one text behind" in note.detail
        assert note.row == record.row


def test_role_tags_a_lone_tag_is_taken_away(write):
    (record,) = read([write("a.json", [{"instruction": " <user>: 肝癌如何治疗？", "output": "手术"}])])
    assert said(record.messages) == [("user", "肝癌如何治疗？"), ("assistant", "手术")]
    assert record.notes[0].detail == "the tag <user>: stood before the question, and was taken away"


def test_role_tags_a_system_prompt_may_come_first(write):
    text = "<system>: Be kind. <user>: Q1 <bot>: A1 <user>: Q2"
    (record,) = read([write("a.json", [{"input": text, "output": "A2"}])])
    assert said(record.messages) == [("system", "Be kind."), *THREE, ("assistant", "A2")]


def test_role_tags_the_answers_own_tag_goes_too(write):
    (record,) = read([write("a.json", [{"input": "<user>: Q1 <bot>: A1 <user>: Q2", "output": "<bot>: A2"}])])
    assert record.answer == "A2"
    (record,) = read([write("b.json", [{"input": "Q", "output": "<bot>: is a tag"}])])
    assert (record.answer, record.notes) == ("<bot>: is a tag", ())


@pytest.mark.parametrize(
    "text",
    [
        "Q: 2+2?\nA: 4\nQ: 3+3?\nA:",
        "Q: what is 2+2?",
        "问：今天天气怎么样？",
        "用户：如何退货？",
        "Human: a short history",
        "User: admin",
        "Summarise this dialogue.\nUser: Q1\nAssistant: A1\nUser: Q2",
        "总结下面的对话。用户：你好 助手：您好",
        "What does <user>: mean in <bot>: logs?",
        "<user><name>Bob</name></user> What is this XML?",
        "患者：咳嗽三天。医生：多喝水。患者：谢谢。",
        "Username: bob Assistant: alice",
        "用户名：bob 助手：x",
    ],
)
def test_role_tags_other_texts_stay_as_they_are(write, text):
    (record,) = read([write("a.json", [{"input": text, "output": "A"}])])
    assert said(record.messages) == [("user", text), ("assistant", "A")]
    assert record.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        "<user>: Q1 <bot>: A1",
        "<user>: Q1 <user>: Q2 <bot>: A1 <user>: Q3",
        "<user>: Q1 <bot>: <user>: Q2",
        "<user>: <bot>: A1 <user>: Q2",
        "Human: Q1 Assistant: A1 Assistant: A2 Human: Q2",
        "用户：Q1 助手：A1",
    ],
)
def test_role_tags_tags_that_do_not_alternate_are_text_with_a_note(write, text):
    (record,) = read([write("a.json", [{"input": text, "output": "A"}])])
    assert said(record.messages) == [("user", text), ("assistant", "A")]
    (note,) = record.notes
    assert (note.code, note.path) == ("flattened_turns", "$.input")
    assert "mark no turns that alternate: kept as one text" in note.detail
    assert note.fix


def test_role_tags_a_dialogue_that_the_instruction_speaks_about_is_text(write):
    row = {"instruction": "Summarise.", "input": "User: Q1\nAssistant: A1\nUser: Q2", "output": "S"}
    (record,) = read([write("a.json", [row])])
    assert record.question == "Summarise.\nUser: Q1\nAssistant: A1\nUser: Q2"


def test_role_tags_words_of_another_family_are_text():
    dialogue = split_role_tags("Human: what is\nuser: x\nAssistant: A1\nHuman: and\nbot: y", has_answer=True)
    assert isinstance(dialogue, Dialogue)
    assert [text for _, text in dialogue.turns] == ["what is\nuser: x", "A1", "and\nbot: y"]


def test_role_tags_a_whole_dialogue_in_one_text(write):
    text = "### Human: Q1### Assistant: A1### Human: Q2### Assistant: A2"
    (reading,) = open_files([write("a.json", [{"text": text}] * 2)])
    first, _ = reading.rows
    assert isinstance(first, Record)
    assert said(first.messages) == [*THREE, ("assistant", "A2")]
    assert (reading.format, first.notes[0].path) == ("tagged text", "$.text")
    (record,) = read([write("b.json", [{"conversation": text}])])
    assert said(record.messages) == [*THREE, ("assistant", "A2")]


def test_role_tags_texts_without_a_dialogue_are_no_rows(write):
    rows = [{"text": "Human: Q Assistant: A"}, {"text": "once upon a time"}, {"text": "Human: Q Human: R Assistant: A"}]
    _, *drops = read([write("a.json", rows)])
    assert [drop.code for drop in drops] == ["unknown_fields", "unknown_fields"]
    (drop,) = read([write("b.json", [{"conversation": "Human: Q Human: R Assistant: A"}])])
    assert isinstance(drop, Drop)
    assert (drop.code, drop.path) == ("wrong_type", "$.conversation")
    assert "no turns that alternate" in drop.detail


def test_role_tags_preferences_whose_answers_hold_the_conversation(write):
    before = "\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\n\nAssistant: "
    (row,) = read([write("a.json", [{"chosen": f"{before}good", "rejected": f"{before}bad"}])])
    assert isinstance(row, Preference)
    assert (said(row.prompt), row.chosen.content, row.rejected.content) == (THREE, "good", "bad")


def test_role_tags_prompts(write):
    (row,) = read([write("a.json", [{"prompt": "Human: Q1 Assistant: A1 Human: Q2 Assistant:"}])])
    assert isinstance(row, Prompt)
    assert said(row.messages) == THREE


def test_role_tags_the_quick_look_sees_every_dialogue():
    for text in ("<user>: a", " \nHuman : a", "### Human: a", "用户：a", "问: a", "System: a", "系统：a"):
        assert begins_with_role_tag(text)
    for text in ("users: a", "Q: a", "<users>: a", "提问：a", ""):
        assert not begins_with_role_tag(text)


def test_role_tags_liver_cancer(real):
    """A real file: a thousand rows, each of one to eleven turns behind <user>: and <bot>:."""
    rows = list(read([real("Huatuo/liver_cancer.json")]))
    assert len(rows) == 1000
    for row in rows:
        text = row.row["instruction"]
        assert len(row.messages) == text.count("<user>:") + text.count("<bot>:") + 1
        rebuilt = " ".join(f"<{'user' if m.role == 'user' else 'bot'}>: {m.content}" for m in row.messages[:-1])
        assert rebuilt.split() == text.split()
        assert row.answer == row.row["output"]
        assert [note.code for note in row.notes] == ["flattened_turns"]
