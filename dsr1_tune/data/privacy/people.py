"""Names and postal addresses of people, found only where the text says that they are some.

Without a dictionary or a model neither can be told from other words, so a label or a sentence such as 我叫 or "I live
at" must introduce them. Names in running text, nicknames and the addresses of firms are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.privacy.numbers import Span

_TABLE = PhraseTable(__file__)

HAN = _TABLE.text("han")
_CHINESE = _TABLE.pattern("chinese")
_LABELLED = _TABLE.pattern("labelled")
_NAME_IS = _TABLE.pattern("name_is")
_WHOSE = _TABLE.pattern("whose")
# Assistants introduce themselves in training data; forms hold what is to be filled in.
_NO_NAME = frozenset({"Name", "First", "Last", "Full", "Email", "Phone", "Address", "Date", "Age", "Gender", "The"})
_NO_NAME |= {"String", "Text", "Not", "None", "Null", "True", "False", "Unknown", "Your", "My", "Assistant", "ChatGPT"}
_NO_NAME |= {"GPT", "Claude", "Siri", "Alexa", "Cortana", "Bard", "Gemini", "Qwen", "DeepSeek", "Llama", "Mistral"}


def names(text: str, start: int, end: int) -> Iterator[Span]:
    """Names behind a label (姓名, 收件人, Patient name) or in an introduction (我叫, My name is)."""
    if _CHINESE.search(text):
        for match in _LABELLED.finditer(text, start, end):
            yield match.span(match.lastindex or 0)
    for match in _NAME_IS.finditer(text, start, end):
        before = text[max(0, match.start() - 40) : match.start()]
        if _WHOSE.search(before) and re.split(r"[ '’-]", match[1])[0] not in _NO_NAME:
            yield match.span(1)


# ---- addresses -------------------------------------------------------------------------------------------------------

_LIVES_ZH = _TABLE.pattern("lives_zh")
_FLAT = re.compile(r"室|单元|栋|幢|号楼|户|[0-9]-[0-9]")

_STREET = _TABLE.pattern("street")
_LIVES_EN = _TABLE.pattern("lives_en")


def addresses(text: str, start: int, end: int) -> Iterator[Span]:
    """Addresses that the text says somebody lives at or is written to, down to a house, estate or village.

    地址 alone may be a hospital's or a court's, and counts only with a flat: 3栋2单元501室.
    """
    if _CHINESE.search(text):
        for match in _LIVES_ZH.finditer(text, start, end):
            if match[1] != "地址" or _FLAT.search(match[2]):
                yield match.start(2), match.start(2) + len(match[2].rstrip())
    for match in _STREET.finditer(text, start, end):
        if _LIVES_EN.search(text[max(0, match.start() - 60) : match.start()]):
            yield match.span()
