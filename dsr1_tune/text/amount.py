"""Counts with their nouns: one row, 2 rows."""

from __future__ import annotations


def amount(number: int, one: str, many: str = "") -> str:
    """`amount(1, "row")` is "1 row", `amount(2000, "row")` "2,000 rows"; `many` is for what takes more than an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
