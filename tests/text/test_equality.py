"""Which answers are taken for the same as a reference, and which are not."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.text.equality import Tolerance, equal, is_comparable, is_quantity
from dsr1_tune.text.numbers import numbers_in

TABLE = yaml.safe_load(Path(__file__).with_name("final_answers.yaml").read_text(encoding="utf-8"))
PAIRS = [
    pytest.param(*row, id=f"{kind}-{number}")
    for kinds in TABLE.values()
    for kind, rows in kinds.items()
    for number, row in enumerate(rows)
    if len(row) == 3
]


@pytest.mark.parametrize(("answer", "reference", "is_equal"), PAIRS)
def test_equal_by_the_table(answer: str, reference: str, is_equal: bool) -> None:
    assert equal(answer, reference) is is_equal
    assert equal(reference, reference)


@pytest.mark.parametrize(
    ("answer", "reference", "tolerance", "is_equal"),
    [
        ("0.51", "1/2", Tolerance(0.01), True),
        ("0.52", "1/2", Tolerance(0.01), False),
        ("1009", "1,000", Tolerance(0, 0.01), True),
        ("1011", "1,000", Tolerance(0, 0.01), False),
        ("50%", "50", Tolerance(percent=False), True),
        ("50%", "0.5", Tolerance(percent=False), False),
        ("百分之五十", "50", Tolerance(percent=False), True),
        ("2.49, 7", "2.5, 7", Tolerance(0.02), True),
    ],
)
def test_equal_within_a_tolerance(answer: str, reference: str, tolerance: Tolerance, is_equal: bool) -> None:
    assert equal(answer, reference, tolerance) is is_equal


def test_tolerance_reads_percent_by_the_reference() -> None:
    share, bare, small = (numbers_in(text)[0] for text in ("50%", "50", "0.5"))
    assert Tolerance().allows(bare, share) and Tolerance().allows(small, share) and Tolerance().allows(share, bare)
    assert Tolerance().allows(share, small) and not Tolerance().allows(bare, small)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("42", True),
        ("$1,250.50", True),
        ("3.5 毫克", True),
        ("三十二", True),
        ("twenty-five", True),
        ("3:4", True),
        ("2024-07-01", True),
        ("5-10 mg", True),
        (r"\frac{\sqrt{3}}{2}", True),
        (r"so \boxed{3, 4}", True),
        ("3, 4", False),
        ("三国演义", False),
        ("William Shakespeare", False),
        ("Take 2 tablets of aspirin a day.", False),
        ("The answer is that 2 tablets are enough.", False),
        ("", False),
    ],
)
def test_is_quantity_of_a_reference(text: str, is_one: bool) -> None:
    assert is_quantity(text) is is_one


def test_is_comparable_where_there_is_a_number_or_a_formula() -> None:
    assert is_comparable("about 5 apples") and is_comparable(r"2\sqrt{3}") and is_comparable("3:4")
    assert not is_comparable("many") and not is_comparable("")


def test_equal_loads_math_verify_for_formulas_only() -> None:
    code = "import sys; from dsr1_tune.text.equality import equal; equal('so 3/4', '0.75'); equal('3:4', '3 to 4')\n"
    check = f"{code}assert not {{'sympy', 'math_verify'}} & set(sys.modules), 'loaded'"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_equal_judges_formulas_in_any_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(equal(r"\boxed{\frac{3}{\sqrt{3}}}", r"\sqrt{3}")))
    thread.start()
    thread.join()
    assert found == [True]


FORMULAS = [
    r"9^{9^{9^9}}",
    r"((9^9)^9)^9",
    r"9^{99999}",
    r"99999999999999!",
    r"\sqrt{" * 50,
    "(" * 200,
    "((x+1)^9" * 12,
    r"\frac{1}{" * 30 + "2" + "}" * 30,
    r"\int_0^\infty e^{-x} dx",
    "x+" * 59 + "x",
    "2*" * 59 + "2",
    "=" * 100,
    r"\{" + "1," * 55 + r"1\}",
]


@pytest.mark.parametrize("formula", FORMULAS, ids=range(len(FORMULAS)))
def test_equal_ends_and_never_raises_for_monstrous_formulas(formula: str) -> None:
    for answer, reference in ((formula, r"2\sqrt{3}"), (r"\boxed{\sqrt{3}}", formula), (formula, formula)):
        assert equal(answer, reference) in (True, False)


@given(st.text(alphabet=r"0123456789 .,:;-/%()[]{}\^x=±√+一二点分之abto年月日", max_size=60), st.text(max_size=40))
def test_equal_bears_any_text(one: str, other: str) -> None:
    assert equal(one, one)
    assert equal(one, other) in (True, False) and equal(other, one) in (True, False)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_equal_tells_numbers_apart(one: int, other: int) -> None:
    assert equal(f"The answer is {one:,}.", str(other)) is (abs(one - other) <= abs(other) * 1e-6)
