"""The rules about broken encodings: mojibake, which is repaired where that is certain, and lost characters (U+FFFD)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Annotated

from pydantic import Field

from dsr1_tune.data.record import Drop, Feedback, Message, Preference, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import HAN_RUN, Text, quoted, view, with_texts, without_code


class Encoding(RuleSettings):
    """Text decoded in a wrong encoding: repaired where that is certain, else dropped as mojibake."""

    repair: bool = True
    """Repair what can be repaired."""


class ReplacementCharacter(RuleSettings):
    """Text with U+FFFD, where characters were lost."""

    max_count: Annotated[int, Field(ge=0)] = 0
    """So many in a row's texts are let pass."""


def encoding(row: Row, settings: Encoding) -> Row | Drop:
    """Repair text decoded in a wrong encoding; drop the row where it cannot be repaired."""
    seen = view(row)
    repaired: list[str] | None = None
    for number, text in enumerate(seen.texts):
        if not _may_be_mojibake(text) or _ABOUT_ENCODINGS.search(seen.asked):
            continue
        content = _repaired_text(text.content) if settings.repair else text.content
        evidence = _mojibake_in(content)
        if evidence:
            detail = f"decoded in a wrong encoding: {quoted(evidence)}"
            return Drop("mojibake", detail, "convert the source to UTF-8 again", text.message.path)
        if content != text.content:
            repaired = repaired or [other.content for other in seen.texts]
            repaired[number] = content
    if repaired:
        row = with_texts(row, repaired)
    # Else the broken encoding would be what tells the worse answer from the better.
    if isinstance(row, Preference) and settings.repair:
        rejected = _repaired(row.rejected)
        return row if rejected is row.rejected else replace(row, rejected=rejected)
    if isinstance(row, Feedback) and settings.repair and not row.is_good:
        completion = _repaired(row.completion)
        return row if completion is row.completion else replace(row, completion=completion)
    return row


def _repaired(message: Message) -> Message:
    """The same message, or the repaired one."""
    content = _repaired_text(message.content) if _may_be_mojibake(Text(message)) else message.content
    return message if content == message.content else replace(message, content=content)


# UTF-8 decoded as GBK turns ，。的 and quotation marks into these; they are next to unknown in real Chinese. The last
# are what U+FFFD and fresh memory look like in GBK.
_GBK_MARKS = "锛銆鐨鈥紝锟烫屯"
# UTF-8 decoded as Shift-JIS, GBK decoded as Big5: what their commas and full stops become.
_OTHER_MARKS = "ｼ縲ｺㄛㄩ﹝﹜"
_GBK_MARK = re.compile("[锛銆鐨鈥紝].{0,60}[锛銆鐨鈥紝]|锟斤拷|烫烫烫|屯屯屯", re.S)
# A UTF-8 lead byte and a continuation byte, both decoded as Latin-1 or Windows-1252.
_LATIN_PAIR = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019"
    "\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]"
)
_LATIN_RUN = re.compile("[\u00a1-\u00ff]{4}")
# UTF-8 decoded as Shift-JIS: the lead bytes C2 and C3, and a continuation byte. GBK decoded as Big5: its comma, colon
# and brackets among Han characters. Both are half-width or phonetic signs, which stand in words of their kind only.
_KANA_PAIR = re.compile("(?<![\uff61-\uff9f])[\uff82\uff83\uff8e-\uff91][\uff61-\uff9f](?![\uff61-\uff9f])")
_KANA_BY_HAN = re.compile("[\u3400-\u9fff][\uff61-\uff9f]|[\uff61-\uff9f][\u3400-\u9fff]")
_PHONETIC = re.compile("[\u3400-\u9fff][\u3105-\u3129\ufe5b-\ufe5e](?![\u3105-\u3129ˊˇˋ˙])")
# ASCII read as UTF-16: every second space or so becomes one of these between Han characters.
_SWAPPED = "".join(chr(code << 8) for code in range(0x61, 0x7B))  # ASCII letters with their two bytes swapped
_UTF16_SPACE = re.compile(
    f"[\u3400-\u7fff][\u2060-\u207f]|[\u3400-\u7fff][\u2020-\u205f][\u3400-\u7fff]|[{_SWAPPED}]{{4}}"
)
# UTF-8 decoded as GBK in English: it鈥檚, caf茅, 25掳C.
_HAN_IN_WORD = re.compile("[A-Za-z][\u3400-\u9fff]{1,2}[a-z]|[鈥鈧]|拢\\d|掳[CF]|[卤脳] ?\\d")
_HANGUL_BY_HAN = re.compile("[\u3400-\u9fff][\uac00-\ud7a3]|[\uac00-\ud7a3][\u3400-\u9fff]")
# Curly quotes and accents, saved by a program that knew none: `it???s`, `caf??`.
_MARKS_IN_WORD = re.compile(
    r"[A-Za-z]\?{3}(?:s|t|re|ve|ll|d|m)\b|[A-Za-z]\?\?[a-z]{2}|(?<=[ (])\?\?(?=[A-Za-z\d])|[a-z]{3}\?\? [a-z]"
)
_ABOUT_ENCODINGS = re.compile(r"encod|mojibake|utf-?8|unicode|latin-?1|gbk|编码|乱码|字符集|锟斤拷")


def _may_be_mojibake(text: Text) -> bool:
    """A quick look, before anything is decoded."""
    data, content = text.data, text.content
    if b"??" in text.signs and b"??" in data and len(_MARKS_IN_WORD.findall(without_code(text))) > 1:
        return True
    if len(data) == len(content):
        return False
    if _SUSPECT.search(content) and _is_suspicious(text):
        return True
    return text.num_han > 7 and text.num_han * 3 > len(text.shape) and _is_rare_at_an_end(content)


# Any of the characters that the expressions above look for: one class is quicker than several searches.
_SUSPECT = re.compile(f"[\u00c2-\u00f4\u2060-\u207f\uac00-\ud7a3ﾃﾂ鈧拢掳卤脳攀{_GBK_MARKS}{_OTHER_MARKS}]")


def _is_suspicious(text: Text) -> bool:
    """Whether one of the characters stands where it does in no language."""
    data, content = text.data, text.content
    may_be_pair = b"\xc2" in data or (b"\xc3" in data and (b"\xe2" in data or b"\xc5" in data))
    if may_be_pair and (_LATIN_PAIR.search(content) or (b"\xc3" in data and _LATIN_RUN.search(content))):
        return True
    if text.num_latin > 8 * text.num_han or ("鈥" in content and text.num_latin > text.num_han):
        found = _HAN_IN_WORD.search(content) or _where_misread(content)
        if found or not text.num_han:
            return found is not None
    if any(mark in content for mark in _GBK_MARKS) and (_GBK_MARK.search(content) or _looks_rare(content)):
        return True
    if "，" not in content and _where_misread(content):  # all of it was misread, or the comma would stand there
        return True
    return b"y" in text.shape and _is_misread_korean(content)


def _where_misread(content: str) -> re.Match[str] | None:
    """Signs of Shift-JIS, UTF-16 and Big5 that were none: one that is clear, or several that may be chance."""
    found = _KANA_PAIR.search(content) or _UTF16_SPACE.search(content)
    if found is None and len(_KANA_BY_HAN.findall(content)) > 2:
        found = _KANA_BY_HAN.search(content)
    if found is None and len(_PHONETIC.findall(content)) > 1:
        found = _PHONETIC.search(content)
    return found


def _is_rare_at_an_end(content: str) -> bool:
    """Whether the beginning or the end lacks the commonest characters, and many of it are rare."""
    part = content[-40:]
    if "，" not in part and "的" not in part and "。" not in part and "、" not in part and _looks_rare(part):
        return True
    part = content[:40]
    return "，" not in part and "的" not in part and "。" not in part and "、" not in part and _looks_rare(part)


def _is_misread_korean(content: str) -> bool:
    """Whether Hangul and Han stand side by side without spaces, as where UTF-8 was decoded as EUC-KR."""
    return content.count(" ") * 12 < len(content) and len(_HANGUL_BY_HAN.findall(content)) > 1


# Read wrongly and back again: what is valid UTF-8 then was UTF-8, since other text hardly ever is.
_MISREAD_AS = ("gbk", "gb18030", "cp932", "big5", "cp949")


def _repaired_text(content: str) -> str:
    """The text as it was meant, where that is certain; else the text."""
    import ftfy
    from ftfy.badness import badness

    if sum(map(len, _LATIN_RUN.findall(content))) * 2 > len(content):
        # Nearly all of it, perhaps more than once: UTF-8 taken for Latin-1 is no valid GBK mostly, but the reverse
        # never is UTF-8.
        meant = content
        while (again := _recoded(meant, "latin-1", "utf-8")) != meant:
            meant = again
        if meant == content:
            meant = _recoded(content, "latin-1", "gb18030")
        if sum(char in _FREQUENT for char in meant) * 8 > len(meant):
            return meant
    elif any(
        sign.search(content) for sign in (_GBK_MARK, _KANA_PAIR, _KANA_BY_HAN, _HAN_IN_WORD)
    ) or _is_rare_at_an_end(content):
        for wrong in _MISREAD_AS:
            meant = _recoded(content, wrong, "utf-8")
            if meant != content:
                return meant
        return content
    fixed = ftfy.fix_encoding(content)
    # Text encoded twice and three times is so long that its badness says little.
    is_better = badness(fixed) < badness(content) or len(fixed) * 2 < len(content)
    return fixed if fixed != content and is_better else content


def _recoded(content: str, wrong: str, right: str) -> str:
    try:
        return content.encode(wrong).decode(right)
    except UnicodeError:
        return content


def _mojibake_in(content: str) -> str:
    """The surroundings of what is still broken, or nothing."""
    from ftfy.badness import is_bad

    found = _GBK_MARK.search(content) or _where_misread(content)
    if found is None and (is_bad(content) or len(_LATIN_RUN.findall(content)) > 1):
        found = _LATIN_PAIR.search(content) or _LATIN_RUN.search(content)
    if found is None and ("鈥" in content or sum(map(str.isascii, content)) * 10 > 9 * len(content)):
        found = _HAN_IN_WORD.search(content)
    if found is None and len(_MARKS_IN_WORD.findall(content)) > 1:
        found = _MARKS_IN_WORD.search(content)
    if found is None and _is_misread_korean(content):
        found = _HANGUL_BY_HAN.search(content)
    if found is None:
        return content[-40:] if _is_rare_at_an_end(content) else ""
    return content[max(0, found.start() - 10) : found.start() + 30]


def _looks_rare(part: str) -> bool:
    """Whether the Han characters are such as neither mainland nor Taiwan uses every day, in a text without lists."""
    han = "".join(run for run in HAN_RUN.findall(part[:400]) if len(run) > 5)  # names in a list are shorter
    if len(han) < 8:
        return False
    num_rare = sum(not _is_common(char) for char in han)
    if num_rare * 5 > 2 * len(han):
        return True
    num_frequent = sum(char in _FREQUENT for char in han)
    return num_rare * 7 > len(han) and num_frequent * 12 < len(han)


# Every sentence holds some of these.
_FREQUENT = frozenset(
    "的一是不了在人有我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没日于起还发成"
    "事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明其种声全工己话"
    "者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次性病症治疗检查患药体法律需建议可能使用這個們來國會說為時對學過還"
)


@cache
def _is_common(char: str) -> bool:
    """Whether GB 2312 or Big5 has the character among those of everyday use."""
    try:
        if char.encode("gb2312") < b"\xd8":
            return True
    except UnicodeEncodeError:
        pass
    try:
        return char.encode("big5") < b"\xc7"
    except UnicodeEncodeError:
        return False


def replacement_character(row: Row, settings: ReplacementCharacter) -> Row | Drop:
    """Drop a row in which characters were lost: they became U+FFFD."""
    seen = view(row)
    count, first = 0, None
    for text in seen.texts:
        if "\ufffd" in text.content:
            count += text.content.count("\ufffd")
            first = first or text
    if first is None or count <= settings.max_count or "fffd" in seen.asked or "replacement character" in seen.asked:
        return row
    at = first.content.index("\ufffd")
    detail = f"{count} lost characters, the first at {quoted(first.content[max(0, at - 15) : at + 15])}"
    fix = "take the text from its source again, or raise replacement_character.max_count"
    return Drop("replacement_character", detail, fix, first.message.path)


ENCODING = Rule(
    "encoding",
    encoding,
    {
        "mojibake": Meaning(
            "the text was decoded in a wrong encoding, and cannot be mended", "文本按错误编码解码，无法修复"
        )
    },
    Encoding,
    reads_questions=True,
)
REPLACEMENT_CHARACTER = Rule(
    "replacement_character",
    replacement_character,
    Meaning("the text holds U+FFFD, where characters were lost", "文本含有 U+FFFD，已有字符丢失"),
    ReplacementCharacter,
    reads_questions=True,
)
