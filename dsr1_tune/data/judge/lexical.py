"""What can be said of a question and its answer without any model: shared rare words, and odd runs of characters.

Both scores learn from the file itself, in one pass over its rows, and are given in a second one. Texts are handled as
arrays of code points, thousands at a time. Words are what alphabets divide by spaces; of scripts without spaces, pairs
of characters are taken.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

MAX_CHARS = 4000
"""Only so much of a text is looked at."""
MIN_ODD_CHARS = 8
"""Shorter answers have no surprise: B, 42 and 是 are whole answers."""
BUCKETS = 1 << 22
PAIR_BUCKETS = 1 << 20
# How many sightings of a context weigh as much as all that is known without it.
_TRUST = 4.0

# As many different characters as a text may hold, and what each counts before it is seen.
_ALPHABET = 0x10000
_UNSEEN = 0.5

_OTHER, _LETTER, _UNSPACED = 0, 1, 2
# Words that begin alike are mostly forms of one word.
_STEM = 5
# Thai to Burmese and Hangul's letters, Khmer, kana, Han, Hangul; full-width letters stay letters.
_UNSPACED_BLOCKS = (
    (0x0E00, 0x1200), (0x1780, 0x1800), (0x3040, 0x3190), (0x31F0, 0x3200), (0x3400, 0xA000), (0xAC00, 0xD7B0),
    (0xF900, 0xFB00), (0x20000, 0x30000),
)  # fmt: skip


@dataclass
class Counts:
    """What a file's texts are made of: in how many texts a word stands, and which character follows which.

    Characters are counted in two halves of the rows, so that no answer is measured by what it taught itself.
    """

    texts: int = 0
    texts_with: np.ndarray = field(default_factory=lambda: np.zeros(BUCKETS, np.int32))
    triples: np.ndarray = field(default_factory=lambda: np.zeros((2, BUCKETS), np.int32))
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((2, PAIR_BUCKETS), np.int32))
    singles: np.ndarray = field(default_factory=lambda: np.zeros((2, 0x110000), np.int32))

    def add(self, pairs: Sequence[tuple[str, str]], numbers: np.ndarray) -> None:
        """Count the rows with these numbers."""
        for side in (0, 1):
            keys = _words(_codes([pair[side] for pair in pairs]))
            self.texts_with += np.bincount(keys % np.uint64(BUCKETS), minlength=BUCKETS).astype(np.int32)
            self.texts += len(pairs)
        codes = _codes([answer for _, answer in pairs])
        triple, pair, single = _runs(codes)
        half = (numbers % 2)[codes.row[2:]]
        is_text = codes.code[2:] > 0
        for which in (0, 1):
            chosen = is_text & (half == which)
            for table, buckets in ((self.triples, triple), (self.pairs, pair), (self.singles, single)):
                table[which] += np.bincount(buckets[chosen], minlength=table.shape[1]).astype(np.int32)


def overlap(pairs: Sequence[tuple[str, str]], counts: Counts) -> np.ndarray:
    """[N] which part of the words of question or answer, whichever has fewer, the other has too; rare ones weigh more.

    nan where one of them has no words.
    """
    asked = _words(_codes([question for question, _ in pairs]))
    said = _words(_codes([answer for _, answer in pairs]))
    shared = np.intersect1d(asked, said, assume_unique=True)
    all_asked, all_said, both = (_weigh(keys, counts, len(pairs)) for keys in (asked, said, shared))
    fewer = np.minimum(all_asked, all_said)
    return np.divide(both, fewer, out=np.full(len(pairs), np.nan), where=fewer > 0)


def _weigh(keys: np.ndarray, counts: Counts, rows: int) -> np.ndarray:
    """Per row the sum of its words' squared inverse document frequencies."""
    seen = counts.texts_with[keys % np.uint64(BUCKETS)]
    rarity = np.log((counts.texts + 1) / (seen + 0.5))
    return np.bincount((keys // np.uint64(BUCKETS)).astype(np.int64), weights=rarity**2, minlength=rows)


def bits(pairs: Sequence[tuple[str, str]], counts: Counts, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([N, 3] bits of the answers' characters, [N, 3] how many there are), by kind: other, letter, unspaced script.

    The bits are by the habits of the other half of the file's rows; `numbers` are the rows' numbers in the file.
    """
    codes = _codes([answer for _, answer in pairs])
    triple, pair, single = _runs(codes)
    row, is_text = codes.row[2:], codes.code[2:] > 0
    other = 1 - (numbers % 2)[row]
    known = np.maximum(counts.singles.sum(axis=1), 1)[other]
    chance = (counts.singles[other, single] + _UNSEEN) / (known + _UNSEEN * _ALPHABET)
    # A text's first character follows nothing.
    follows = codes.code[1:-1] > 0
    context = counts.singles[other, codes.code[1:-1]]
    chance = np.where(follows, (counts.pairs[other, pair] + _TRUST * chance) / (context + _TRUST), chance)
    before = counts.pairs[other, np.concatenate([pair[:1], pair[:-1]])]
    chance = np.where(follows, (counts.triples[other, triple] + _TRUST * chance) / (before + _TRUST), chance)
    cell = row[is_text] * 3 + _kinds()[codes.code[2:][is_text]]
    costs = -np.log2(np.minimum(chance[is_text], 1.0))
    size = len(pairs) * 3
    numbers = np.bincount(cell, minlength=size).reshape(-1, 3)
    return np.bincount(cell, weights=costs, minlength=size).reshape(-1, 3), numbers


def surprise(found: np.ndarray, numbers: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """[N] bits per character beyond what is `usual` [3] for such characters; nan for very short answers.

    Han characters carry more bits than letters: without `usual`, shuffled characters would pass as easy Chinese.
    """
    lengths = numbers.sum(axis=1)
    excess = (found - numbers * usual).sum(axis=1)
    return np.divide(excess, lengths, out=np.full(len(found), np.nan), where=lengths >= MIN_ODD_CHARS)


@dataclass(frozen=True)
class _Codes:
    """Code points of many texts with a 0 behind each, and the number of the text that each belongs to."""

    code: np.ndarray
    row: np.ndarray


def _codes(texts: Sequence[str]) -> _Codes:
    parts = [text[:MAX_CHARS].lower().replace("\0", " ") for text in texts]
    joined = "\0\0" + "".join(part + "\0" for part in parts)
    code = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64)
    lengths = np.array([2] + [len(part) + 1 for part in parts])
    row = np.repeat(np.concatenate([[0], np.arange(len(parts))]), lengths)
    # A digit is a digit: which one it is cannot be foreseen, and is no oddity.
    return _Codes(np.where((code >= 48) & (code <= 57), 48, code), row)


def _runs(codes: _Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Buckets of the triple and the pair that end in each character from the third on, and the character itself."""
    a, b, c = (codes.code[skip : len(codes.code) - 2 + skip].astype(np.uint64) for skip in (0, 1, 2))
    a = np.where(b == 0, np.uint64(0), a)  # what another text ends in is no context
    pair = _mix(b * np.uint64(0x110000) + c)
    triple = _mix(pair ^ (a * np.uint64(0x9E3779B97F4A7C15)))
    return (
        (triple % np.uint64(BUCKETS)).astype(np.int64),
        (pair % np.uint64(PAIR_BUCKETS)).astype(np.int64),
        c.astype(np.int64),
    )


def _words(codes: _Codes) -> np.ndarray:
    """Sorted keys `row * BUCKETS + word`, each once: the words and the pairs of unspaced characters of every text."""
    kind = _kinds()[codes.code]
    starts, ends = _stretches(kind == _LETTER)
    # Each word's polynomial hash out of one running sum; the multiplier is odd, so it can be undone.
    powers = _powers(len(codes.code) + 1)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(_mix(codes.code.astype(np.uint64)) * powers[0][:-1])])
    ends = np.minimum(ends, starts + _STEM)
    words = _mix((sums[ends] - sums[starts]) * powers[1][starts])
    unspaced = kind == _UNSPACED
    both = np.flatnonzero(unspaced[:-1] & unspaced[1:])
    couples = _mix(codes.code[both].astype(np.uint64) * np.uint64(0x110000) + codes.code[both + 1].astype(np.uint64))
    rows = np.concatenate([codes.row[starts], codes.row[both]]).astype(np.uint64)
    keys: np.ndarray = np.unique(rows * np.uint64(BUCKETS) + np.concatenate([words, couples]) % np.uint64(BUCKETS))
    return keys


def _stretches(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where stretches of True begin and end."""
    edges = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the multiplier, and of its inverse modulo 2⁶⁴."""
    size = 1 << max(16, math.ceil(math.log2(count)))
    return _powers_of(size)[0][:count], _powers_of(size)[1][:count]


@cache
def _powers_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    base = 0x5851F42D4C957F2D
    found = []
    for factor in (base, pow(base, -1, 1 << 64)):
        steps = np.full(size, factor, dtype=np.uint64)
        steps[0] = 1
        found.append(np.cumprod(steps))
    return found[0], found[1]


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread the bits of 64-bit numbers, so that their remainders fall evenly."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed: np.ndarray = values ^ (values >> np.uint64(29))
    return mixed


@cache
def _kinds() -> np.ndarray:
    """For every code point: is it part of a spaced word, of a script without spaces, or of neither?"""
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(0x30000):
        if (char := chr(code)).isalnum() or unicodedata.category(char) in ("Mn", "Mc"):
            kinds[code] = _LETTER
    for first, last in _UNSPACED_BLOCKS:
        block = kinds[first:last]
        block[block == _LETTER] = _UNSPACED
    return kinds
