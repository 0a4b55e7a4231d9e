"""Texts that look the same and are stored in different characters, brought to one form so that they can be compared."""

from __future__ import annotations

import re
import unicodedata

_HALF_WIDTH_KANA = re.compile("[\uff66-\uff9d][\uff9e\uff9f]")


def composed(text: str) -> str:
    """The text with each accented letter and Hangul syllable as one character (NFC), as nearly all texts have them.

    macOS' file names, PDF and some keyboards keep a letter and its accents apart (NFD). Half-width kana, of which NFC
    leaves the voicing sign apart, become full-width with it. ASCII and what is composed already cost next to nothing.
    """
    if text.isascii():
        return text
    if "\uff9e" in text or "\uff9f" in text:
        text = _HALF_WIDTH_KANA.sub(lambda found: unicodedata.normalize("NFKC", found.group()), text)
    return unicodedata.normalize("NFC", text)
