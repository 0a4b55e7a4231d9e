"""The rule about answers that only stand in for one: TODO, N/A, 待补充."""

from __future__ import annotations

import unicodedata

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings, Words
from dsr1_tune.data.rules.text_features import Text, View, phrases, quoted, view

_TABLE = PhraseTable(__file__)
_LONGEST_STAND_IN = 60
_LONGEST_IN_HAN = 24
_LONGEST_WORD_QUESTION = 80
_DUMMY = (b"lorem ipsum", b" lorem ipsum", b"\nlorem ipsum", b'"lorem ipsum', b"<p>lorem ipsum")
_FIRST_ZH = frozenset(_TABLE.text("first_zh"))
_AROUND = " \t\r\n.。!！…-_*[]【】()（）<>《》{}「」“”\"'`#:：,，?？~$%/\\|=—–;；、"
_STAND_INS = frozenset(_TABLE["stand_ins"])
_NOTHINGS = frozenset(phrases("none|nothing|无|没有"))
_NULLS = frozenset(phrases("null|nil|na|n.a|暂无|不适用|not applicable|nan|undefined"))


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


def _stands_in(text: Text, seen: View, settings: PlaceholderAnswer) -> bool:
    """Whether the text is none of its own: a word for an answer that is missing, a slot, a test, only signs."""
    content = text.content
    plain = unicodedata.normalize("NFKC", content) if b"f" in text.signs else content
    plain = plain.strip().casefold()
    core = plain.strip(_AROUND)
    if settings.words and any(core == word.strip(_AROUND).casefold() for word in settings.words):
        return True
    if plain.startswith("lorem ipsum"):
        return not _TABLE.about_lorem.search(seen.asked)
    if len(content) > _LONGEST_STAND_IN:
        return False
    if text.num_han and core[:1] not in _FIRST_ZH and core not in _NULLS:
        return False
    asked = seen.question.content.lower() if seen.question else ""
    if core in _STAND_INS or (plain[-1:] in (":", "：") and _TABLE.only_label.fullmatch(plain)):
        return len(asked) > _LONGEST_WORD_QUESTION or not _TABLE.translates.search(asked)
    if core in _NOTHINGS or (_TABLE.missing_zh if text.num_han else _TABLE.missing).fullmatch(core):
        return not _TABLE.may_be_none.search(asked) and (len(core) == 1 or core not in asked)
    if core in _NULLS:
        return not _TABLE.about_values.search(asked) and not _TABLE.about_signs.search(seen.asked) and core not in asked
    if core in ("ref", "value", "name", "div/0", "num", "spill", "n/a") and _TABLE.sheet_error.fullmatch(plain):
        return not _TABLE.about_sheets.search(seen.asked)
    if not core or _TABLE.only_slot.fullmatch(plain):
        # Of a single sign one cannot tell; `{}` and `[]` are results.
        is_empty = len(plain) > 1 or plain in "-—–_.…*"
        is_empty = is_empty and (_TABLE.only_dots.fullmatch(plain) or _TABLE.only_slot.fullmatch(plain)) is not None
        return is_empty and not _TABLE.about_signs.search(seen.asked) and not _TABLE.about_values.search(asked)
    if (_TABLE.stands_in_zh if text.num_han else _TABLE.stands_in).fullmatch(core):
        return not _TABLE.about_dummies.search(seen.asked) and core not in asked
    return False


PLACEHOLDER_ANSWER = Rule(
    "placeholder_answer",
    placeholder_answer,
    Meaning("the answer is a stand-in such as TODO, N/A or 无", "回答只是占位内容，如 TODO、N/A 或“无”"),
    PlaceholderAnswer,
)
