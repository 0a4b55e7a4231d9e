"""Whether an answer says what a reference says: the same number, list, ratio, range, date or formula.

What is compared is read off the reference:

- A number is the same whatever its spelling, and whatever unit stands behind it. A list, ratio, range or date is none.
- Percent: "50%" is 0.5. Where the reference names percent, the bare "50" is right too, since percent were asked for;
  where it is a bare number greater than 1, so is "50%" for "50". "0.5%" is not "0.5".
- The order of a list makes no difference, that of a tuple (3, 4) does. Ratios may be cancelled down: 6:8 is 3:4. The
  ends of an interval must be open or closed alike. A date's year counts where the reference has one.
- Formulas are judged by math-verify, which knows that \\frac{1}{\\sqrt{2}} is \\frac{\\sqrt{2}}{2}.
- Anything else must be the same text, but for case, width, blanks, markup and full stops.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from dsr1_tune.text.final_answer import FinalAnswer, final_answer, same_text
from dsr1_tune.text.numbers import HAN_DIGITS, NUMBER_WORDS, Number, han_number, numbers_in, on_one_line

MAX_CHARS = 200
"""A longer text is no shape and no formula."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a number may be from the reference's."""

    absolute: float = 1e-9
    relative: float = 1e-6
    """As a share of the reference's number."""
    percent: bool = True
    """Whether 50% is 0.5; False takes it as 50."""

    def allows(self, ours: Number, theirs: Number) -> bool:
        """Whether two numbers are the same; the reference decides how percent are read."""
        reads_as_written = not self.percent or theirs.is_percent or (ours.is_percent and theirs.value > 1)
        if reads_as_written and self.near(ours.as_written, theirs.as_written):
            return True
        return self.percent and self.near(ours.value, theirs.value)

    def near(self, ours: Fraction, theirs: Fraction) -> bool:
        """Whether the difference is small enough."""
        return abs(ours - theirs) <= max(Fraction(self.absolute), Fraction(self.relative) * abs(theirs))


EXACT = Tolerance()


def equal(answer: str, reference: str, tolerance: Tolerance = EXACT) -> bool:
    """Whether an answer comes down to the same as a reference; any text may be given."""
    ours, theirs = final_answer(answer), final_answer(reference)
    if same_text(ours.text) == same_text(theirs.text):
        return True
    found, wanted = _bare(ours), _right_side(_bare(theirs))
    if shape := _shape_of(wanted):
        return _same_shape(_read(shape.kind, found, ours), shape, tolerance)
    formula = _right_side(found if ours.is_marked else _last_formula(ours.text) or found)
    if _is_formula(wanted) or (_is_formula(formula) and _LONE_NUMBER.fullmatch(wanted)):
        return _same_formula(formula, wanted)
    if ours.number is None or theirs.number is None or _shape_of(found):
        return False
    return tolerance.allows(ours.number, theirs.number)


def is_comparable(reference: str) -> bool:
    """Whether a reference holds anything that `equal` compares otherwise than as text."""
    answer = final_answer(reference)
    return answer.number is not None or _is_formula(_bare(answer))


def is_quantity(text: str) -> bool:
    """Whether a text, or what it marks as its answer, is nothing but a number, ratio, range, date or formula.

    A list is one only where it is marked.
    """
    answer = final_answer(text)
    bare = _bare(answer)
    if shape := _shape_of(bare):
        return shape.kind != "list" or answer.is_marked
    return bool(_LONE_NUMBER.fullmatch(bare)) or _is_numeral(bare) or _is_formula(bare)


def _right_side(text: str) -> str:
    """What is behind the last equals sign of a sum, 3 + 4 = 7; an equation with letters is left as it is."""
    return text if re.search(r"[a-zA-Z\\]", text) else text.rpartition("=")[2].strip()


def _last_formula(text: str) -> str:
    """What stands between the last pair of $...$, \\(...\\) or \\[...\\] of a text without a mark."""
    found = _IN_LINE.findall(text[-MAX_CHARS:])
    return _bare(FinalAnswer("".join(found[-1]), False)) if found else ""


_IN_LINE = re.compile(r"\$([^$\n]{1,120})\$|\\\((.{1,120}?)\\\)|\\\[(.{1,120}?)\\\]")


def _bare(answer: FinalAnswer) -> str:
    """A final answer on a line without markup and full stop; of a long text its beginning or, if unmarked, its end."""
    text = answer.text[:MAX_CHARS] if answer.is_marked else answer.text[-MAX_CHARS:]
    return re.sub(r"\\[()\[\]]|[$`]+|(?<![\d)\s])\*+|\*+(?![\d(\s])", "", on_one_line(text)).strip(" \n\"'“”.。!")


def _is_numeral(text: str) -> bool:
    """Whether a text is a number in words alone: 三十二, twenty-five."""
    found = numbers_in(text)
    return len(found) == 1 and (found[0].start, found[0].end) == (0, len(text))


# --- shapes ---------------------------------------------------------------------------------------------------------

Kind = Literal["date", "ratio", "interval", "range", "list"]


class Shape(NamedTuple):
    """Several numbers that belong together; `form` is "[)" of an interval, "time" of a ratio that is a time."""

    kind: Kind
    values: tuple[Fraction | None, ...]
    form: str = ""


_NUMBER = r"(?>[-+]?\s?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?)"
_UNIT = r"(?:\s?(?:°[CF]?|[A-Za-zµμ]{1,12}(?:[/·^]\w{1,6}){0,3}|[\u4e00-\u9fff]{1,3}))?"
_LONE_NUMBER = re.compile(
    rf"(?:[A-Za-z]\s?=\s?)?(?:[A-Z]{{2,3}}\s?)?[€£¥]?(?>[-+]?\s?(?:\d+\s)?(?:{_NUMBER}|\.\d+))"
    rf"(?:e[-+]?\d+|\s?[×x*]\s?10\s?(?:\^|\*\*)\s?\{{?[-+]?\d+\}}?)?\s?[€£¥%‰]?{_UNIT}"
)
_ELEMENT = rf"(?:[A-Za-z]\s?=\s?)?[€£¥]?{_NUMBER}{_UNIT}"
_LIST = re.compile(rf"\\?\{{?\s*{_ELEMENT}(?:\s?(?:[,;、]|\bor\b|\band\b|[和或与])+\s?{_ELEMENT}){{1,30}}\s*\\?\}}?")
_END = rf"[-+]?\s?(?:∞|\\infty)|{_NUMBER}"
_INTERVAL = re.compile(rf"(?P<open>[(\[])\s*(?P<ends>(?:{_END})(?:\s*[,，]\s*(?:{_END})){{1,9}})\s*(?P<close>[)\]])")
_RANGE = re.compile(
    rf"(?:\b(?:between|from)\s)?(?<![\d.])(?P<low>{_NUMBER}){_UNIT}"
    rf"\s?(?:-|~|到|至|\bto\b|\band\b)\s?(?P<high>{_NUMBER}){_UNIT}(?![:\d])"
)
_RATIO = re.compile(
    rf"(?P<parts>{_NUMBER}(?:\s?(?::|比|\bto\b)\s?{_NUMBER}){{1,4}}|\d+/\d+)(?:\s?(?P<half>[ap]\.?m\b))?"
    r"|(?P<hour>\d{1,2})[点时](?P<minute>\d{1,2})分?",
    re.I,
)
_MONTHS: list[str] = NUMBER_WORDS["months"]
_MONTH = rf"(?P<name>{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in _MONTHS)}|Sept)\.?"
_YEAR, _DAY = r"(?:,?\s(?P<year>\d{4}))?", r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?!\d)"
_DATES = [
    re.compile(pattern)
    for pattern in (
        r"(?<!\d)(?P<year>\d{4})\s?[-/.年]\s?(?P<month>\d{1,2})(?:\s?[-/.月]\s?(?P<day>\d{1,2})(?!\d)\s?[日号]?|月)",
        rf"{_MONTH}\s{_DAY}{_YEAR}",
        rf"{_DAY}\s(?:of\s)?{_MONTH}{_YEAR}",
        rf"{_MONTH},?\s(?P<year>\d{{4}})",
        rf"(?P<month>\d{{1,2}}|[{HAN_DIGITS}]{{1,2}})月(?P<day>\d{{1,2}}|[{HAN_DIGITS}]{{1,3}})[日号]",
    )
]


def _shape_of(text: str) -> Shape | None:
    """What a text is as a whole, if it is several numbers; None for a single number and for anything else."""
    if _LONE_NUMBER.fullmatch(text):
        return None
    if date := next((found for one in _DATES if (found := one.fullmatch(text))), None):
        return _date(date)
    if (found := _RATIO.fullmatch(text)) and (":" in text or "比" in text or found["hour"]):
        return _ratio(found)
    if found := _INTERVAL.fullmatch(text):
        return _interval(found)
    if (found := _RANGE.fullmatch(text)) and (" and " not in text or text.startswith("between")):
        shape = _range(found)
        return shape if shape.values[0] < shape.values[1] else None  # type: ignore[operator]
    return _list(text) if _LIST.fullmatch(text) else None


def _read(kind: Kind, text: str, answer: FinalAnswer) -> Shape | None:
    """An answer read as a shape of that kind: the first behind a mark, else the last."""
    if kind == "list":
        return _list(text if answer.is_marked else text.rsplit("\n", 1)[-1])
    patterns = {"date": _DATES, "ratio": [_RATIO], "interval": [_INTERVAL], "range": [_RANGE]}[kind]
    found = [one for pattern in patterns for one in pattern.finditer(text)]
    if not found:
        return None
    chosen = found[0 if answer.is_marked or kind == "date" else -1]
    return {"date": _date, "ratio": _ratio, "interval": _interval, "range": _range}[kind](chosen)


def _date(found: re.Match[str]) -> Shape:
    part = found.groupdict()
    month = [name[:3] for name in _MONTHS].index(part["name"][:3]) + 1 if part.get("name") else part["month"]
    return Shape("date", tuple(_whole(one) for one in (part.get("year"), str(month), part.get("day"))))


def _whole(text: str | None) -> Fraction | None:
    if not text:
        return None
    return Fraction(int(text)) if text.isdigit() else han_number(text)


def _ratio(found: re.Match[str]) -> Shape:
    if found["hour"]:
        return Shape("ratio", (Fraction(found["hour"]), Fraction(found["minute"])), "time")
    parts = re.split(r":|比|to", found["parts"]) if "/" not in found["parts"] else found["parts"].split("/")
    is_time = re.fullmatch(r"(?:[01]?\d|2[0-3])(?:\s?:\s?[0-5]\d){1,2}", found["parts"])
    half = (found["half"] or "").replace(".", "").lower()
    return Shape("ratio", _values(parts), f"time {half}".strip() if is_time else "")


def _interval(found: re.Match[str]) -> Shape:
    return Shape("interval", _values(re.split("[,，]", found["ends"])), found["open"] + found["close"])


def _range(found: re.Match[str]) -> Shape:
    return Shape("range", _values([found["low"], found["high"]]))


def _list(text: str) -> Shape:
    return Shape("list", tuple(sorted(number.value for number in numbers_in(text))))


def _values(parts: list[str]) -> tuple[Fraction | None, ...]:
    """The numbers of the parts; None for an infinite one, whose sign its interval's place says."""
    return tuple(found[0].value if (found := numbers_in(part)) else None for part in parts)


def _same_shape(ours: Shape | None, theirs: Shape, tolerance: Tolerance) -> bool:
    if ours is None:
        return False
    pairs = list(zip(ours.values, theirs.values, strict=False))
    if theirs.kind == "date":
        return all(their is None or our == their for our, their in pairs)
    if len(ours.values) != len(theirs.values) or (theirs.kind == "interval" and ours.form != theirs.form):
        return False
    if theirs.kind == "ratio":
        halves = {one.form.split()[1] for one in (ours, theirs) if " " in one.form}
        if len(halves) > 1:
            return False
        if not (ours.form and theirs.form) and all(ours.values) and all(theirs.values):
            pairs = [(one / ours.values[0], other / theirs.values[0]) for one, other in pairs]  # type: ignore[operator]
    return all(
        one == other or (one is not None and other is not None and tolerance.near(one, other)) for one, other in pairs
    )


# --- formulas -------------------------------------------------------------------------------------------------------

# So short and plain that sympy is done at once: small powers, no factorials, no functions.
_FORMULA = re.compile(
    r"(?:\\(?:[dtc]?frac|sqrt|pi|infty|cup|cap|leq?|geq?|lt|gt|pm)(?![a-zA-Z])|\\[{}]|\d{1,15}+(?:\.\d{1,15}+)?|[.,]"
    r"|\^(?:\d(?!\d)|\{-?1?\d\})|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])|(?<=\d)[a-z]{2}(?![a-zA-Z])|[-+*/=()\[\]{}<>|∞×≤≥]|\s)++"
)
_ALGEBRA = re.compile(r"\\[a-z{]|∞|[a-z]\s?[-+*/^=(<>≤≥]|\d[a-z]\b|[-+*/(]\s?[a-z]\b|\d\s?[-+*/×^]\s?\d")
_LATEX_SIGNS = str.maketrans({"×": "*", "≤": r"\leq ", "≥": r"\geq ", "∞": r"\infty "})
_TOWER = re.compile(r"[\^}]\s*\^|\)\s*\^.*\)\s*\^")  # powers of powers
_MAX_FORMULA, _MAX_POWERS = 120, 6


def _is_formula(text: str) -> bool:
    """Whether a text is a formula that math-verify may be asked about."""
    if len(text) > _MAX_FORMULA or not _ALGEBRA.search(text) or _LONE_NUMBER.fullmatch(text):
        return False
    num_powers = max(text.count("^"), text.count("sqrt"))
    return num_powers <= _MAX_POWERS and not _TOWER.search(text) and _FORMULA.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _same_formula(answer: str, reference: str) -> bool:
    """What math-verify says of two formulas; it is loaded at the first one."""
    if not (_is_formula(answer) or _LONE_NUMBER.fullmatch(answer)):
        return False
    import math_verify

    # It warns that its own timeouts, which need signals, are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = [math_verify.LatexExtractionConfig()]
    plain = [f"${text.translate(_LATEX_SIGNS)}$" for text in (answer, reference)]
    try:
        ours, theirs = (math_verify.parse(text, latex, parsing_timeout=None) for text in plain)
        return bool(math_verify.verify(theirs, ours, timeout_seconds=None))
    except Exception:  # whatever sympy makes of it, the answer is not shown to be right
        return False
