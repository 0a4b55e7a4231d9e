"""The rule about answers that only stand in for one: TODO, N/A, 待补充."""

from __future__ import annotations

import re
import unicodedata

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings, Words
from dsr1_tune.data.rules.text_features import Text, View, phrases, quoted, view

_TABLE = PhraseTable(__file__)


class PlaceholderAnswer(RuleSettings):
    """Answers that only stand in for one: TODO, N/A, 待补充."""

    words: Words = ()
    """Further stand-ins of your own."""


def placeholder_answer(row: Row, settings: PlaceholderAnswer) -> Row | Drop:
    """Drop an answer that only stands in for one; `None` and `无` are answers where the question allows for them."""
    seen = view(row)
    for text in seen.answers:
        if not settings.words and text.num_han > _LONGEST_IN_HAN:
            continue
        if len(text.content) > _LONGEST_STAND_IN and not settings.words and not text.low.startswith(_DUMMY):
            continue
        if _stands_in(text, seen, settings):
            detail = f"a stand-in, not an answer: {quoted(text.content)}"
            return Drop("placeholder_answer", detail, "write the answer, or remove the row", text.message.path)
    return row


_LONGEST_STAND_IN = 60
_LONGEST_IN_HAN = 24
_DUMMY = (b"lorem ipsum", b" lorem ipsum", b"\nlorem ipsum", b'"lorem ipsum', b"<p>lorem ipsum")
_FIRST_ZH = frozenset(_TABLE.text("first_zh"))


def _stands_in(text: Text, seen: View, settings: PlaceholderAnswer) -> bool:
    """Whether the text is none of its own: a word for an answer that is missing, a slot, a test, only signs."""
    content = text.content
    plain = unicodedata.normalize("NFKC", content) if b"f" in text.signs else content
    plain = plain.strip().casefold()
    core = plain.strip(_AROUND)
    if settings.words and any(core == word.strip(_AROUND).casefold() for word in settings.words):
        return True
    if plain.startswith("lorem ipsum"):
        return not _ABOUT_LOREM.search(seen.asked)
    if len(content) > _LONGEST_STAND_IN:
        return False
    if text.num_han and core[:1] not in _FIRST_ZH and core not in _NULLS:
        return False
    asked = seen.question.content.lower() if seen.question else ""
    if core in _STAND_INS or (plain[-1:] in (":", "：") and _ONLY_LABEL.fullmatch(plain)):
        return len(asked) > _LONGEST_WORD_QUESTION or not _TRANSLATES.search(asked)
    if core in _NOTHINGS or (_MISSING_ZH if text.num_han else _MISSING).fullmatch(core):
        return not _MAY_BE_NONE.search(asked) and (len(core) == 1 or core not in asked)
    if core in _NULLS:
        return not _ABOUT_VALUES.search(asked) and not _ABOUT_SIGNS.search(seen.asked) and core not in asked
    if core in ("ref", "value", "name", "div/0", "num", "spill", "n/a") and _SHEET_ERROR.fullmatch(plain):
        return not _ABOUT_SHEETS.search(seen.asked)
    if not core or _ONLY_SLOT.fullmatch(plain):
        # Of a single sign one cannot tell; `{}` and `[]` are results.
        is_empty = len(plain) > 1 or plain in "-—–_.…*"
        is_empty = is_empty and (_ONLY_DOTS.fullmatch(plain) or _ONLY_SLOT.fullmatch(plain)) is not None
        return is_empty and not _ABOUT_SIGNS.search(seen.asked) and not _ABOUT_VALUES.search(asked)
    if (_STANDS_IN_ZH if text.num_han else _STANDS_IN).fullmatch(core):
        return not _ABOUT_DUMMIES.search(seen.asked) and core not in asked
    return False


_AROUND = " \t\r\n.。!！…-_*[]【】()（）<>《》{}「」“”\"'`#:：,，?？~$%/\\|=—–;；、"
_STAND_INS = frozenset(_TABLE["stand_ins"])
_NOTHINGS = frozenset(phrases("none|nothing|无|没有"))
_NULLS = frozenset(phrases("null|nil|na|n.a|暂无|不适用|not applicable|nan|undefined"))
_STANDS_IN = _TABLE.pattern("stands_in")
_STANDS_IN_ZH = _TABLE.pattern("stands_in_zh")
_MISSING = _TABLE.pattern("missing")
_MISSING_ZH = _TABLE.pattern("missing_zh")
_SHEET_ERROR = re.compile(r"#(?:ref|value|name|div/0|null|num|n/?a|spill|calc)[!?]?")
_ABOUT_SHEETS = re.compile(r"excel|sheet|formula|cell|error|公式|表格|单元格|错误")
_ONLY_LABEL = re.compile(r"(?:a|ans|answer|assistant|gpt|bot|response|答|答案|回答|解)\s*[:：]")
_ONLY_DOTS = re.compile(r"[.。…\-_*—–(（）)\[\] ?？!！~/\\、,，]+")
# Tags, entities and brackets with nothing in them.
_ONLY_SLOT = re.compile(r"(?:</?[a-z][^<>]{0,40}>|&[a-z]+;|\s|[\[({（【]\s*[\])}）】]){1,20}")
_ABOUT_LOREM = re.compile(r"lorem|dummy|placeholder|filler|template|\bmock\b|html|占位|模板|假文")
_LONGEST_WORD_QUESTION = 80
_TRANSLATES = re.compile(r"translat|翻译|译[成为]")
_ABOUT_DUMMIES = _TABLE.pattern("about_dummies")
_MAY_BE_NONE = _TABLE.pattern("may_be_none")
_ABOUT_VALUES = _TABLE.pattern("about_values")
_ABOUT_SIGNS = _TABLE.pattern("about_signs")


PLACEHOLDER_ANSWER = Rule(
    "placeholder_answer",
    placeholder_answer,
    Meaning("the answer is a stand-in such as TODO, N/A or 无", "回答只是占位内容，如 TODO、N/A 或“无”"),
    PlaceholderAnswer,
)
