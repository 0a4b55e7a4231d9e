"""Preferences, feedback and prompts: every usual shape, what labels say, and pairs that contradict each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsr1_tune.config import CleanRun, Data
from dsr1_tune.data.clean import run
from dsr1_tune.data.clean.page import render
from dsr1_tune.data.prepare import examine, prepare
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Feedback, Message, Place, Preference, Prompt, messages_of, prompt_of
from dsr1_tune.data.rules.checker import Checker
from dsr1_tune.data.rules.packs import load_pack
from dsr1_tune.data.rules.pairs import PreferenceStats
from dsr1_tune.data.rules.text_features import view

U, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))
HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
TALK = [{"role": "system", "content": "S"}, U, {"role": "assistant", "content": "x"}, {"role": "user", "content": "R"}]
PLACE = Place("a", 1, 0)


def rated(answer: str, is_good: bool) -> Feedback:
    return Feedback((Message("user", "Q"),), Message("assistant", answer), is_good, PLACE)


def only(write: Any, row: dict[str, Any], mapping: dict[str, str] | None = None) -> Any:
    (found,) = read([write("a.jsonl", [row])], mapping)
    return found


def said(row: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages_of(row)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "A", "label": True},
        {"prompt": [U], "completion": [A], "label": True},
        {"messages": [U, A], "label": 1},
        {"messages": [U], "completion": "A", "label": True},
        {"messages": [U, A], "kto_tag": True},
        {"conversations": [HUMAN, GPT], "kto_tag": True},
        {"instruction": "Q", "input": "", "output": "A", "kto_tag": "true"},
        {"question": "Q", "response": "A", "feedback": "thumbs_up"},
        {"问题": "Q", "回答": "A", "评价": "好"},
        {"prompt": "Q", "answer": "A", "thumbs_up": True},
    ],
    ids=str,
)
def test_preferences_feedback(write, row):
    found = only(write, row)
    assert isinstance(found, Feedback)
    assert found.is_good and said(found) == [("user", "Q"), ("assistant", "A")]
    assert prompt_of(found) == found.prompt


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q", "input": "", "output": ["A", "B"]},
        {"conversations": [HUMAN, GPT], "chosen": GPT, "rejected": {"from": "gpt", "value": "B"}},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {
            "prompt": "Q",
            "chosen": [U, A],
            "rejected": [U, B],
            "score_chosen": 8,
            "score_rejected": 4,
            "messages": [U, A],
        },
        {"instruction": "Q", "chosen_response": "A", "rejected_response": "B", "chosen_avg_rating": 4.5},
        {"question": "Q", "response_j": "A", "response_k": "B"},
        {"问题": "Q", "好的回答": "A", "差的回答": "B"},
    ],
    ids=str,
)
def test_preferences(write, row):
    found = only(write, row)
    assert isinstance(found, Preference)
    assert said(found) == [("user", "Q"), ("assistant", "A"), ("assistant", "B")]
    assert found.notes == ()


def test_preferences_the_conversation_before_the_answers_tells_more_than_its_first_question(write):
    found = only(write, {"prompt": "Q", "chosen": [*TALK, A], "rejected": [*TALK, B]})
    assert [(message.role, message.content) for message in found.prompt] == [(m["role"], m["content"]) for m in TALK]
    drop = only(write, {"prompt": "Z", "chosen": [*TALK, A], "rejected": [*TALK, B]})
    assert (drop.code, drop.path) == ("turn_order", "$.chosen[0].content") and "lacks 'Z'" in drop.detail
    other = [*TALK[:-1], {"role": "user", "content": "T"}]
    drop = only(write, {"prompt": "Q", "chosen": [*TALK, A], "rejected": [*other, B]})
    assert (drop.code, drop.path) == ("turn_order", "$.rejected[3].content")


def test_preferences_scores_that_disagree_are_remarked_on(write):
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "chosen_score": 3, "rejected_score": 4.5}
    (note,) = only(write, row).notes
    assert (note.code, note.path, note.detail) == ("scores_disagree", "$.chosen_score", "chosen has 3, rejected 4.5")
    assert only(write, {**row, "rejected_score": None}).notes == ()


def test_preferences_prompts_are_made_of_the_other_kinds(write):
    rows = [{"prompt": "P", "answer": "42"}, {"prompt": "Q", "chosen": "A", "rejected": "B"}]
    found = prepare(Data(files=(write("a.jsonl", rows),)), Prompt).rows
    assert [(row.messages[0].content, row.answer) for row in found] == [("P", "42"), ("Q", None)]


def test_preferences_rules_let_a_bad_answer_be_bad():
    """What people do not like may be a refusal or break off; what they like may not."""
    refused = "I'm sorry, but as an AI language model I cannot answer that."
    checker = Checker(load_pack("general"))
    assert checker.check(rated(refused, True)).row.code == "refusal"
    bad = rated(refused, False)
    assert checker.check(bad).row is bad and view(bad).answer is None
    mended = checker.check(rated("It’s a cafÃ©.", False)).row
    assert isinstance(mended, Feedback) and mended.completion.content == "It’s a café."


ROWS = [
    {"prompt": "What is a chair for?", "chosen": "One sits on it.", "rejected": "One stands on it."},
    {"prompt": "What is a chair for?", "chosen": "One stands on it.", "rejected": "One sits on it."},
    {"prompt": "What is a table for?", "chosen": "One eats at it.", "rejected": "One eats  at it."},
    {"prompt": "What is a bed for?", "chosen": "One sleeps in it at night, and rests.", "rejected": "One cooks in it."},
    {"prompt": "What is a pen for?", "completion": "One writes with it.", "label": True},
    {"prompt": "What is a pen for?", "completion": "One writes with it.", "label": False},
    {"prompt": "What is a pen for?", "completion": "One eats with it.", "label": False},
    {"prompt": "What is a pen for?", "completion": "One eats with it.", "label": "bad"},
]
FATES = {"contradictory_preference": 2, "contradictory_label": 2, "equal_answers": 1, "exact_duplicate": 1}


def test_preferences_check_knows_pairs_and_labels(write):
    prepared = examine(Data(files=(write("a.jsonl", ROWS),)))
    report = prepared.report()
    assert report["dropped"] == FATES and report["kinds"] == {"preference": 1, "feedback": 1}
    assert PreferenceStats.counted(report["opinions"]) == PreferenceStats(1, 1, 0, 0, 1)
    assert [drop.place.index for drop in prepared.drops] == [0, 1, 2, 4, 5, 7]
    assert "other way round at line 2 (row 1)" in prepared.drops[0].detail


def test_preferences_clean_knows_pairs_and_labels_and_writes_what_can_be_read_again(write, tmp_path):
    found = run.run(CleanRun(data=Data(files=(write("a.jsonl", ROWS),), eval_share=0), out=tmp_path / "out", workers=1))
    facts = found.report
    assert facts["dropped"] == FATES and facts["kinds"] == {"preference": 1, "feedback": 1}
    assert facts["opinions"] == {**PreferenceStats(1, 1, 0, 0, 1).as_json()}
    assert (facts["duplicates"]["num_opposed"], facts["duplicates"]["num_contradictory"]) == (4, 0)
    again = list(read([found.folder / "train.jsonl"]))
    assert [type(row) for row in again] == [Preference, Feedback]
    assert said(again[0])[1:] == [("assistant", ROWS[3]["chosen"]), ("assistant", ROWS[3]["rejected"])]
    assert (said(again[1])[1], again[1].is_good) == (("assistant", "One eats with it."), False)
    rejected = [json.loads(line) for line in (found.folder / "rejected.jsonl").open(encoding="utf-8")]
    assert next(row["code"] for row in rejected if row["stage"] == "duplicates") == "contradictory_preference"
    facts["opinions"] = PreferenceStats(30, 30).as_json()
    for language, words in (("en", "right in 100.0 %"), ("zh", "只选较长的回答")):
        page = render(facts, language)
        assert words in page.replace("\u202f", " ").replace("100.0%", "100.0 %")


def test_preferences_near_copies_with_other_labels_both_stay(write, tmp_path):
    text = "A pen is for writing letters, notes and lists on paper, with ink that dries within a few seconds"
    rows = [
        {"prompt": "What is a pen for?", "completion": f"{text}.", "label": True},
        {"prompt": "What is a pen for?", "completion": f"{text} or so.", "label": False},
        {"prompt": "What is a pen for?", "completion": f"{text} or two.", "label": True},
    ]
    found = run.run(CleanRun(data=Data(files=(write("a.jsonl", rows),), eval_share=0), out=tmp_path / "out", workers=1))
    assert found.report["dropped"] == {"near_duplicate": 1}
    assert found.report["opinions"]["num_good"] == found.report["opinions"]["num_bad"] == 1


def test_real_preferences(real):
    """A public file of 300 pairs: five repeat another, and length tells little."""
    report = examine(Data(files=(real("LLaMA-Factory/dpo_en_demo.json"),))).report()
    assert report["dropped"] == {"exact_duplicate": 5}
    stats = PreferenceStats.counted(report["opinions"])
    assert stats == PreferenceStats(295, 130, 164) and not stats.length_tells
    assert list(report["noted"]) == ["uneven_lengths"]
