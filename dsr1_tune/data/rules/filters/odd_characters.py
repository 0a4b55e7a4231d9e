"""The rule about text that is mostly signs or control characters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import pairwise

from dsr1_tune.config import Count
from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Part, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import LONG, Text, View, ends, quoted, view

_TABLE = PhraseTable(__file__)
# How the names of the characters begin that Japanese is written in.
_JAPANESE = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "KATAKANA-HIRAGANA")
# By the first letter of Unicode's categories.
_KINDS = {"L": "letter", "M": "letter", "N": "letter", "Z": "space", "P": "sign", "S": "sign"}


class OddCharacters(RuleSettings):
    """Text that is mostly signs, or holds control characters."""

    max_share: Part = 0.7
    """Largest share of signs among the characters; code, formulas, tables and emoji asked for are no signs."""
    min_chars: Count = 8
    """Shorter texts are not looked at: ??? and :-) may be answers."""
    max_control_share: Part = 0.01
    """Largest share of control, private and unassigned characters."""


def odd_characters(row: Row, settings: OddCharacters) -> Row | Drop:
    """Drop a row whose question or answer is mostly signs or holds control characters; every script is a language."""
    seen = view(row)
    for text in seen.checked:
        num_signs = len(text.signs)
        suspicious = num_signs * 10 > len(text.shape) * 3 and len(text.shape) >= settings.min_chars
        why = ""
        if suspicious or b"\x01" in text.signs or b"\xee" in text.data:
            why = _oddness(text, settings, seen)
        if not why and b"o" in text.shape and (b"y" in text.shape or b"g" in text.shape or b"k" in text.shape):
            why = _mixes_scripts(text.content)
        if why:
            fix = "clean the text, or raise odd_characters.max_share"
            return Drop("odd_characters", f"{why}: {quoted(text.content)}", fix, text.message.path)
    return row


def _oddness(text: Text, settings: OddCharacters, seen: View) -> str:
    kinds = Counter(map(_kind, ends(text.content)))
    total = sum(kinds.values()) - kinds["space"]
    if kinds["control"] >= max(3, settings.max_control_share * total) or kinds["unassigned"] > 0.05 * total:
        return f"{kinds['control'] + kinds['unassigned']} control or private characters"
    if total < settings.min_chars:
        return ""
    noise = _TABLE.noise.search(text.content)
    signs = set(noise[0]) if noise else set()
    if len(signs) > 8 or sum(not sign.isascii() for sign in signs) > 5:
        return "a long run of mixed signs"
    if _TABLE.asks_for_signs.search(seen.asked):
        return ""
    if kinds["letter"] * 10 > total and (b"```" in text.data or _TABLE.asks_for_code.search(seen.asked)):
        return ""  # programs and formulas are signs and letters
    if kinds["letter"] * 5 > total and _TABLE.is_data.match(text.content):
        return ""
    num_signs = kinds["sign"] + kinds["rare sign"]
    if num_signs > settings.max_share * total and not _TABLE.only_maths.fullmatch(text.content):
        return f"{num_signs * 100 // total} % of it are signs"
    if kinds["rare sign"] > 0.3 * total:
        return f"{kinds['rare sign'] * 100 // total} % of it are rare signs"
    return ""


def _mixes_scripts(content: str) -> str:
    """Which scripts change from letter to letter, or nothing: no language is written so."""
    names = [unicodedata.name(char, "?").split(" ")[0] for char in content[:LONG] if char.isalpha()]
    scripts = ["JAPANESE" if name in _JAPANESE else name for name in names]
    changes = sum(one != other for one, other in pairwise(scripts))
    num = len(set(scripts))
    return f"letters of {num} scripts, mixed" if num > 3 and changes * 3 > len(scripts) > 12 else ""


def _kind(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cc":
        return "space" if char in "\t\n\r\x0b\x0c" else "control"
    if category == "So" and char > "\x7f":
        return "rare sign"
    return "space" if category == "Cf" else _KINDS.get(category[0], "unassigned")


ODD_CHARACTERS = Rule(
    "odd_characters",
    odd_characters,
    Meaning(
        "the text is mostly signs that are no language, code or formula", "文本大多是既非语言、也非代码或公式的符号"
    ),
    OddCharacters,
    reads_questions=True,
)
