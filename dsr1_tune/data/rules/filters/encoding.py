"""The rules about broken encodings: mojibake, which is repaired where that is certain, and lost characters (U+FFFD)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Annotated

from pydantic import Field

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row, messages_of, with_messages
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import HAN_RUN, Text, has_bad_answer, quoted, view, with_texts, without_code

_TABLE = PhraseTable(__file__)
_GBK_MARKS = _TABLE["gbk_marks"]
_FREQUENT = frozenset(_TABLE.text("frequent"))
# Read wrongly and back again: what is valid UTF-8 then was UTF-8, since other text hardly ever is.
_MISREAD_AS = ("gbk", "gb18030", "cp932", "big5", "cp949")


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
        if not _may_be_mojibake(text) or _TABLE.about_encodings.search(seen.asked):
            continue
        content = _repaired_text(text.message.content) if settings.repair else text.message.content
        evidence = _mojibake_in(content)
        if evidence:
            detail = f"decoded in a wrong encoding: {quoted(evidence)}"
            return Drop("mojibake", detail, "convert the source to UTF-8 again", text.message.path)
        if content != text.message.content:
            repaired = repaired or [other.message.content for other in seen.texts]
            repaired[number] = content
    if repaired:
        row = with_texts(row, repaired)
    # Else the broken encoding would be what tells the worse answer from the better.
    if settings.repair and has_bad_answer(row):
        *messages, bad = messages_of(row)
        content = _repaired_text(bad.content) if _may_be_mojibake(Text(bad)) else bad.content
        if content != bad.content:
            row = with_messages(row, (*messages, replace(bad, content=content)))
    return row


def _may_be_mojibake(text: Text) -> bool:
    """A quick look, before anything is decoded."""
    data, content = text.data, text.content
    if b"??" in text.signs and b"??" in data and len(_TABLE.marks_in_word.findall(without_code(text))) > 1:
        return True
    if len(data) == len(content):
        return False
    if _TABLE.suspect.search(content) and _is_suspicious(text):
        return True
    return text.num_han > 7 and text.num_han * 3 > len(text.shape) and _is_rare_at_an_end(content)


def _is_suspicious(text: Text) -> bool:
    """Whether one of the characters stands where it does in no language."""
    data, content = text.data, text.content
    may_be_pair = b"\xc2" in data or (b"\xc3" in data and (b"\xe2" in data or b"\xc5" in data))
    if may_be_pair and (_TABLE.latin_pair.search(content) or (b"\xc3" in data and _TABLE.latin_run.search(content))):
        return True
    if text.num_latin > 8 * text.num_han or ("鈥" in content and text.num_latin > text.num_han):
        found = _TABLE.han_in_word.search(content) or _where_misread(content)
        if found or not text.num_han:
            return found is not None
    if any(mark in content for mark in _GBK_MARKS) and (_TABLE.gbk_mark.search(content) or _looks_rare(content)):
        return True
    if "，" not in content and _where_misread(content):  # all of it was misread, or the comma would stand there
        return True
    return b"y" in text.shape and _is_misread_korean(content)


def _where_misread(content: str) -> re.Match[str] | None:
    """Signs of Shift-JIS, UTF-16 and Big5 that were none: one that is clear, or several that may be chance."""
    found = _TABLE.kana_pair.search(content) or _TABLE.utf16_space.search(content)
    if found is None and len(_TABLE.kana_by_han.findall(content)) > 2:
        found = _TABLE.kana_by_han.search(content)
    if found is None and len(_TABLE.phonetic.findall(content)) > 1:
        found = _TABLE.phonetic.search(content)
    return found


def _is_rare_at_an_end(content: str) -> bool:
    """Whether the beginning or the end lacks the commonest characters, and many of it are rare."""
    ends = (content[-40:], content[:40])
    return any(not any(mark in part for mark in "，的。、") and _looks_rare(part) for part in ends)


def _is_misread_korean(content: str) -> bool:
    """Whether Hangul and Han stand side by side without spaces, as where UTF-8 was decoded as EUC-KR."""
    return content.count(" ") * 12 < len(content) and len(_TABLE.hangul_by_han.findall(content)) > 1


def _repaired_text(content: str) -> str:
    """The text as it was meant, where that is certain; else the text."""
    import ftfy
    from ftfy.badness import badness

    if sum(map(len, _TABLE.latin_run.findall(content))) * 2 > len(content):
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
        sign.search(content) for sign in (_TABLE.gbk_mark, _TABLE.kana_pair, _TABLE.kana_by_han, _TABLE.han_in_word)
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

    found = _TABLE.gbk_mark.search(content) or _where_misread(content)
    if found is None and (is_bad(content) or len(_TABLE.latin_run.findall(content)) > 1):
        found = _TABLE.latin_pair.search(content) or _TABLE.latin_run.search(content)
    if found is None and ("鈥" in content or sum(map(str.isascii, content)) * 10 > 9 * len(content)):
        found = _TABLE.han_in_word.search(content)
    if found is None and len(_TABLE.marks_in_word.findall(content)) > 1:
        found = _TABLE.marks_in_word.search(content)
    if found is None and _is_misread_korean(content):
        found = _TABLE.hangul_by_han.search(content)
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


@cache
def _is_common(char: str) -> bool:
    """Whether GB 2312 or Big5 has the character among those of everyday use."""
    return b"" < char.encode("gb2312", "ignore") < b"\xd8" or b"" < char.encode("big5", "ignore") < b"\xc7"


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
