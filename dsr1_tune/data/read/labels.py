"""Labels of feedback: good or bad, as people and systems write it; and whether a file's labels say that at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, Literal

from dsr1_tune.data.phrase_table import load_yaml
from dsr1_tune.data.read.formats import Names, Shape, shape_of
from dsr1_tune.data.read.values import Unusable, is_null, kind_of, short

_TABLE = load_yaml(Path(__file__).with_suffix(".yaml"))
_WORDS = {word: said == "good" for said in ("good", "bad") for word in _TABLE[said].split()}
# How emoji are drawn: as pictures, and in which colour of skin.
_DRAWN = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")
_FIX = "write true or false"


@dataclass(frozen=True, slots=True)
class Labels:
    """What the first rows of a file say about its labels: a column of that name may as well hold topics.

    `rows` tells how many rows have one that says good or bad; `rated` is one of them that is a number other than 0 and
    1, as then 1 may be the worst of five.
    """

    rows: Literal["none", "some", "most"] = "none"
    rated: str = ""


def labels_of(rows: Sequence[dict[str, Any]], names: Names) -> Labels:
    """Whether the first rows' labels say good or bad: most of those that are there must."""
    found: list[tuple[Any, Any, bool]] = []
    for row in rows:
        shape = shape_of(tuple(name for name, value in row.items() if not is_null(value)), names)
        if isinstance(shape, Shape) and shape.label:
            answer = row[shape.answer] if shape.answer else None
            found.append((row[shape.label], answer, shape.answer.strip().lower() == "completion"))
    rated = next((str(label) for label, _, _ in found if is_rating(label)), "")
    num_told = 0
    for label, answer, has_completion in found:
        # Beside a completion a number is meant as a label, even a wrong one; a label that is the answer is a topic.
        says_so = is_good(label, rated) is not None or (has_completion and number_in(label) is not None)
        num_told += says_so and label != answer
    if 2 * num_told <= len(found):
        return Labels("none", rated)
    return Labels("most" if 2 * len(found) > len(rows) else "some", rated)


def parse_label(value: Any, path: str, rated: str) -> bool:
    """What a label says; raises Unusable where that cannot be told."""
    if is_null(value):
        raise Unusable("null_value", "is null", f"{_FIX}, or remove the row", path)
    said = is_good(value, rated)
    if said is not None:
        return said
    if is_rating(value):
        detail = f"{short(value)} is a rating: nobody but you can say whether that is good"
        raise Unusable("unknown_label", detail, f"{_FIX}: from which rating on is an answer good?", path)
    if number_in(value) is not None:
        detail = f"{short(value)} may be a rating, as {rated} is, which stands in another row"
        raise Unusable("unknown_label", detail, f"{_FIX}: from which rating on is an answer good?", path)
    said_so = short(value) if isinstance(value, str) else kind_of(value)
    raise Unusable("unknown_label", f"{said_so} says neither good nor bad", _FIX, path)


def is_good(value: Any, rated: str = "") -> bool | None:
    """What a label says, None where that cannot be told; 0 and 1 say nothing among ratings."""
    if isinstance(value, bool):
        return value
    number = number_in(value)
    if number is not None:
        return bool(number) if number in (0, 1) and not rated else None
    if not isinstance(value, str):
        return None
    word = _DRAWN.sub("", unicodedata.normalize("NFKC", value)).strip().strip(".!。！").lower()
    return _WORDS.get(re.sub(r"[\s_-]+", "_", word))


def is_rating(value: Any) -> bool:
    """Whether a label is a number that is neither 0 nor 1."""
    number = number_in(value)
    return number is not None and number not in (0, 1)


def number_in(value: Any) -> float | None:
    """A number, perhaps written as text; None for anything else."""
    if isinstance(value, bool) or is_null(value):
        return None
    if isinstance(value, Number):
        return float(value) if isinstance(value, (int, float)) else None
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-9]{1,9}(\.[0-9]{1,9})?\s*", value):
        return float(value)
    return None
