"""What an answer comes down to: its last word, in a box, after "answer:" or at the end, as text and as a number."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_MARK = re.compile(
    r"(?:\b(?:final\s+answer|answer|result)\b\s*(?:\*{1,2}|_{1,2})?\s*(?:is|are|=|:|：)[\s:：=]*"
    r"|####"
    r"|(?:最终|正确)?(?:答案|结果|得数)\s*(?:\*{1,2})?\s*(?:为|是|等于|=|:|：)[\s:：=为是]*)",
    re.I,
)


MAX_MARKS, MAX_CHARS = 20, 500
"""A model that has gone astray writes "####" ten thousand times; the last marks, and what is near them, will do."""


def _marks(text: str) -> list[re.Match[str]]:
    return list(_MARK.finditer(text))[-MAX_MARKS:]


def final_part(text: str) -> tuple[str, bool]:
    """What an answer comes down to, and whether it says so itself with a box or a mark; else it is all of the text.

    The last \\boxed{...} counts first, then what follows the last "answer:", "the answer is", "答案：", "####" on its
    line.
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed, True
    for mark in reversed(_marks(text)):
        rest = text[mark.end() : mark.end() + MAX_CHARS].lstrip("*_ \t\n")
        line = rest.split("\n", 1)[0].strip().strip("*_").strip()
        if line:
            return line, True
    return text.strip(), False


def final_numbers(text: str) -> list[Fraction]:
    """The number behind every mark and in every box: more than one value means that an answer names several results."""
    behind = [text[mark.end() : mark.end() + MAX_CHARS] for mark in _marks(text)]
    parts = [part.lstrip("*_ \t").split("\n", 1)[0] for part in behind]
    parts = [part for part in parts if "boxed" not in part]
    parts += [found[1] for found in list(re.finditer(r"\\f?boxed\s*\{([^{}]{0,500})\}", text))[-MAX_MARKS:]]
    return [number for part in parts if (number := _number_of_part(part)) is not None]


def _number_of_part(part: str) -> Fraction | None:
    """The first number of a result, or, where an equals sign stands, the one behind the last."""
    behind = numbers_in(re.split(r"[=≈]", part)[-1])
    found = behind or numbers_in(part)
    return found[0] if found else None


def _last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} or \\fbox{...} that is closed; its braces may be nested."""
    for found in reversed(list(re.finditer(r"\\f?boxed\s*\{|\\fbox\s*\{", text))[-MAX_MARKS:]):
        depth = 1
        for at in range(found.end(), min(len(text), found.end() + MAX_CHARS)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                return text[found.end() : at].strip()
    return None


def same_text(text: str) -> str:
    """A text without what makes no difference: case, width, blanks, markup, a full stop or quotes around it."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"[*_`$]+", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text.strip("\"'“”‘’「」『』《》()[] .。!！?？,，;；:：")


def numbers_in(text: str) -> list[Fraction]:
    """Every number of a text in order: 1,000, -2.5, 1/2, 1 1/2, \\frac{1}{2}, 50%, 3e-4, 1.2×10^3, ３, 3万, 三十二."""
    found = list(_NUMBER.finditer(_plain(text)))
    in_digits = [one for one in found if not one["han"]]
    # Chinese numerals are also parts of words: in a text with digits they are taken for such.
    chosen = in_digits or [one for one in found if one["han"] not in _MERE_WORDS or one["han"] == text.strip(" 。.")]
    return [value for one in chosen if (value := _value(one)) is not None]


def final_number(text: str) -> Fraction | None:
    """The number that an answer comes down to; the last one of what `final_part` finds, or None where there is none.

    After a mark it is the first: "answer: 12 apples (3 bags of 4)". Where an
    equals sign stands, what is behind it: "answer: 3 + 4 = 7".
    """
    part, is_marked = final_part(text)
    if is_marked and (number := _number_of_part(part)) is not None:
        return number
    found = numbers_in(text)
    return found[-1] if found else None


def _plain(text: str) -> str:
    """Half width, plain minus signs, LaTeX's fractions and powers written on a line."""
    text = unicodedata.normalize("NFKC", re.sub("[½¼¾⅓⅔⅛⅜⅝⅞]", _spelled_out, text))
    text = text.replace("⁄", "/").replace("−", "-").replace("–", "-")
    text = re.sub(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}", r"\1/\2", text)
    text = re.sub(r"\\(?:times|cdot)\s*", "×", text)
    text = re.sub(r"\\[,;! ]|\{,\}", lambda found: "," if found[0] == "{,}" else "", text)
    return text.replace("\\%", "%")


def _spelled_out(found: re.Match[str]) -> str:
    value = Fraction(unicodedata.numeric(found[0])).limit_denominator(10)
    return f" {value.numerator}/{value.denominator}"


_MERE_WORDS = frozenset(("一", "万一", "千万", "百", "千", "万", "亿"))
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_HAN_DIGITS = "零〇一二两三四五六七八九十百千万亿"
_NUMBER = re.compile(
    # A minus sign belongs to a number where no number, word or bracket stands before it: 5-3 is no -3.
    rf"(?<![A-Za-z_\d.])(?P<sign>(?<![\w)%\]])[-+]\s?)?\$?(?:"
    rf"(?P<whole>\d+)\s+(?P<over>\d+)\s*/\s*(?P<under>\d+)(?![\d/])"
    rf"|(?P<top>{_DIGITS})\s*/\s*(?P<bottom>{_DIGITS})(?![\d/])"
    rf"|(?P<plain>{_DIGITS})(?:[eE](?P<exp>[-+]?\d+)(?![\w])|\s*[×x*]\s*10\s*(?:\^|\*\*)\s*\{{?(?P<pow>[-+]?\d+)\}}?)?"
    rf"|(?P<han>(?!十分)[{_HAN_DIGITS}]{{1,16}}(?:点[零〇一二三四五六七八九]+)?(?:分之[{_HAN_DIGITS}]+)?)"
    rf")\s?(?P<unit>%|％|‰|万亿|万|亿|千(?!克|米|瓦|卡|帕|焦|伏|赫|兆|字)|百(?!分)|percent\b|per\s?cent\b|million\b|billion\b|thousand\b)?"
    rf"|(?P<per>百分之)(?P<perhan>[{_HAN_DIGITS}]+|\d+(?:\.\d+)?)"
)
_UNITS = {
    "%": Fraction(1, 100), "percent": Fraction(1, 100), "‰": Fraction(1, 1000), "百": Fraction(100),
    "千": Fraction(1000), "万": Fraction(10**4), "亿": Fraction(10**8), "万亿": Fraction(10**12),
    "thousand": Fraction(1000), "million": Fraction(10**6), "billion": Fraction(10**9),
}  # fmt: skip


def _value(found: re.Match[str]) -> Fraction | None:
    part = found.groupdict()
    try:
        if part["per"]:
            said = part["perhan"]
            return (han_number(said) if said[0] in _HAN_DIGITS else Fraction(said)) / 100
        if part["whole"]:
            value = Fraction(int(part["whole"])) + Fraction(int(part["over"]), int(part["under"]))
        elif part["top"]:
            value = _decimal(part["top"]) / _decimal(part["bottom"])
        elif part["plain"]:
            power = int(part["exp"] or part["pow"] or 0)
            if abs(power) > 300:
                return None
            value = _decimal(part["plain"]) * Fraction(10) ** power
        else:
            value = han_number(part["han"])
    except (ZeroDivisionError, ValueError):
        return None
    unit = (part["unit"] or "").lower().replace(" ", "").replace("％", "%")
    value *= _UNITS.get(unit, Fraction(1))
    return -value if (part["sign"] or "").startswith("-") else value


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def han_number(text: str) -> Fraction:
    """三十二 → 32, 一千零五 → 1005, 三点五 → 3.5, 二分之一 → 1/2. Raises ZeroDivisionError for 零分之一."""
    if "分之" in text:
        under, _, over = text.partition("分之")
        return Fraction(_han_whole(over), _han_whole(under))
    whole, _, behind = text.partition("点")
    digits = "".join(str(_HAN_VALUES[sign]) for sign in behind)
    value = Fraction(_han_whole(whole))
    return value + Fraction(int(digits), 10 ** len(digits)) if digits else value


_HAN_VALUES = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_TENS = {"十": 10, "百": 100, "千": 1000}


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
    return total + section + digit
