"""Preferences, feedback and prompts: every usual shape, what labels say, and pairs that contradict each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import CleanRun, Data
from dsr1_tune.data.clean import run
from dsr1_tune.data.clean.page import render
from dsr1_tune.data.prepare import examine, prepare
from dsr1_tune.data.read.ground_truth import RESULTS
from dsr1_tune.data.read.labels import is_good
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Feedback, Message, Place, Preference, Prompt, Record, messages_of, prompt_of
from dsr1_tune.data.rules.checker import Checker
from dsr1_tune.data.rules.pairs import Opinions, answers_differ, opposed, remarks_on_pair, stance_of
from dsr1_tune.data.rules.text_features import view
from dsr1_tune.errors import DataError

U, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))
HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
TALK = [{"role": "system", "content": "S"}, U, {"role": "assistant", "content": "x"}, {"role": "user", "content": "R"}]
PLACE = Place("a", 1, 0)


def pair(chosen: str, rejected: str, asked: str = "Q") -> Preference:
    return Preference((Message("user", asked),), Message("assistant", chosen), Message("assistant", rejected), PLACE)


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
def test_feedback(write, row):
    found = only(write, row)
    assert isinstance(found, Feedback)
    assert found.is_good and said(found) == [("user", "Q"), ("assistant", "A")]
    assert prompt_of(found) == found.prompt


@pytest.mark.parametrize(
    "label", [True, 1, 1.0, "1", "TRUE", "good", "Thumbs up", "thumbs-up", "👍", "👍🏽", "好", " 赞。"]
)
def test_labels_that_say_good(label):
    assert is_good(label) is True


@pytest.mark.parametrize("label", [False, 0, 0.0, "0", "no", "BAD", "thumbs_down", "👎", "❌", "差", "不满意"])
def test_labels_that_say_bad(label):
    assert is_good(label) is False


@pytest.mark.parametrize("label", [2, -1, 0.5, "4.5", "5/5", "maybe", "", "not good", None, ["good"], {"up": 1}])
def test_labels_that_say_nothing(label):
    assert is_good(label) is None


def test_a_rating_is_never_taken_for_a_label(write):
    """1 among ratings may be the worst of five, so that it says nothing either."""
    rows = [{"prompt": f"Q{n}", "completion": "A", "label": n} for n in (4, 1, 0)]
    drops = list(read([write("a.jsonl", rows)]))
    assert {(drop.code, drop.path) for drop in drops} == {("unknown_label", "$.label")}
    assert "4 is a rating" in drops[0].detail and "1 may be a rating, as 4 is" in drops[1].detail
    assert all("write true or false" in drop.fix for drop in drops)
    # A column of ratings is a column like any other, until somebody calls it a label.
    stars = [{"prompt": "Q", "response": "A", "rating": 5}, {"prompt": "R", "response": "A", "rating": 1}]
    file = write("b.jsonl", stars)
    assert {type(row) for row in read([file])} == {Record}
    assert [row.code for row in read([file], {"label": "rating"})] == ["unknown_label"] * 2
    with pytest.raises(DataError, match="no row has an answer with a label") as error:
        prepare(Data(files=(file,)), Feedback)
    assert "--map label=NAME" in error.value.hint
    likes = write("c.jsonl", [{"prompt": "Q", "response": "A", "rating": 1}])
    assert [row.is_good for row in read([likes], {"label": "rating"})] == [True]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "answer": "A", "label": "cardiology"},
        {"messages": [U, A], "label": 3},
        {"instruction": "Q", "output": "positive", "label": "positive"},
    ],
    ids=str,
)
def test_a_label_may_be_a_topic(write, row):
    assert isinstance(only(write, row), Record)


def test_a_row_without_the_label_that_the_others_have(write):
    rows = [{"prompt": f"Q{n}", "completion": "A", "label": bool(n % 2)} for n in range(4)]
    odd = [{"prompt": "Q", "completion": "A", "label": None}, {"prompt": "Q", "completion": "A"}]
    found = [row for row in read([write("a.jsonl", [*rows, *odd])]) if isinstance(row, Drop)]
    assert [(drop.code, drop.path) for drop in found] == [("null_value", "$.label"), ("missing_field", "$.label")]


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


def test_the_conversation_before_the_answers_tells_more_than_its_first_question(write):
    found = only(write, {"prompt": "Q", "chosen": [*TALK, A], "rejected": [*TALK, B]})
    assert [(message.role, message.content) for message in found.prompt] == [(m["role"], m["content"]) for m in TALK]
    drop = only(write, {"prompt": "Z", "chosen": [*TALK, A], "rejected": [*TALK, B]})
    assert (drop.code, drop.path) == ("turn_order", "$.chosen[0].content") and "lacks 'Z'" in drop.detail
    other = [*TALK[:-1], {"role": "user", "content": "T"}]
    drop = only(write, {"prompt": "Q", "chosen": [*TALK, A], "rejected": [*other, B]})
    assert (drop.code, drop.path) == ("turn_order", "$.rejected[3].content")


def test_scores_that_disagree_are_remarked_on(write):
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "chosen_score": 3, "rejected_score": 4.5}
    (note,) = only(write, row).notes
    assert (note.code, note.path, note.detail) == ("scores_disagree", "$.chosen_score", "chosen has 3, rejected 4.5")
    assert only(write, {**row, "rejected_score": None}).notes == ()


@pytest.mark.parametrize(
    ("row", "mapping", "answer"),
    [
        ({"prompt": "Q", "ground_truth": 42}, {}, "42"),
        ({"messages": [U], "answer": "42"}, {}, "42"),
        ({"messages": [U], "solution": "42"}, {}, "42"),
        ({"prompt": [U], "reward_model": {"style": "rule", "ground_truth": "42"}}, {}, "42"),
        ({"problem": "Q", "solution": "6 * 7", "answer": "42"}, {"ground_truth": "answer"}, "42"),
        ({"prompt": "Q", "ground_truth": None}, {}, None),
        ({"prompt": "Q", "expected": "42", "ground_truth": "43"}, {}, "42"),
        ({"prompt": "Q", "expected": " ", "ground_truth": 42.0}, {}, "42"),
        ({"prompt": "Q", "expected": "41", "Final": "42"}, {"ground_truth": "final"}, "42"),
        ({"prompt": "Q", "ground_truth": ""}, {}, None),
        ({"prompt": [U], "reward_model": "a-model"}, {}, None),
    ],
    ids=str,
)
def test_prompts(write, row, mapping, answer):
    found = only(write, row, mapping)
    assert isinstance(found, Prompt)
    assert (said(found), found.answer) == ([("user", "Q")], answer)


def test_prompts_are_made_of_the_other_kinds(write):
    rows = [{"prompt": "P", "answer": "42"}, {"prompt": "Q", "chosen": "A", "rejected": "B"}]
    found = prepare(Data(files=(write("a.jsonl", rows),)), Prompt).rows
    assert [(row.messages[0].content, row.answer) for row in found] == [("P", "42"), ("Q", None)]


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        *[({"prompt": "Q", "answer": "6 * 7, so 42", name: "42"}, {}) for name in RESULTS[:-1]],
        ({"prompt": "Q", "answer": "6 * 7, so 42", "reward_model": {"ground_truth": 42}}, {}),
        ({"messages": [U, {"role": "assistant", "content": "6 * 7"}], "right": "42"}, {"ground_truth": "right"}),
        ({"prompt": "Q", "chosen": "6 * 7", "rejected": "B", "expected": 42}, {}),
    ],
    ids=str,
)
def test_a_result_goes_before_an_answer(write, row, mapping):
    (found,) = prepare(Data(files=(write("a.jsonl", [row]),), map=mapping), Prompt).rows
    assert found.answer == "42"


def test_a_result_that_is_no_text_drops_the_row(write):
    rows = [{"prompt": "P", "answer": "42", "expected": [4, 2]}, {"prompt": "Q", "answer": "42", "expected": ""}]
    found = prepare(Data(files=(write("a.jsonl", rows),)), Prompt)
    assert [(drop.code, drop.path, drop.place.line) for drop in found.drops] == [("wrong_type", "$.expected", 1)]
    assert [row.answer for row in found.rows] == ["42"]


def test_equal_answers_and_uneven_ones():
    assert answers_differ(pair("A  b\n", "A b")).code == "equal_answers"
    fine = pair("A b", "a b")
    assert answers_differ(fine) is fine and remarks_on_pair(fine) == ()
    (note,) = remarks_on_pair(pair("short", "long " * 60))
    assert (note.code, note.detail) == ("uneven_lengths", "rejected is 59.8 times as long (299 and 5 characters)")
    # Two short answers may differ by any factor.
    assert remarks_on_pair(pair("no", "certainly not")) == ()


def test_who_disagrees():
    rows = [pair("A", "B"), pair("B ", "a"), pair("A", "B", "R"), rated("A", True), rated("A", False), rated("B", True)]
    assert opposed(map(stance_of, rows)) == {0: 1, 1: 0, 3: 4, 4: 3}
    assert stance_of(Record((Message("user", "Q"), Message("assistant", "A")), PLACE)) == 0


def test_what_length_alone_tells():
    found = Opinions.of([pair("long answer", "b"), pair("a", "longer"), pair("c", "d"), pair("even longer", "d")])
    assert (found.num_pairs, found.num_chosen_longer, found.num_rejected_longer) == (4, 2, 1)
    assert found.longer_share == found.length_share == 0.625 and not found.length_tells
    ((text, is_warning),) = found.sentences()
    assert "longer answer in 2 of 4 pairs, rejected in 1: who only takes the longer one is right in 62%" in text
    assert not is_warning
    shorter = Opinions.of([pair("a", f"longer {n}") for n in range(20)])
    assert (shorter.longer_share, shorter.length_share, shorter.length_tells) == (0, 1, True)
    ((text, is_warning),) = shorter.sentences()
    assert "who only takes the shorter one is right in 100%" in text and is_warning
    assert Opinions.of([rated("A", True)]).sentences() == [
        ("Labels: 1 good, 0 bad. One kind alone teaches little: add the other.", True)
    ]


def test_rules_let_a_bad_answer_be_bad():
    """What people do not like may be a refusal or break off; what they like may not."""
    refused = "I'm sorry, but as an AI language model I cannot answer that."
    checker = Checker(run._pack(Data(files=(Path("a"),))))
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


def test_check_knows_pairs_and_labels(write):
    prepared = examine(Data(files=(write("a.jsonl", ROWS),)))
    report = prepared.report()
    assert report["dropped"] == FATES and report["kinds"] == {"preference": 1, "feedback": 1}
    assert Opinions.counted(report["opinions"]) == Opinions(1, 1, 0, 0, 1)
    assert [drop.place.index for drop in prepared.drops] == [0, 1, 2, 4, 5, 7]
    assert "other way round at line 2 (row 1)" in prepared.drops[0].detail


def test_clean_knows_pairs_and_labels_and_writes_what_can_be_read_again(write, tmp_path):
    found = run.run(CleanRun(data=Data(files=(write("a.jsonl", ROWS),), eval_share=0), out=tmp_path / "out", workers=1))
    facts = found.report
    assert facts["dropped"] == FATES and facts["kinds"] == {"preference": 1, "feedback": 1}
    assert facts["opinions"] == {**Opinions(1, 1, 0, 0, 1).as_json()}
    assert (facts["duplicates"]["num_opposed"], facts["duplicates"]["num_contradictory"]) == (4, 0)
    again = list(read([found.folder / "train.jsonl"]))
    assert [type(row) for row in again] == [Preference, Feedback]
    assert said(again[0])[1:] == [("assistant", ROWS[3]["chosen"]), ("assistant", ROWS[3]["rejected"])]
    assert (said(again[1])[1], again[1].is_good) == (("assistant", "One eats with it."), False)
    rejected = [json.loads(line) for line in (found.folder / "rejected.jsonl").open(encoding="utf-8")]
    assert next(row["code"] for row in rejected if row["stage"] == "duplicates") == "contradictory_preference"
    facts["opinions"] = Opinions(30, 30).as_json()
    for language, words in (("en", "right in 100.0 %"), ("zh", "只选较长的回答")):
        page = render(facts, language)
        assert words in page.replace("\u202f", " ").replace("100.0%", "100.0 %")


def test_near_copies_with_other_labels_both_stay(write, tmp_path):
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
    opinions = Opinions.counted(report["opinions"])
    assert opinions == Opinions(295, 130, 164) and not opinions.length_tells
    assert list(report["noted"]) == ["uneven_lengths"]
