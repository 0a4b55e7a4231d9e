"""The final answer of a text, as text and as a number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.text.final_answer import MAX_CHARS, final_answer, final_numbers, same_text

TABLE = yaml.safe_load(Path(__file__).with_name("final_answers.yaml").read_text(encoding="utf-8"))
NUMBERS = [
    pytest.param(*row, id=f"{kind}-{number}")
    for kinds in TABLE.values()
    for kind, rows in kinds.items()
    for number, row in enumerate(rows)
    if len(row) == 2
]


def value_of(text: str) -> Fraction | None:
    number = final_answer(text).number
    return number.value if number else None


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_final_answer_number_of_the_table(text: str, number: str | None) -> None:
    assert value_of(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000", 1000),
        ("1/2", Fraction(1, 2)),
        ("It is 1 1/2 cups", Fraction(3, 2)),
        (r"so \boxed{\dfrac{1}{2}} it is, not 3", Fraction(1, 2)),
        ("50%", Fraction(1, 2)),
        ("百分之五十", Fraction(1, 2)),
        ("The answer is **42**. Check: 6 x 7", 42),
        ("First 12, then 15. Answer: 3 + 4 = 7", 7),
        ("答案：-7", -7),
        ("答案是三十二。", 32),
        ("8 apples and 9 pears, so 17.", 17),
        ("so 5-3", 3),
        ("−3", -3),
        ("#### 1,234", 1234),
        ("3e-4", Fraction(3, 10_000)),
        ("１２", 12),
        ("12，一般如此", 12),
        ("The total is 15.\n\n#### Note 2: rounding\nFine.", 15),
        ("The total is 15.\n1. Rounded\n2. Checked", 15),
        ("温度为-5℃", -5),
        ("零下5度", -5),
        ("答案是负三", -3),
        ("minus 5", -5),
        ("5岁-10岁", 10),
        ("The answer is the sum of 3 and 4: 7.", 7),
        ("The answer is not 5, it is 7.", 7),
        ("答案是用3乘4得到12", 12),
        ("答案是12=3*4", 12),
        ("Answer: 12 apples (3 bags of 4)", 12),
        (r"\boxed{3\frac{1}{2}}", Fraction(7, 2)),
        (r"\frac34", Fraction(3, 4)),
        ("3×10⁸", 3 * 10**8),
        ("12²", 144),
        ("10^3", 1000),
        ("3千万", 3 * 10**7),
        ("2百万", 2 * 10**6),
        ("2万5千", 25_000),
        ("1亿2千万", 120_000_000),
        ("一百二", 120),
        ("一万二", 12_000),
        ("一百零二", 102),
        ("一样", None),
        ("none", None),
        ("1/0", None),
        ("1e400000", None),
    ],
)
def test_final_answer_number(text: str, number: float | Fraction | None) -> None:
    assert value_of(text) == number


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("17 plus 25 is 42.", 42),
        ("The answer is 42 because 40 and 2 make it.", 42),
        ("答案：1,000 元", 1000),
        ("3 + 4 = 7\n#### 7\nand 8 would be wrong", 7),
        ("about −2.5 degrees", -2.5),
        ("it is 3/4", 0.75),
        ("none", None),
    ],
)
def test_final_answer_number_of_prose(answer: str, number: float | None) -> None:
    assert value_of(answer) == (number if number is None else Fraction(str(number)))


def test_same_text_leaves_out_what_makes_no_difference() -> None:
    assert same_text(" “The  Answer”。") == same_text("the answer")
    assert same_text("(B).") == same_text("b)") == same_text("**B**") == "b"
    for one, other in (("5!", "5"), (".5", "5"), ("(1,2]", "[1,2)"), ("2*3", "23"), ("a_1", "a1")):
        assert same_text(one) != same_text(other)


@pytest.mark.parametrize(
    ("text", "part", "is_marked"),
    [
        (r"so \boxed{\frac{1}{2}} and \boxed{B}", "B", True),
        (r"\boxed{7} but \boxed{8", "7", True),
        ("Answer: 5\nThe final answer is **6**\nDone.", "6", True),
        ("答案：北京\n谢谢", "北京", True),
        ("it costs 5\n#### 7\n", "7", True),
        ("#### 3. Details of it\nSleep well.", "#### 3. Details of it\nSleep well.", False),
        ("  Rest. ", "Rest.", False),
        ("", "", False),
    ],
)
def test_final_answer_text(text: str, part: str, is_marked: bool) -> None:
    found = final_answer(text)
    assert (found.text, found.is_marked) == (part, is_marked)


def test_final_answer_is_not_read_beyond_what_a_line_holds() -> None:
    assert len(final_answer("Answer: " + "a" * 10_000).text) == MAX_CHARS
    assert final_answer("\\boxed{" + "1" * (MAX_CHARS + 1) + "}").is_marked is False


def test_final_numbers_are_all_that_are_named_as_the_answer() -> None:
    named = final_numbers("The answer is 5. Check.\n" r"The final answer is \boxed{50\%}. The result is 9.")
    assert [(one.value, one.is_percent) for one in named] == [(5, False), (Fraction(1, 2), True)]
    assert final_numbers("(a) The answer is 5. (b) The answer is 7.") == []


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["The answer is {}.", "答案是{}。", r"\boxed{{{}}}", "#### {}", "so 3 + 4 = {}"]),
)
def test_final_answer_number_is_read_behind_every_mark(number: int, mark: str) -> None:
    assert value_of(f"First 17, then 18.\n{mark.format(number)}") == number


@given(st.text(max_size=300))
def test_final_answer_bears_any_text(text: str) -> None:
    found = final_answer(text)
    assert found.number is None or isinstance(found.number.value, Fraction)
    assert isinstance(same_text(text), str)
