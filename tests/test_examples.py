"""The examples: good rows as they should be, bad rows that are all found, rewards that tell answers apart."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.align.rewards import preview
from dsr1_tune.align.rewards.layered import LayeredReward
from dsr1_tune.config import Data, LoraRun
from dsr1_tune.config.load import load_config
from dsr1_tune.data.prepare import examine
from dsr1_tune.data.prepared import Prepared
from dsr1_tune.data.record import Feedback, Preference, Prompt, Record
from dsr1_tune.errors import ConfigError

MEDICAL = Path(__file__).parents[1] / "examples" / "medical" / "medical.json"
ALIGNMENT = MEDICAL.parents[1] / "medical-alignment"
REWARDS = sorted(MEDICAL.parents[1].glob("**/rewards*.yaml"))
DISCLAIMERS = ("This is general health information, not medical advice.", "以上为一般健康知识，不能代替医生的诊断。")

# What is wrong with the rows that are bad on purpose, and where in the row.
BAD = Counter(
    {
        ("not_an_object", "$", "text"): 1,
        ("not_an_object", "$", "a number"): 1,
        ("unknown_fields", "$", "the object has no fields"): 1,
        ("missing_field", "$.output", "add 'output'"): 1,
        ("missing_field", "$.output", "rename 'ouput' to 'output'"): 1,
        ("null_value", "$.output", "is null"): 1,
        ("wrong_type", "$.instruction", "a list"): 1,
        ("wrong_type", "$.output", "an object"): 1,
        ("wrong_type", "$.history[0]", "not a pair"): 1,
        ("empty_question", "$.instruction", "is blank"): 1,
        ("empty_answer", "$.output", "is blank"): 2,
        ("answer_too_short", "$.output", "1 character"): 1,
        ("exact_duplicate", "$", "the same as line"): 3,
    }
)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """As the example's own settings have it: they name its file from the top of the repository."""
    data = load_config(LoraRun, MEDICAL.with_name("lora.yaml")).data
    assert [MEDICAL.parents[2] / file for file in data.files] == [MEDICAL]
    return examine(data.model_copy(update={"files": (MEDICAL,)}))


def test_there_are_enough_good_records(prepared: Prepared) -> None:
    assert len(prepared.records) >= 190
    assert all(isinstance(row, Record) for row in prepared.rows)


def test_every_bad_row_is_found(prepared: Prepared) -> None:
    assert len(BAD) >= 12
    for (code, path, said), number in BAD.items():
        found = [drop for drop in prepared.drops if (drop.code, drop.path) == (code, path)]
        assert sum(said in f"{drop.detail}; {drop.fix}" for drop in found) == number, (code, path, said)
    assert len(prepared.drops) == BAD.total()
    lines = MEDICAL.read_text(encoding="utf-8").splitlines()
    for drop in prepared.drops:
        assert drop.fix and drop.place
        assert json.loads(lines[drop.place.line - 1].rstrip(",")) == drop.row


def test_every_good_answer_ends_with_a_disclaimer(prepared: Prepared) -> None:
    assert [record.place for record in prepared.records if not record.answer.endswith(DISCLAIMERS)] == []
    chinese = [record for record in prepared.records if record.answer.endswith(DISCLAIMERS[1])]
    assert len(chinese) >= 20


def test_questions_are_asked_once(prepared: Prepared) -> None:
    asked = Counter(tuple(message.content for message in record.messages[:-1]) for record in prepared.records)
    assert [question for question, times in asked.items() if times > 1] == []


def rows_of(name: str) -> tuple[Any, ...]:
    prepared = examine(Data(files=(ALIGNMENT / name,)))
    assert prepared.drops == ()
    return tuple(prepared.rows)


@pytest.mark.parametrize(("name", "least"), [("preferences.jsonl", 300), ("preferences.zh.jsonl", 40)])
def test_pairs_are_not_told_apart_by_length(name: str, least: int) -> None:
    pairs = rows_of(name)
    assert len(pairs) >= least and all(isinstance(pair, Preference) for pair in pairs)
    assert len({pair.prompt for pair in pairs}) == len(pairs)
    for length in (len, lambda text: len(text.split())) if least == 300 else (len,):
        both = [(length(pair.chosen.content), length(pair.rejected.content)) for pair in pairs]
        chosen_is_longer = sum((a > b) + 0.5 * (a == b) for a, b in both) / len(both)
        assert 0.43 < chosen_is_longer < 0.57
        similar = sum(abs(a - b) <= 0.25 * max(a, b) for a, b in both) / len(both)
        assert similar > 0.5


def test_half_of_the_pairs_and_more_differ_in_safety_or_helpfulness() -> None:
    differs = Counter(pair.row["differs"] for pair in rows_of("preferences.jsonl"))
    assert set(differs) == {"safety", "helpfulness", "accuracy", "style"}
    assert min(differs["safety"], differs["helpfulness"]) > 0.35 * differs.total()


def test_feedback_says_of_as_many_answers_that_they_are_good_as_bad() -> None:
    labels = Counter(row.is_good for row in rows_of("feedback.jsonl") if isinstance(row, Feedback))
    assert labels == {True: 30, False: 30}


def test_prompts_can_be_checked_or_not() -> None:
    rows = rows_of("prompts.jsonl")
    assert len(rows) == 60 and all(isinstance(row, (Prompt, Record)) for row in rows)


@pytest.mark.parametrize("file", REWARDS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_shipped_reward_file_can_be_read(file: Path) -> None:
    if file.name == "rewards-models.yaml":  # its reward model is made by whoever uses it; all else is in order
        with pytest.raises(ConfigError) as caught:
            LayeredReward.read(file)
        assert [line.split(": ")[1] for line in caught.value.message.splitlines()] == ["layers[2].components[0].path"]
    else:
        assert LayeredReward.read(file).components


def test_the_medical_reward_tells_answers_apart() -> None:
    reward = LayeredReward.read(ALIGNMENT / "rewards.yaml")
    tested = preview.run(reward, [ALIGNMENT / "answers.jsonl"], {}, lambda done, of: None).tested
    totals = [one.result.total for one in tested]
    assert not any(one.result.errors for one in tested)
    called, waited, waited_for_a_sign, rinsed, alarmed, repeated, chinese, cut, right, wrong, contradicted, careless = (
        totals
    )
    assert called > waited_for_a_sign > waited
    assert rinsed > cut > alarmed > max(repeated, chinese)
    assert right > 1.4 and max(wrong, contradicted) < 0.5 and careless < rinsed


def test_the_medical_reward_never_prefers_a_rejected_answer() -> None:
    reward = LayeredReward.read(ALIGNMENT / "rewards.yaml")
    tested = preview.run(reward, [ALIGNMENT / "preferences.jsonl"], {}, lambda done, of: None).tested
    both = list(zip(tested[::2], tested[1::2], strict=True))
    assert sum(good.result.total > bad.result.total for good, bad in both) > 25
    assert not any(good.result.total < bad.result.total for good, bad in both)
