"""Names and postal addresses of people, found only where the text says that they are some.

Without a dictionary or a model neither can be told from other words, so a label or a sentence such as 我叫 or "I live
at" must introduce them. Names in running text, nicknames and the addresses of firms are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.privacy.numbers import Span

TABLE = PhraseTable(__file__)


def names(text: str, start: int, end: int) -> Iterator[Span]:
    """Names behind a label (姓名, 收件人, Patient name) or in an introduction (我叫, My name is)."""
    if TABLE.chinese.search(text):
        for match in TABLE.labelled.finditer(text, start, end):
            yield match.span(match.lastindex or 0)
    for match in TABLE.name_is.finditer(text, start, end):
        before = text[max(0, match.start() - 40) : match.start()]
        if TABLE.whose.search(before) and re.split(r"[ '’-]", match[1])[0] not in TABLE["no_name"]:
            yield match.span(1)


def addresses(text: str, start: int, end: int) -> Iterator[Span]:
    """Addresses that the text says somebody lives at or is written to, down to a house, estate or village.

    地址 alone may be a hospital's or a court's, and counts only with a flat: 3栋2单元501室.
    """
    if TABLE.chinese.search(text):
        for match in TABLE.lives_zh.finditer(text, start, end):
            if match[1] != "地址" or TABLE.flat.search(match[2]):
                yield match.start(2), match.start(2) + len(match[2].rstrip())
    for match in TABLE.street.finditer(text, start, end):
        if TABLE.lives_en.search(text[max(0, match.start() - 60) : match.start()]):
            yield match.span()
