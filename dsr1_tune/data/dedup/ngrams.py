"""Texts → what says whether they are the same: normalised characters, tokens, n-grams, MinHash; a block at a time.

Everything here is vectorised over the characters of thousands of rows: numpy sees one long array of code points, and
Python sees no single character. Shapes: C characters, T tokens, G n-grams, N rows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from dsr1_tune.text.composed import composed

Codes = npt.NDArray[np.uint16]
Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NUM_HASHES = 120
NUM_BANDS = 30
"""30 bands of 4: rows that share 60 % of their n-grams meet in a band with probability 0.98, at 20 % with 0.05."""
SEED = 20240613

CJK_GRAM = 4
WORD_GRAM = 2
"""N-grams for near-duplicates: 4 characters of Chinese, Japanese or Korean; words and pairs of words elsewhere."""
LONG_GRAM = 13
"""Tokens of an n-gram that two texts share only if one holds a part of the other (arXiv 2005.14165, appendix C)."""

TURN = {"system": "\ufdd0", "user": "\ufdd1", "assistant": "\ufdd2", "tool": "\ufdd3"}
"""Unicode's noncharacters, which no text holds, mark who speaks."""

# Signs that make another formula or program of the same letters; other punctuation does not count.
_OPERATORS = "+-*/=<>%^&|~$#@\\_"
_BMP = 0x10000
_ODD = np.array([2 * n + 3 for n in range(CJK_GRAM)], np.uint64)


@dataclass(frozen=True)
class Text:
    """Many rows' texts as one array of normalised UTF-16 units (0 where a character does not count).

    `bounds` (N + 1) are the positions at which the rows begin and end; `scripts` (C) are numbers in SCRIPTS; `marks`
    are the positions at which a turn begins, and `is_answer` (C) marks what an assistant says.
    """

    codes: Codes
    bounds: Ints
    scripts: npt.NDArray[np.uint8]
    marks: Ints
    is_answer: Flags


@dataclass(frozen=True)
class Tokens:
    """The tokens of many rows: a CJK character, or a word of another script; `bounds` (N + 1) as in Text.

    `scripts` are numbers in SCRIPTS, told from a token's first character.
    """

    hashes: Hashes
    bounds: Ints
    is_cjk: Flags
    scripts: npt.NDArray[np.uint8]
    is_answer: Flags


@dataclass(frozen=True)
class Grams:
    """The n-grams of many rows as 64-bit hashes; `bounds` (N + 1) as in Text."""

    hashes: Hashes
    bounds: Ints
    is_answer: Flags

    def only(self, keep: Flags) -> Grams:
        """The n-grams marked."""
        return Grams(self.hashes[keep], _bounds(_sums(keep, self.bounds)), self.is_answer[keep])


def normalise(turns: Sequence[Sequence[tuple[str, str]]]) -> Text:
    """Rows of (role, text) turns → their text without width, case, punctuation, blanks and traditional characters.

    Accents and syllables are composed first: the table below looks at one character at a time.
    """
    joined = ["".join([TURN[role] + composed(text) for role, text in row]) for row in turns]
    raw = np.frombuffer("".join(joined).encode("utf-16-le", "surrogatepass"), np.uint16)
    lengths = list(map(len, joined))
    if sum(lengths) != len(raw):
        # Characters above the BMP are two units.
        lengths = [len(text.encode("utf-16-le", "surrogatepass")) // 2 for text in joined]
    codes = _with_decimal_points(raw, _table()[raw])
    scripts = _script_table()[codes]
    marks = np.flatnonzero(scripts == _MARK)
    speaks = codes[marks] == ord(TURN["assistant"])
    is_answer = np.repeat(speaks, np.diff(np.append(marks, len(codes)))) if len(marks) else np.zeros(len(codes), bool)
    return Text(codes, _bounds(lengths), scripts, marks, is_answer)


def _with_decimal_points(raw: Codes, codes: Codes) -> Codes:
    """3.5 is not 35: points and commas between digits count."""
    points = np.flatnonzero((raw == 46) | (raw == 44))
    points = points[(points > 0) & (points < len(raw) - 1)]
    before, after = codes[points - 1], codes[points + 1]
    inside = (before >= 48) & (before <= 57) & (after >= 48) & (after <= 57)
    codes[points[inside]] = raw[points[inside]]
    return codes


@cache
def _table() -> Codes:
    """BMP code point → its normal form: half width, lower case, simplified; 0 for what does not count."""
    from opencc import OpenCC

    table = np.zeros(_BMP, np.uint16)
    for code in range(_BMP):
        character = chr(code)
        plain = unicodedata.normalize("NFKC", character) if code > 0x7F else character
        plain = plain.lower() if len(plain) == 1 else character.lower()
        kind = unicodedata.category(plain[0])[0]
        if len(plain) == 1 and (kind not in "PZC" or plain in _OPERATORS):
            table[code] = ord(plain) if ord(plain) < _BMP else code
    # Halves of characters above the BMP, and the marks, stand for themselves.
    table[0xD800:0xE000] = np.arange(0xD800, 0xE000)
    for mark in TURN.values():
        table[ord(mark)] = ord(mark)
    han = "".join(map(chr, (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000))))
    simplified = OpenCC("t2s").convert("\n".join(han)).split("\n")
    simple = np.arange(_BMP, dtype=np.uint16)
    for old, new in zip(han, simplified, strict=True):
        if len(new) == 1 and ord(new) < _BMP:
            simple[ord(old)] = ord(new)
    # Also of what only another form of a traditional character is: a radical by itself, a compatibility ideograph.
    return simple[simple][table]  # twice, as 薴 becomes 苧, which itself is a traditional character


def tokens(text: Text) -> Tokens:
    """Split texts into CJK characters and words of other scripts."""
    is_cjk = (text.scripts >= _HAN) & (text.scripts <= _HANGUL)
    in_word = (text.scripts != 0) & ~is_cjk & (text.scripts != _MARK)
    # Every row begins with the mark of its first turn, so that no word reaches into the next row.
    edges = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    if len(ends) < len(starts):
        ends = np.append(ends, len(in_word))
    is_start = is_cjk.copy()
    is_start[starts] = True
    places = np.flatnonzero(is_start)
    is_cjk = is_cjk[places]
    spelled = np.empty(len(places), np.uint32)
    spelled[is_cjk] = text.codes[places[is_cjk]]
    spelled[~is_cjk] = _spelled(text.codes, starts, ends)
    bounds = np.searchsorted(places, text.bounds)
    return Tokens(mixed(spelled.astype(np.uint64)), bounds, is_cjk, text.scripts[places], text.is_answer[places])


def _spelled(codes: Codes, starts: Ints, ends: Ints) -> npt.NDArray[np.uint32]:
    """A hash of each word: the sum of its characters, each times a power of its place (modulo 2^32).

    From sums over all characters so far, which is why the powers count from the beginning of the array.
    """
    powers, inverses = _powers(1 << max(16, len(codes).bit_length()))
    running = np.zeros(len(codes) + 1, np.uint32)
    np.cumsum(codes * powers[: len(codes)], dtype=np.uint32, out=running[1:])
    return (running[ends] - running[starts]) * inverses[starts]


@cache
def _powers(size: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """The first powers of an odd number modulo 2^32, and of its inverse."""
    factor = 0x9E3779B1
    both = []
    for number in (factor, pow(factor, -1, 1 << 32)):
        powers = np.full(size, number, np.uint32)
        powers[0] = 1
        both.append(np.cumprod(powers, dtype=np.uint32))
    return both[0], both[1]


SCRIPTS = ("none", "sign", "digit", "latin", "han", "kana", "hangul", "cyrillic", "arabic", "other", "mark")
DIGIT = SCRIPTS.index("digit")
_HAN, _HANGUL, _MARK = SCRIPTS.index("han"), SCRIPTS.index("hangul"), SCRIPTS.index("mark")
"""Han, kana and Hangul are written without blanks, or with blanks between more than words."""
_RANGES = (
    (0x01, 0x7F, "sign"),
    (0x30, 0x39, "digit"),
    (0x61, 0x7A, "latin"),
    (0xC0, 0x24F, "latin"),
    (0x400, 0x52F, "cyrillic"),
    (0x600, 0x6FF, "arabic"),
    (0x3040, 0x30FF, "kana"),
    (0x3400, 0x9FFF, "han"),
    (0xAC00, 0xD7A3, "hangul"),
    (0xFDD0, 0xFDD3, "mark"),
)


@cache
def _script_table() -> npt.NDArray[np.uint8]:
    """Normalised UTF-16 unit → number of its script; digits and operators are signs."""
    table = np.full(_BMP, SCRIPTS.index("other"), np.uint8)
    table[0] = 0
    for first, last, script in _RANGES:
        table[first : last + 1] = SCRIPTS.index(script)
    return table


def mixed(values: Hashes) -> Hashes:
    """Scatter the bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def grams(tokens: Tokens) -> Grams:
    """4-grams of CJK characters and pairs of words elsewhere; a row with fewer tokens is one n-gram by itself."""
    hashes, fits = _grams(tokens)
    return Grams(hashes[fits], _bounds(_sums(fits, tokens.bounds)), tokens.is_answer[fits])


def grams_and_words(tokens: Tokens) -> Grams:
    """As `grams`, and the words by themselves: an edit changes two pairs of words, but only one word."""
    hashes, fits = _grams(tokens)
    is_word = ~tokens.is_cjk
    # Each token's n-gram stands where the token does, the word by itself behind it.
    places = np.cumsum(fits, dtype=np.int64) + np.cumsum(is_word, dtype=np.int64)
    total = np.empty(int(places[-1]) if len(places) else 0, np.uint64)
    is_answer = np.empty(len(total), bool)
    for chosen, values, behind in ((fits, hashes, 1 + is_word), (is_word, tokens.hashes, np.ones(len(fits), np.int64))):
        at = (places - behind)[chosen]
        total[at], is_answer[at] = values[chosen], tokens.is_answer[chosen]
    return Grams(total, np.concatenate(([0], places))[tokens.bounds], is_answer)


def _grams(tokens: Tokens) -> tuple[Hashes, Flags]:
    """For each token the n-gram that begins with it, and whether it counts."""
    if tokens.is_cjk.all():
        hashes, size = _windows(tokens.hashes, CJK_GRAM), np.full(len(tokens.hashes), CJK_GRAM)
    else:
        hashes = np.where(tokens.is_cjk, _windows(tokens.hashes, CJK_GRAM), _windows(tokens.hashes, WORD_GRAM))
        size = np.where(tokens.is_cjk, CJK_GRAM, WORD_GRAM)
    fits = _fits(tokens, size)
    for row in np.flatnonzero((np.diff(tokens.bounds) > 0) & (_sums(fits, tokens.bounds) == 0)):
        start, end = tokens.bounds[row], tokens.bounds[row + 1]
        hashes[start : start + 1] = mixed(np.sum(tokens.hashes[start:end] * _ODD[: end - start], keepdims=True))
        fits[start] = True
    return hashes, fits


def long_grams(tokens: Tokens, size: int = LONG_GRAM) -> Grams:
    """Every run of 13 tokens, to find a text inside another; rows with fewer tokens have none."""
    hashes = _windows(tokens.hashes, size)
    fits = _fits(tokens, np.full(len(hashes), size))
    return Grams(hashes[fits], _bounds(_sums(fits, tokens.bounds)), tokens.is_answer[fits])


def _fits(tokens: Tokens, size: Ints) -> Flags:
    """At which tokens an n-gram of that size begins that does not reach into the next row."""
    ends = np.repeat(tokens.bounds[1:], np.diff(tokens.bounds))
    return np.arange(len(tokens.hashes)) + size <= ends


def _windows(hashes: Hashes, size: int) -> Hashes:
    """For each token the hash of it and of the next ones; at the end of the array fewer."""
    total = hashes.copy()
    for step in range(1, size):
        total *= np.uint64(0x9E3779B97F4A7C15)
        total[: max(0, len(total) - step)] += hashes[step:]
    return mixed(total)


def signatures(grams: Grams) -> npt.NDArray[np.uint32]:
    """(N, 120) MinHash values; the share in which two rows agree estimates the share of n-grams that they share."""
    offsets = grams.bounds.astype(np.uint64)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(grams.hashes, offsets, NUM_HASHES, SEED).to_rows()
    return np.fromiter(chain.from_iterable(rows), np.uint32, len(rows) * NUM_HASHES).reshape(-1, NUM_HASHES)


def bands(signatures: npt.NDArray[np.uint32]) -> Hashes:
    """(30, N) hashes of five MinHash values each: similar rows are equal in at least one."""
    parts = signatures.reshape(len(signatures), NUM_BANDS, NUM_HASHES // NUM_BANDS).astype(np.uint64)
    total = parts[:, :, 0].copy()
    for step in range(1, parts.shape[2]):
        total = total * np.uint64(0x9E3779B97F4A7C15) + parts[:, :, step]
    return np.ascontiguousarray(mixed(total).T)


def _bounds(lengths: Sequence[int] | Ints) -> Ints:
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, np.int64)))).astype(np.int64)


def _sums(flags: Flags, bounds: Ints) -> Ints:
    """How many are set between each two bounds."""
    running = running_sums(flags)
    return (running[bounds[1:]] - running[bounds[:-1]]).astype(np.int64)


def running_sums(flags: Flags) -> npt.NDArray[np.int32]:
    """How many are set before each place; a portion has far fewer than 2^31 characters."""
    total = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, dtype=np.int32, out=total[1:])
    return total
