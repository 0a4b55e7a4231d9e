"""Numbers in texts however they are spelled: digits, fractions, powers, LaTeX, Chinese numerals, English words."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True)
class Number:
    """A number, and where it stands in the text as `on_one_line` writes it."""

    value: Fraction
    """50% is 1/2."""
    is_percent: bool
    start: int
    end: int

    @property
    def as_written(self) -> Fraction:
        """50% is 50."""
        return self.value * 100 if self.is_percent else self.value


def numbers_in(text: str, is_marked: bool = False) -> list[Number]:
    """Every number of a text in order: 1,000, -2.5, 1/2, 1 1/2, \\frac{1}{2}, 50%, 3e-4, 1.2×10^3, 3万, 三十二, twelve.

    Numerals are also parts of words ("one", "first", 一样): they count only in a text without digits, and where it is
    all but nothing else, or, if `is_marked`, begins with them.
    """
    text = on_one_line(text)
    found = list(_IN_DIGITS.finditer(text)) if _DIGIT.search(text) else []
    found = found or [one for one in _IN_HAN.finditer(text) if _is_numeral(one, text)]
    found = found or [one for one in _IN_WORDS.finditer(text) if _is_meant(one, text, is_marked)]
    numbers = ((one, _value(one.groupdict())) for one in found)
    return [
        Number(value, (one["unit"] or "").strip().lower() in _PERCENT or "百分之" in one[0], one.start(), one.end())
        for one, value in numbers
        if value is not None
    ]


# --- one way to write -----------------------------------------------------------------------------------------------


def on_one_line(text: str) -> str:
    """Half width, plain signs, LaTeX's fractions, powers, units and separators as plain text; idempotent."""
    text = re.sub(r"(?<=[\d)])([⁺⁻]?)([⁰¹²³⁴-⁹]{1,4})", r"^{\1\2}", re.sub("[½¼¾⅓⅔⅛⅜⅝⅞]", _spelled_out, text))
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    if "\\" in text:
        text = re.sub(r"\\(?:left|right|displaystyle|big|Big)(?![a-zA-Z])|\\! ?|(?<=\d)(?:\\[,;: ]|~)(?=\d)", "", text)
        text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s?\{([^{}]{0,500})\}", r" \1 ", text)
        text = re.sub(r"\\[dtc]?frac\s?(\d)\s?(\d)", r" \1/\2 ", text)
        for _ in range(2):  # a fraction in a fraction
            text = re.sub(r"\\[dtc]?frac\s?\{([^{}]{1,200})\}\s?\{([^{}]{1,200})\}", _fraction_on_a_line, text)
        text = re.sub(r"\^?\{?\\(?:circ|degree)\}?", "°", text)
        text = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])\s*", "×", text)
        text = re.sub(r"\\(?=[%$])|\\[,;:!]", "", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3})|(?<=\d)_(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d.,/])\d{1,3}(?: \d{3}){1,9}(?![\d/])", lambda found: found[0].replace(" ", ""), text)
    return re.sub(r"(?<!\d)(\d{1,15})[元块](\d)[角毛](?:(\d)分)?", r"\1.\2\3元", text)


_SIGNS = str.maketrans({"⁄": "/", "−": "-", "–": "-", "\u2009": " ", "\u202f": " ", "\u00a0": " "})


def _fraction_on_a_line(found: re.Match[str]) -> str:
    over, under = (part.strip() for part in found.groups())
    return f" {over}/{under} " if re.fullmatch(r"-?[\d., ]+", over + under) else f" ({over})/({under}) "


def _spelled_out(found: re.Match[str]) -> str:
    value = Fraction(unicodedata.numeric(found[0])).limit_denominator(10)
    return f" {value.numerator}/{value.denominator} "


# --- digits ---------------------------------------------------------------------------------------------------------

NUMBER_WORDS = yaml.safe_load(Path(__file__).with_name("number_words.yaml").read_text(encoding="utf-8"))
_TIMES = {name: Fraction(value) for name, value in NUMBER_WORDS["times"].items()}
_PERCENT = frozenset(("%", "percent", "per cent"))
_HAN_UNIT = "万亿|千亿|百亿|十亿|千万|百万|十万|万|亿|千(?!克|米|瓦|卡|帕|焦|伏|赫|兆|字)|百(?!分)"
_UNIT_WORD = r"(?:percent|per\scent|dozen|hundred|thousand|million|billion|trillion)(?![a-z])"
_UNIT = rf"(?:\s?(?P<unit>%|‰|{_HAN_UNIT}|{_UNIT_WORD}))?"
_AFTER_A_NUMBER = r"(?<![A-Za-z0-9_)%\]])"
_SIGN = (
    # A minus sign belongs to a number where no number, word or bracket stands before it: 5-3 is no -3.
    rf"(?P<sign>{_AFTER_A_NUMBER}(?<!\d[\u3400-\u9fff])[-+](?!\s)|{_AFTER_A_NUMBER}(?<![\d)%\]]\s)[-+]\s"
    r"|(?<![正\d])负|零下|(?<!\d\s)(?:minus|negative)\s)?(?:[$€£¥]\s?)?"
)
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_POWER = (
    r"(?:e(?P<exponent>[-+]?\d+)(?!\w)|\s*[×x*]\s*10\s*(?:\^|\*\*)\s*\{?(?P<ten>[-+]?\d+)\}?"
    r"|\s?(?:\^|\*\*)\s?\{?(?P<raised>[-+]?\d{1,3})\}?)?"
)
_CHAIN = (  # 2万5千
    r"\d{1,9}[亿万千百十]{1,2}(?:\d{1,9}[亿万千百十]{1,2})*\d{1,9}(?:[亿万千百十]{1,2}(?!克|米|瓦|卡|分))?(?![\d.])"
)
_DIGIT = re.compile(r"\d")
_IN_DIGITS = re.compile(
    rf"(?<![A-Za-z_\d.^])(?<!\^\{{){_SIGN}(?P<share>百分之)?(?:(?P<chain>{_CHAIN})"
    r"|(?P<whole>\d+)\s+(?P<over>\d+)\s*/\s*(?P<under>\d+)(?![\d/])"
    rf"|(?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})(?![\d/])|(?P<plain>{_DECIMAL}){_POWER}){_UNIT}",
    re.I,
)


def _value(part: dict[str, str | None]) -> Fraction | None:
    """The value of what a pattern found by its groups; None where there is none (1/0), or it is beyond all measure."""
    try:
        value = _size(part)
    except (ZeroDivisionError, ValueError, OverflowError):
        return None
    value *= Fraction(_TIMES.get((part["unit"] or "").lower(), 1), 100 if part.get("share") else 1)
    return -value if (part["sign"] or "+")[0].lower() in "-负零mn" else value


def _size(part: dict[str, str | None]) -> Fraction:
    """Without sign and unit. Raises ValueError for exponents that would fill the memory."""
    if part.get("half"):
        return Fraction(1, 2)
    if part.get("whole"):
        return int(part["whole"] or 0) + Fraction(int(part["over"] or 0), int(part["under"] or 0))
    if part.get("top"):
        return _decimal(part["top"]) / _decimal(part["bottom"])
    if part.get("chain"):
        return _chained(str(part["chain"]))
    if part.get("han"):
        return han_number(str(part["han"]))
    if "cardinal" in part:
        return _in_words(part)
    power, raised = int(part["exponent"] or part["ten"] or 0), int(part["raised"] or 1)
    if max(abs(power), abs(raised)) > 300 or (raised != 1 and len(str(part["plain"])) > 30):
        raise ValueError(f"10^{power} is too large")
    return (_decimal(part["plain"]) * Fraction(10) ** power) ** raised


def _decimal(text: str | None) -> Fraction:
    return Fraction((text or "").replace(",", ""))


def _chained(text: str) -> Fraction:
    """2万5千 → 25000, 1亿2千万 → 120000000; a last lone digit is of the next power: 2万5 → 25000."""
    total, scale = 0, 1
    for digits, units in re.findall(r"(\d+)([亿万千百十]*)", text):
        if units:
            scale = math.prod(int(_TIMES.get(unit, 10)) for unit in units)
            total += int(digits) * scale
        else:
            total += int(digits) * (scale // 10 if len(digits) == 1 else 1)
    return Fraction(total)


# --- Chinese numerals -----------------------------------------------------------------------------------------------

HAN_DIGITS = "零〇一二两三四五六七八九十百千万亿"
_HAN_VALUES = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_TENS = {"十": 10, "百": 100, "千": 1000}
_MERE_WORDS = frozenset(("一", "万一", "千万", "百", "千", "万", "亿", "两"))
_IN_HAN = re.compile(
    rf"{_SIGN}(?P<share>百分之)?(?:(?P<half>一半)|(?P<han>(?!十分(?!之))[{HAN_DIGITS}]{{1,16}}"
    rf"(?:点[零〇一二三四五六七八九]+)?(?:分之[{HAN_DIGITS}]+)?))(?P<unit>%)?"
)
_MAX_COUNTED = 6
_COUNTED: str = NUMBER_WORDS["counted"]


def _is_numeral(found: re.Match[str], text: str) -> bool:
    """Whether Chinese numerals are a number, not a part of a word such as 一样, 万一, 千万."""
    if found["han"] not in _MERE_WORDS:
        return True
    rest = text[found.end() :].rstrip(" 。.")
    if found["han"] in ("一", "两") and rest[:1] in _COUNTED:  # 一个 is also "a": then it is all there is
        return found["han"] == "两" or (not text[: found.start()].strip() and len(rest) < _MAX_COUNTED)
    return not rest and not text[: found.start()].strip()


def han_number(text: str) -> Fraction:
    """三十二 → 32, 一千零五 → 1005, 三点五 → 3.5, 二分之一 → 1/2. Raises ZeroDivisionError for 零分之一."""
    if "分之" in text:
        under, _, over = text.partition("分之")
        return Fraction(_han_whole(over), _han_whole(under))
    whole, _, behind = text.partition("点")
    digits = "".join(str(_HAN_VALUES[sign]) for sign in behind)
    return _han_whole(whole) + (Fraction(int(digits), 10 ** len(digits)) if digits else Fraction(0))


def _han_whole(text: str) -> int:
    if all(sign in _HAN_VALUES for sign in text) and len(text) > 1:  # 二〇二四
        return int("".join(str(_HAN_VALUES[sign]) for sign in text))
    total, section, digit = 0, 0, 0
    for sign in text:
        if sign in _HAN_VALUES:
            digit = _HAN_VALUES[sign]
        elif sign in _HAN_TENS:
            section += (digit or 1) * _HAN_TENS[sign]
            digit = 0
        else:
            scale = 10**4 if sign == "万" else 10**8
            total = (total + section + digit) * scale if sign == "亿" else total + (section + digit) * scale
            section, digit = 0, 0
    if digit and len(text) > 1 and text[-2] in "百千万亿":  # 一百二 is 120, 一万二 12000
        digit *= {"百": 10, "千": 100, "万": 1000, "亿": 10**7}[text[-2]]
    return total + section + digit


# --- English words --------------------------------------------------------------------------------------------------

_SMALL: dict[str, int] = {name: value for value, name in enumerate(NUMBER_WORDS["small"])}
_TENS: dict[str, int] = {name: 10 * value for value, name in enumerate(NUMBER_WORDS["tens"], 2)}
_SCALES = {name: int(value) for name, value in _TIMES.items() if name.isascii() and value > 1}


def _ordinal(name: str) -> str:
    return NUMBER_WORDS["ordinals"].get(name) or (f"{name[:-1]}ieth" if name.endswith("ty") else f"{name}th")


_ORDINALS = {_ordinal(name): value for name, value in (_SMALL | _TENS | {"hundred": 100}).items()}
_PARTS: dict[str, int] = NUMBER_WORDS["parts"] | {name: value for name, value in _ORDINALS.items() if value > 2}
_ONES = "|".join(list(_SMALL)[:10])
_SMALL_WORD = rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{_ONES}))?|{'|'.join(list(_SMALL)[::-1])})\b"
_GROUP = rf"(?:(?:an?|{_SMALL_WORD})[-\s]hundred\b(?:\s(?:and\s)?{_SMALL_WORD})?|{_SMALL_WORD})"
_SCALE = rf"[-\s](?:{'|'.join(_SCALES)})\b"
_CARDINAL = rf"(?:(?:an?|{_GROUP}){_SCALE}(?:,?\s(?:and\s)?{_GROUP}(?:{_SCALE})?){{0,4}}|{_GROUP})"
_FIRST = "|".join(("an?", "half", *_SMALL, *_TENS, *_ORDINALS))
_IN_WORDS = re.compile(
    rf"(?<![A-Za-z])(?P<sign>(?:minus|negative)\s)?(?=(?:{_FIRST})\b)(?:(?:(?P<and>{_CARDINAL})\sand\s)?(?:(?P<a>an?|one)[-\s](?P<part>{'|'.join(_PARTS)})"
    rf"|(?P<many>{_CARDINAL})[-\s](?P<parts>halves|(?:{'|'.join(_PARTS)})s))"
    rf"|(?P<ordinal>(?:(?:{'|'.join(_TENS)})[-\s])?(?:{'|'.join(_ORDINALS)}))"
    rf"|(?P<cardinal>{_CARDINAL})(?:\spoint(?P<decimals>(?:\s(?:{_ONES})\b)+))?|(?P<half>half))\b"
    r"(?:\s?(?P<unit>%|percent|per\scent)(?![a-z]))?",
    re.I,
)
_LEADS_IN = re.compile(r"\W*(?:(?:the|about|around|exactly|only|just)\W+)?", re.I)
_ENDS_SOON = re.compile(r"(?!\sof\s(?:the(?:se|m)?|us|you)\b)(?:[\s-]\w+){0,3}\W*")


def _is_meant(found: re.Match[str], text: str, is_marked: bool) -> bool:
    """Whether words are a number: not the "one" of "this is the one", the "second" of "wait a second"."""
    is_clear = found["cardinal"] and found["cardinal"].lower() != "one"
    if is_clear or found["many"] or (found["a"] and text[found.end() :].startswith(" of ")):
        return True
    rest = text[found.end() : found.end() + 60]
    ends = _ENDS_SOON.fullmatch(rest) if is_marked or found["ordinal"] else not rest.strip(" .。!")
    return bool(_LEADS_IN.fullmatch(text[: found.start()]) and ends)


def _in_words(part: dict[str, str | None]) -> Fraction:
    if ordinal := part["ordinal"]:
        tens, _, last = ordinal.lower().replace("-", " ").rpartition(" ")
        return Fraction(_TENS.get(tens, 0) + _ORDINALS[last])
    if under := part["part"] or part["parts"]:
        under = under.lower()
        over = _cardinal(str(part["many"])) if part["many"] else 1
        whole = _cardinal(part["and"]) if part["and"] else 0
        return whole + Fraction(over, _PARTS["half" if under == "halves" else under if part["part"] else under[:-1]])
    digits = "".join(str(_SMALL[word]) for word in (part["decimals"] or "").lower().split())
    return _cardinal(str(part["cardinal"])) + (Fraction(int(digits), 10 ** len(digits)) if digits else Fraction(0))


def _cardinal(text: str) -> int:
    """two million three hundred and five → 2000305."""
    total, group = 0, 0
    for word in re.findall("[a-z]+", text.lower()):
        if word == "hundred":
            group = (group or 1) * 100
        elif word in _SCALES:
            total, group = total + (group or 1) * _SCALES[word], 0
        else:
            group += (_SMALL | _TENS).get(word, 0)
    return total + group
