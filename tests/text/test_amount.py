"""One row, 2 rows."""

from __future__ import annotations

import pytest

from dsr1_tune.text.amount import amount


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (1, ("row",), "1 row"),
        (0, ("row",), "0 rows"),
        (2000, ("row",), "2,000 rows"),
        (1, ("row has", "rows have"), "1 row has"),
        (3, ("matrix", "matrices"), "3 matrices"),
    ],
)
def test_a_count_agrees_with_its_noun(number: int, words: tuple[str, ...], said: str) -> None:
    assert amount(number, *words) == said
