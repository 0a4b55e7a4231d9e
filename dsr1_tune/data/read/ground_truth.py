"""The checkable result of a row: the one list of columns that hold it, for training and for trying rewards alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsr1_tune.data.read.values import is_null, path_to, plain_name, text_of

RESULTS = ("expected", "ground_truth", "reference_answer", "final_answer", "expected_answer", "reward_model")
"""Columns that hold what an answer is compared with; the first that is filled counts, and goes before an answer."""


def result_of(row: Any, column: str = "") -> str | None:
    """What an answer to this row, as it was read, is compared with: a text that is not blank, or None.

    `column` is looked at first, then RESULTS; verl's is `{"reward_model": {"ground_truth": ...}}`. A whole number is
    written without a point: tables turn 12 into 12.0 where a column has gaps. Raises Unusable for what is no text.
    """
    if not isinstance(row, Mapping):
        return None
    by_name = {plain_name(str(name)): name for name in reversed(row)}
    if column in row:
        by_name[plain_name(column)] = column
    for name in dict.fromkeys((plain_name(column), *RESULTS)):
        if name in by_name and (found := _text(by_name[name], row[by_name[name]])) is not None:
            return found
    return None


def _text(column: str, value: Any) -> str | None:
    path = path_to(column)
    if isinstance(value, dict) and "ground_truth" in value:
        path, value = f"{path}.ground_truth", value["ground_truth"]
    elif column.strip().lower() == "reward_model":
        return None
    if is_null(value):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    found = text_of(value, path)
    return found if found.strip() else None
