"""Quantities in texts, in English and Chinese: a number with its unit, made comparable across units."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dsr1_tune.text.numbers import HAN_DIGITS, han_number


@dataclass(frozen=True, slots=True)
class Unit:
    """What a unit measures, its size in the first unit of that kind, and its usual name."""

    kind: str
    size: float
    label: str


UNITS = {
    name: Unit(kind, float(entry["size"]), entry["names"][0])
    for kind, entries in yaml.safe_load(Path(__file__).with_name("units.yaml").read_text(encoding="utf-8")).items()
    for entry in entries
    for name in entry["names"]
}
"""Every unit by its name."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit, as it is written; `value` is in the first unit of its kind."""

    text: str
    number: float
    kind: str
    value: float
    label: str
    size: float = 1.0
    """Of its unit, in the first unit of its kind."""

    def is_near(self, other: Quantity) -> bool:
        """Whether the units are of one kind and at most 1000 times one another: mg and g, not mg and kg."""
        return self._is_convertible(other) and self._is_like_size(other)

    def equals(self, other: Quantity) -> bool:
        """Whether both are the same, but for rounding."""
        return self._is_convertible(other) and math.isclose(self.value, other.value, rel_tol=0.006, abs_tol=1e-12)

    def has_other_unit(self, other: Quantity) -> bool:
        """Whether the same number stands before another unit of the same kind."""
        is_same = self.kind == other.kind and self.number == other.number
        return is_same and self.label != other.label and (self.kind == "money" or self._is_like_size(other))

    def has_slipped(self, other: Quantity) -> bool:
        """Whether it is 10, 100, 1000 ... times the other or a part so small; of powers of ten that says nothing."""
        is_alike = self.kind == other.kind != "money" and self.label == other.label
        if not is_alike or self.value * other.value <= 0:
            return False
        power = math.log10(self.value / other.value)
        is_round = math.isclose(math.log10(other.number) % 1, 0, abs_tol=1e-9) if other.number > 0 else True
        return abs(power) > 0.5 and abs(power - round(power)) < 1e-6 and not is_round

    def _is_convertible(self, other: Quantity) -> bool:
        # Of money the rates are not known.
        return self.kind == other.kind and (self.kind != "money" or self.label == other.label)

    def _is_like_size(self, other: Quantity) -> bool:
        return max(self.size, other.size) <= 1000.001 * min(self.size, other.size)


_NUMBER = (
    rf"(?:\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+|[{HAN_DIGITS}]{{1,12}}(?:点[零一二三四五六七八九]+)?)"
)


# Long names first; Latin ones must end where a word does.
_NAMES = sorted((name for name in UNITS if name not in "$€¥"), key=len, reverse=True)
_UNIT = "|".join(
    re.escape(name) + (r"(?![A-Za-z])" if name[-1].isalpha() and name.isascii() else "") for name in _NAMES
)
_QUANTITY = re.compile(
    rf"(?<![A-Za-z\d.,{HAN_DIGITS}])(?P<cash>[$€¥])?\s?(?P<first>[-+]?{_NUMBER})"
    rf"(?:\s*(?:-|~|到|至|to)\s*(?P<second>{_NUMBER}))?\s*(?P<many>[万亿])?\s?-?(?P<unit>{_UNIT})?"
    rf"(?:\s?(?:/|每|per\s)\s?(?P<per>{_UNIT}))?"
)


def quantities(text: str) -> list[Quantity]:
    """Every number with a unit, in order; of 5-10 mg both ends. Dates, counts and bare numbers are none."""
    text = _plain(text)
    found: list[Quantity] = []
    for match in _QUANTITY.finditer(text):
        name = match["unit"] or match["cash"]
        if not name:
            continue
        for said in (match["first"], match["second"]):
            number = _number(said)
            if number is not None:
                times = {"万": 1e4, "亿": 1e8}.get(match["many"] or "", 1.0)
                found.append(_quantity(match[0].strip(), number * times, name, match["per"]))
    return found


def _plain(text: str) -> str:
    """Half width, one kind of dash and of µ; ℃ stays as it is."""
    text = text.replace("℃", "°C").replace("℉", "°F")
    text = unicodedata.normalize("NFKC", text).replace("μ", "µ")
    return re.sub("[–—−～]", lambda found: "~" if found[0] == "～" else "-", text)


def _number(said: str | None) -> float | None:
    """The number; None where there is none, or one that no quantity has."""
    if not said:
        return None
    is_han = said.lstrip("-+")[0] in HAN_DIGITS
    value = float(han_number(said.lstrip("-+"))) if is_han else float(said.replace(",", ""))
    return None if abs(value) > 1e30 else value


def quantity(number: float, name: str) -> Quantity | None:
    """So much of a unit by its name, such as mg, $ or ml/kg; None where it is not known."""
    unit, _, per = name.partition("/")
    known = unit in UNITS and (not per or per in UNITS)
    return _quantity(f"{number:g} {name}", number, unit, per or None) if known else None


def _quantity(text: str, number: float, name: str, per: str | None) -> Quantity:
    unit = UNITS[name]
    kind, size, label = unit.kind, unit.size, unit.label
    if per:
        below = UNITS[per]
        kind, size, label = f"{kind}/{below.kind}", size / below.size, f"{label}/{below.label}"
    value = number * size
    if label == "°F":
        value = (number - 32) / 1.8
    return Quantity(text, number, kind, value, label, size)


def changed(given: Sequence[Quantity], said: Sequence[Quantity]) -> list[tuple[Quantity, Quantity]]:
    """(as given, as said): what the answer says otherwise than what it was given.

    A quantity counts as changed where the answer nowhere has it as it was given, but has its number before another unit
    of the kind, or its digits with the point elsewhere. Spans of time are left out: 3 days and 3 weeks mostly are two
    things.
    """
    pairs = []
    for one in given:
        if one.kind == "time" or any(one.equals(other) for other in said):
            continue
        pairs += [(one, other) for other in said if other.has_other_unit(one) or other.has_slipped(one)]
    return pairs
