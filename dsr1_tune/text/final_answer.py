"""What an answer comes down to: its last word, in a box, after "answer:" or at the end, as text and as a number."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_MARK = re.compile(
    r"(?:\b(?P<word>(?:final[ \t]{1,9}|the[ \t]{1,9})?answer|result)\b[ \t]{0,9}(?:\*{1,2}|_{1,2})?[ \t]{0,9}"
    r"(?P<says>is\b|are\b|=|:|：)[\s:：=]{0,9}"
    # A heading is no result: behind #### nothing but a number.
    r"|####[ \t]{0,9}(?=[-+−]?[$€¥]?[ \t]?[\d.,/]{1,40}[ \t]{0,2}[^\s\d]{0,8}[ \t]{0,9}(?:\n|\Z))"
    r"|(?P<han>(?:最终|正确)?(?:答案|结果|得数))[ \t]{0,9}(?:\*{1,2})?[ \t]{0,9}"
    r"(?:为|是|等于|=|:|：)[\s:：=为是]{0,9})",
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
    """The number behind every "the answer is" and 答案 and in every box; none of an answer with parts (a), (b)."""
    if _HAS_PARTS.search(text):
        return []
    marks = [mark for mark in _marks(text) if _is_last_word(mark)]
    behind = [text[mark.end() : mark.end() + MAX_CHARS] for mark in marks]
    parts = [part.lstrip("*_ \t").split("\n", 1)[0] for part in behind]
    parts = [part for part in parts if "boxed" not in part]
    parts += [found[1] for found in list(re.finditer(r"\\f?boxed\s*\{([^{}]{0,500})\}", text))[-MAX_MARKS:]]
    return [number for part in parts if (number := _number_of_part(part)) is not None]


_HAS_PARTS = re.compile(
    r"[（(](?:[a-hA-H]|[ivx]{1,3}|[1-9]|[一二三四五六])[)）]|[①-⑩]|第[一二三四五六七八九十\d]{1,3}[问题步种]"
    r"|\b(?:part|question|problem|case|step|example|exercise|method)\s?[\dA-Z]\b|^[ \t]{0,9}\d{1,2}[.)、]",
    re.I | re.M,
)


def _is_last_word(mark: re.Match[str]) -> bool:
    """Whether a mark says "the answer is", "final answer" or 答案; a result may be that of one step."""
    word, says = (mark["word"] or "").lower(), (mark["says"] or "").lower()
    return (word.startswith("the") and says == "is") or word.startswith("final") or "答案" in (mark["han"] or "")


def _number_of_part(part: str) -> Fraction | None:
    """The number of a result: the one behind the last equals sign, the first if it comes at once, else the last.

    "3 + 4 = 7" is 7, "12 = 3 * 4" is 12, "12 apples (3 bags of 4)" is 12, "the sum of 3 and 4: 7" is 7.
    """
    sentence = _SENTENCE_END.split(part, maxsplit=1)[0]
    part = sentence if numbers_in(sentence) else part
    behind = numbers_in(re.split(r"[=≈]", part)[-1]) if re.search("[=≈]", part) else []
    if len(behind) == 1:
        return behind[0]
    found = numbers_in(part)
    if not found:
        return None
    return found[0] if _COMES_AT_ONCE.match(part) else found[-1]


_SENTENCE_END = re.compile(r"(?<=[.!?])\s|[。！？；;]")
_COMES_AT_ONCE = re.compile(
    r"(?:[^\w]|\\[a-zA-Z]{1,12}|(?:about|around|roughly|approximately|exactly|only|just)\b"
    r"|(?:minus|negative|therefore|a total of)\b"
    r"|[a-zA-Z]{1,3}\s?=|US|USD|约|大约|共|一共|总共|负|零下|百分之){0,12}[\d零一二两三四五六七八九十百千万]",
    re.I,
)


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
    text = unicodedata.normalize("NFKC", text.replace("！", "。")).casefold()
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]{0,500})\}", r"\1", text).replace("$", "")
    text = re.sub(r"\s+", " ", text)
    before = None
    while text != before:  # one pair around it after another
        before = text
        text = _EMPHASIS.sub(r"\2", text.strip().lstrip("\"'“‘”’,;:。"))
        text = re.sub(r"(?<![\d)\]!])!$", "", text.rstrip("\"'“”‘’ .。?,;:"))
        if _IN_BRACKETS.fullmatch(text) and not ("," in text and text[0] == "["):
            text = text[1:-1]
    return text[0] if re.fullmatch(r"[a-z]\)", text) else text


_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3}|`{1,3})(?=\S)([^*_`]{1,200})(?<=\S)\1(?!\w)")
_IN_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|「[^「」]*」|『[^『』]*』|《[^《》]*》")


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
    found = numbers_in(_LAYOUT.sub("", text)) or numbers_in(text)
    return found[-1] if found else None


# Headings with something below them, and the numbers and bullets of a list.
_LAYOUT = re.compile(r"^#{1,6}[ \t].*\n|(?<=\n)[ \t]{0,9}(?:\d{1,2}[.)、][ \t]+|[-+*•][ \t]+)(?=\S)", re.M)


def _plain(text: str) -> str:
    """Half width, plain minus signs, LaTeX's fractions and powers written on a line."""
    text = re.sub(r"(?<=[\d)])([⁺⁻]?)([⁰¹²³⁴-⁹]{1,4})", r"^{\1\2}", re.sub("[½¼¾⅓⅔⅛⅜⅝⅞]", _spelled_out, text))
    text = unicodedata.normalize("NFKC", text)
    text = text.replace("⁄", "/").replace("−", "-").replace("–", "-")
    text = re.sub(r"(?<=\d)\s?(?=\\[dt]?frac)", " ", text)
    text = re.sub(r"\\[dt]?frac\s?\{([^{}]{1,200})\}\s?\{([^{}]{1,200})\}", _on_a_line, text)
    text = re.sub(r"\\[dt]?frac\s?(\d)\s?(\d)", r"\1/\2", text)
    text = re.sub(r"\\(?:times|cdot)\s*", "×", text)
    text = re.sub(r"\\[,;! ]|\{,\}", lambda found: "," if found[0] == "{,}" else "", text)
    return text.replace("\\%", "%")


def _on_a_line(found: re.Match[str]) -> str:
    return f"{found[1].strip()}/{found[2].strip()}"


def _spelled_out(found: re.Match[str]) -> str:
    value = Fraction(unicodedata.numeric(found[0])).limit_denominator(10)
    return f" {value.numerator}/{value.denominator}"


_MERE_WORDS = frozenset(("一", "万一", "千万", "百", "千", "万", "亿"))
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_HAN_DIGITS = "零〇一二两三四五六七八九十百千万亿"
_NUMBER = re.compile(
    # A minus sign belongs to a number where no number, word or bracket stands before it: 5-3 is no -3.
    rf"(?<![A-Za-z_\d.^])(?<!\^\{{)(?P<sign>(?<![A-Za-z0-9_)%\]])(?<!\d[\u3400-\u9fff])[-+](?!\s)"
    rf"|(?<![A-Za-z0-9_)%\]])(?<![\d)%\]]\s)[-+]\s|(?<![正\d])负|零下|(?<!\d\s)(?:[Mm]inus|[Nn]egative)\s)?\$?(?:"
    rf"(?P<chain>\d{{1,9}}[亿万千百十]{{1,2}}(?:\d{{1,9}}[亿万千百十]{{1,2}})*\d{{1,9}}(?:[亿万千百十]{{1,2}}(?!克|米|瓦|卡|分))?)(?![\d.])|"
    rf"(?P<whole>\d+)\s+(?P<over>\d+)\s*/\s*(?P<under>\d+)(?![\d/])"
    rf"|(?P<top>{_DIGITS})\s*/\s*(?P<bottom>{_DIGITS})(?![\d/])"
    rf"|(?P<plain>{_DIGITS})(?:[eE](?P<exp>[-+]?\d+)(?![\w])|\s*[×x*]\s*10\s*(?:\^|\*\*)\s*\{{?(?P<pow>[-+]?\d+)\}}?"
    rf"|\s?(?:\^|\*\*)\s?\{{?(?P<raised>[-+]?\d{{1,3}})\}}?)?"
    rf"|(?P<han>(?!十分)[{_HAN_DIGITS}]{{1,16}}(?:点[零〇一二三四五六七八九]+)?(?:分之[{_HAN_DIGITS}]+)?)"
    rf")\s?(?P<unit>%|％|‰|万亿|千万|百万|十万|千亿|百亿|十亿|万|亿|千(?!克|米|瓦|卡|帕|焦|伏|赫|兆|字)|百(?!分)|percent\b|per\s?cent\b|million\b|billion\b|thousand\b)?"
    rf"|(?P<per>百分之)(?P<perhan>[{_HAN_DIGITS}]+|\d+(?:\.\d+)?)"
)
_UNITS = {
    "%": Fraction(1, 100), "percent": Fraction(1, 100), "‰": Fraction(1, 1000), "百": Fraction(100),
    "千": Fraction(1000), "万": Fraction(10**4), "亿": Fraction(10**8), "万亿": Fraction(10**12),
    "千万": Fraction(10**7), "百万": Fraction(10**6), "十万": Fraction(10**5), "千亿": Fraction(10**11),
    "百亿": Fraction(10**10), "十亿": Fraction(10**9), "thousand": Fraction(1000),
    "million": Fraction(10**6), "billion": Fraction(10**9),
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
            if part["raised"]:
                if len(part["plain"]) > 30 or abs(int(part["raised"])) > 300:
                    return None
                value **= int(part["raised"])
        elif part["chain"]:
            value = _chained(part["chain"])
        else:
            value = han_number(part["han"])
    except (ZeroDivisionError, ValueError):
        return None
    unit = (part["unit"] or "").lower().replace(" ", "").replace("％", "%")
    value *= _UNITS.get(unit, Fraction(1))
    return -value if (part["sign"] or "+")[0] in "-负零Mm" or (part["sign"] or "").lower() == "negative " else value


def _chained(text: str) -> Fraction:
    """2万5千 → 25000, 1亿2千万 → 120000000; a last lone digit is of the next power: 2万5 → 25000."""
    total, scale = 0, 1
    for digits, units in re.findall(r"(\d+)([亿万千百十]*)", text):
        if units:
            scale = 1
            for unit in units:
                scale *= int(_UNITS.get(unit, 10))
            total += int(digits) * scale
        else:
            total += int(digits) * (scale // 10 if len(digits) == 1 else 1)
    return Fraction(total)


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
    if digit and len(text) > 1 and text[-2] in "百千万亿":  # 一百二 is 120, 一万二 12000
        digit *= {"百": 10, "千": 100, "万": 1000, "亿": 10**7}[text[-2]]
    return total + section + digit
