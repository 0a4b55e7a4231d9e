"""Numbers in texts: every spelling of a number gives the number back, and no text is too odd."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.text.numbers import NUMBER_WORDS, han_number, numbers_in, on_one_line

HAN = "零一二三四五六七八九"


def in_han(number: int) -> str:
    """0 to 99,999,999 as it is read out in Chinese: 10,305 → 一万零三百零五."""
    if number >= 10_000:
        rest = number % 10_000
        return in_han(number // 10_000) + "万" + ("" if not rest else ("零" if rest < 1000 else "") + in_han(rest))
    digits = f"{number:04d}"
    text = "".join(HAN[int(one)] + ("千百十"[at : at + 1] if one != "0" else "") for at, one in enumerate(digits))
    return re.sub("零+", "零", text).strip("零") or "零"


def in_words(number: int) -> str:
    """0 to 999,999,999 in English: 1,205 → one thousand two hundred and five."""
    small, tens = NUMBER_WORDS["small"], NUMBER_WORDS["tens"]
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            between = " and " if size == 100 or 0 < rest < 100 else " "
            return f"{in_words(number // size)} {name}" + (between + in_words(rest) if rest else "")
    if number < 20:
        return str(small[number])
    return tens[number // 10 - 2] + (f"-{small[number % 10]}" if number % 10 else "")


def the_number(text: str) -> Fraction:
    found = numbers_in(text)
    assert len(found) == 1, found
    return found[0].value


@given(st.integers(0, 99_999_999))
def test_numbers_in_chinese_numerals(number: int) -> None:
    assert han_number(in_han(number)) == number
    assert the_number(f"{in_han(number)}元" if number in (1, 2) else in_han(number)) == number


@given(st.integers(0, 999_999_999))
def test_numbers_in_english_words(number: int) -> None:
    assert the_number(in_words(number)) == number
    assert numbers_in(f"negative {in_words(number)}", is_marked=True)[0].value == -number


@given(st.integers(-(10**15), 10**15))
def test_numbers_in_digits_of_any_grouping_and_width(number: int) -> None:
    wide = str(number).translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789"})
    grouped = f"{number:,}"
    spellings = [str(number), grouped, wide, grouped.replace(",", "{,}"), grouped.replace(",", r"\,"), f"{number}.0"]
    spellings += [grouped.replace(",", " "), grouped.replace(",", "_"), str(number).replace("-", "\u2212")]
    assert [the_number(one) for one in spellings] == [number] * len(spellings)


@given(st.decimals(-(10**9), 10**9, places=4, allow_nan=False))
def test_numbers_in_decimals_with_currency_unit_and_percent(number: object) -> None:
    value = Fraction(str(number))
    for text in (
        f"{number}",
        f"${number}",
        f"￥{number}",
        f"{number}元",
        f"{number} kg",
        f"{number}千克",
        f"{number}°",
    ):
        assert the_number(text) == value, text
    for text in (f"{number}%", f"{number}％", f"{number} percent", rf"{number}\%"):
        assert the_number(text) == value / 100 and numbers_in(text)[0].is_percent
    assert the_number(f"{number}万") == value * 10_000 and the_number(f"{number} million") == value * 10**6


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(1, 9))
def test_numbers_in_fractions(over: int, under: int, whole: int) -> None:
    sign = "-" if over < 0 else ""
    for text in (
        f"{over}/{under}",
        rf"{sign}\frac{{{abs(over)}}}{{{under}}}",
        rf"{sign}\dfrac{{{abs(over)}}} {{{under}}}",
    ):
        assert the_number(text) == Fraction(over, under), text
    assert the_number(f"{in_han(under)}分之{in_han(abs(over))}") == Fraction(abs(over), under)
    mixed = [f"{whole} {abs(over)}/{under}", rf"{whole}\frac{{{abs(over)}}}{{{under}}}"]
    assert [the_number(one) for one in mixed] == [whole + Fraction(abs(over), under)] * 2


@given(st.integers(1, 999), st.integers(-30, 30))
def test_numbers_in_scientific_notation(digits: int, power: int) -> None:
    value = digits * Fraction(10) ** power
    for text in (f"{digits}e{power}", f"{digits}E{power}", f"{digits}×10^{power}", rf"{digits} \times 10^{{{power}}}"):
        assert the_number(text) == value, text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("12 and 15, not 3.5", ["12", "15", "7/2"]),
        ("5-3 and -3 and 5 - 3", ["5", "3", "-3", "5", "3"]),
        ("q8h, x_2, v1.5", []),
        ("一样的药吃三天", ["3"]),
        ("3瓶药，一共三天", ["3"]),
        ("two of the twelve", ["2", "12"]),
        ("5 apples and two pears", ["5"]),
        ("1e999, 1/0", []),
    ],
)
def test_numbers_in_a_sentence(text: str, values: list[str]) -> None:
    assert [one.value for one in numbers_in(text)] == [Fraction(value) for value in values]


def test_numbers_say_where_they_stand() -> None:
    text = on_one_line("about ½ of ３０")
    assert [text[one.start : one.end] for one in numbers_in(text)] == ["1/2", "30"]


@given(st.text(max_size=200))
def test_numbers_bear_any_text(text: str) -> None:
    line = on_one_line(text)
    assert all(0 <= one.start < one.end <= len(line) for one in numbers_in(text))


ODD = [
    "1 ",
    "1,",
    "1,111",
    "万",
    "一",
    "一点",
    "分之",
    "two ",
    "twenty-",
    "hundred and ",
    "a ",
    "- ",
    "-",
    "10^",
    "1/",
    "1 1/",
]
ODD += [
    r"\frac{1}{",
    r"\frac{",
    r"\text{",
    r"\left",
    "1 000 ",
    "3元5",
    "百分之",
    "1e",
    "1 ×10^",
    "minus ",
    "{,}111",
    "零下",
]


@pytest.mark.parametrize("odd", ODD)
def test_numbers_end_soon_over_odd_text(odd: str) -> None:
    assert all(isinstance(number.value, Fraction) for number in numbers_in(odd * 2000 + "x"))


@pytest.mark.parametrize("sign", ["9", " ", "-", "万", "a", "\\", "{", ".", "^"])
def test_numbers_need_linear_steps(sign: str) -> None:
    """Steps that grew as the square of these 200,000 characters would not end within the time of a test run."""
    assert all(isinstance(number.value, Fraction) for number in numbers_in(sign * (200_000 // len(sign))))
