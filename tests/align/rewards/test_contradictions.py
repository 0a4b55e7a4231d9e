"""Contradictions told by rules: denials, wrong sums, several results; and what is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dsr1_tune.align.rewards.component import Answered
from dsr1_tune.align.rewards.contradictions import contradictions, several_results, statements, wrong_sums, yes_or_no
from dsr1_tune.align.rewards.logic import NoContradiction


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
def test_contradictions_of_a_text_with_itself(text: str, is_contradictory: bool) -> None:
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
    "text",
    [
        "First add: the result is 7. Then double it: the result is 14.",
        "先相加，结果是7。再乘以2，结果是14。",
        "(a) The answer is 5. (b) The answer is 7.",
        "#### 1. Overview\nIt helps.\n#### 2. Details\nIt helps much.",
    ],
)
def test_results_of_steps_and_parts_are_no_contradiction(text: str, reply: Callable[..., Answered]) -> None:
    assert NoContradiction(type="no_contradiction").score(reply("?", text)) == 1


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("The answer is 5. No, the answer is 7.", [5, 7]),
        (r"The answer is 50%, so \boxed{50}.", []),
        ("The answer is 5. So \\boxed{5.0}", []),
        ("答案是3。最终答案：4", [3, 4]),
        ("It is 3. It is 4.", []),
    ],
)
def test_several_results_of_a_text(text: str, results: list[float]) -> None:
    assert [float(one) for one in several_results(text)] == results


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes, you can.", True),
        ("**No**, never.", False),
        ("可以的", True),
        ("不可以", False),
        ("Perhaps", None),
        ("No. 5", None),
    ],
)
def test_yes_or_no_at_the_beginning(text: str, said: bool | None) -> None:
    assert yes_or_no(text) is said


def test_statements_are_no_questions_conditions_or_guesses() -> None:
    found = statements("Aspirin is safe here. Is it? If it hurts, call. It may help some. Bread is not good food.")
    assert [(one.text, one.is_denied) for one in found] == [
        ("Aspirin is safe here.", False),
        ("Bread is not good food.", True),
    ]
