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
import xxhash
from rensa import RMinHash

Codes = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NUM_HASHES = 125
NUM_BANDS = 25
"""25 bands of 5: rows that share 70 % of their n-grams meet in a band with probability 0.99, at 30 % with 0.06."""
SEED = 20240613

CJK_GRAM = 4
WORD_GRAM = 2
"""N-grams for near-duplicates: 4 characters of Chinese, Japanese or Korean; words and pairs of words elsewhere."""
LONG_GRAM = 13
"""Tokens of an n-gram that two texts share only if one holds a part of the other (arXiv 2005.14165, appendix C)."""

TURN = {"system": "\ufdd0", "user": "\ufdd1", "assistant": "\ufdd2", "tool": "\ufdd3"}
"""Unicode's noncharacters, which no text holds, mark who speaks."""
_FIRST_MARK, _LAST_MARK = 0xFDD0, 0xFDD3

# Signs that make another formula or program of the same letters; other punctuation does not count.
_OPERATORS = "+-*/=<>%^&|~$#@\\_"
_BMP = 0x10000


@dataclass(frozen=True)
class Text:
    """Many rows' texts as one array of normalised code points (0 where a character does not count).

    `bounds` (N + 1) are the positions at which the rows begin and end; `is_answer` marks what an assistant says.
    """

    codes: Codes
    bounds: Ints
    is_answer: Flags

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.bounds) - 1


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

    def of(self, row: int) -> Hashes:
        """One row's n-grams."""
        return self.hashes[self.bounds[row] : self.bounds[row + 1]]

    def only(self, keep: Flags) -> Grams:
        """The n-grams marked; a row that would lose all keeps all."""
        num_kept = _sums(keep, self.bounds)
        keep = keep | np.repeat(num_kept == 0, np.diff(self.bounds))
        return Grams(self.hashes[keep], _bounds(_sums(keep, self.bounds)), self.is_answer[keep])


def normalise(turns: Sequence[Sequence[tuple[str, str]]]) -> Text:
    """Rows of (role, text) turns → their text without width, case, punctuation, blanks and traditional characters."""
    joined = ["".join(TURN[role] + text for role, text in row) for row in turns]
    codes = np.frombuffer("".join(joined).encode("utf-32-le", "surrogatepass"), np.uint32)
    bounds = _bounds([len(text) for text in joined])
    codes = _with_decimal_points(codes, _table()[np.minimum(codes, _BMP - 1)])
    is_mark = (codes >= _FIRST_MARK) & (codes <= _LAST_MARK)
    marks = np.flatnonzero(is_mark)
    speaks = codes[marks] == ord(TURN["assistant"])
    is_answer = np.repeat(speaks, np.diff(np.append(marks, len(codes)))) if len(marks) else np.zeros(len(codes), bool)
    return Text(codes, bounds, is_answer)


def _with_decimal_points(raw: Codes, codes: Codes) -> Codes:
    """Beyond the table: characters above the BMP stand for themselves, and 3.5 is not 35."""
    high = raw >= _BMP
    if high.any():
        codes[high] = raw[high]
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

    table = np.zeros(_BMP, np.uint32)
    for code in range(_BMP - 1):
        character = chr(code)
        plain = unicodedata.normalize("NFKC", character) if code > 0x7F else character
        plain = plain.lower() if len(plain) == 1 else character.lower()
        kind = unicodedata.category(plain[0])[0]
        if len(plain) == 1 and (kind not in "PZC" or plain in _OPERATORS):
            table[code] = ord(plain)
    table[_FIRST_MARK : _LAST_MARK + 1] = np.arange(_FIRST_MARK, _LAST_MARK + 1)
    # The last entry stands for everything above; `normalise` puts the characters themselves back.
    table[_BMP - 1] = 0
    han = "".join(map(chr, (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000))))
    simplified = OpenCC("t2s").convert("\n".join(han)).split("\n")
    for old, new in zip(han, simplified, strict=True):
        if len(new) == 1 and ord(new) < _BMP:
            table[ord(old)] = ord(new)
    return table


@dataclass(frozen=True)
class Prints:
    """What tells rows apart: 128-bit hashes (N, 2) of all before the final answer, and of it; and their lengths (N).

    Rows that say the same have the same hashes. Lengths are in characters that count.
    """

    question: Hashes
    answer: Hashes
    question_chars: Ints
    answer_chars: Ints


def fingerprints(text: Text) -> Prints:
    """Hash every row in two parts; the last turn is its answer, if an assistant says it."""
    counts = text.codes != 0
    running = _running(counts)
    is_mark = (text.codes >= _FIRST_MARK) & (text.codes <= _LAST_MARK)
    marks = np.flatnonzero(is_mark)
    last = marks[np.maximum(np.searchsorted(marks, text.bounds[1:]) - 1, 0)]
    middle = np.where(text.is_answer[last], last, text.bounds[1:])
    starts, middles, ends = running[text.bounds[:-1]], running[middle], running[text.bounds[1:]]
    packed = memoryview(text.codes[counts].tobytes())
    digest = xxhash.xxh3_128_digest
    edges = zip((starts * 4).tolist(), (middles * 4).tolist(), (ends * 4).tolist(), strict=True)
    joined = b"".join([digest(packed[a:b]) + digest(packed[b:c]) for a, b, c in edges])
    pairs = np.frombuffer(joined, np.uint64).reshape(-1, 2, 2)
    return Prints(pairs[:, 0], pairs[:, 1], middles - starts, ends - middles)


def tokens(text: Text) -> Tokens:
    """Split texts into CJK characters and words of other scripts."""
    codes = text.codes
    counts = (codes != 0) & ((codes < _FIRST_MARK) | (codes > _LAST_MARK))
    is_cjk = counts & is_cjk_code(codes)
    in_word = counts & ~is_cjk
    starts = in_word.copy()
    starts[1:] &= ~in_word[:-1]
    starts[text.bounds[:-1][text.bounds[:-1] < len(codes)]] |= in_word[text.bounds[:-1][text.bounds[:-1] < len(codes)]]
    is_start = starts | is_cjk
    places = np.flatnonzero(is_start)
    # Of a word: the sum of its characters, each times a power that tells its place; of a CJK character: itself.
    letters = np.flatnonzero(in_word)
    word_starts = np.flatnonzero(starts[letters])
    spelled = np.zeros(len(places), np.uint32)
    if len(letters):
        lengths = np.diff(np.append(word_starts, len(letters)))
        within = np.arange(len(letters), dtype=np.uint32) - np.repeat(word_starts, lengths).astype(np.uint32)
        products = codes[letters] * _POWERS[np.minimum(within, len(_POWERS) - 1)]
        spelled[starts[places]] = np.add.reduceat(products, word_starts, dtype=np.uint32)
    spelled[is_cjk[places]] = codes[places[is_cjk[places]]]
    bounds = np.searchsorted(places, text.bounds)
    scripts = _script_table()[np.minimum(codes[places], _BMP - 1)]
    return Tokens(mixed(spelled.astype(np.uint64)), bounds, is_cjk[places], scripts, text.is_answer[places])


SCRIPTS = ("sign", "latin", "han", "kana", "hangul", "cyrillic", "arabic", "other")
_RANGES = (
    (0x61, 0x24F, "latin"),
    (0x400, 0x52F, "cyrillic"),
    (0x600, 0x6FF, "arabic"),
    (0x3040, 0x30FF, "kana"),
    (0x3400, 0x9FFF, "han"),
    (0xAC00, 0xD7A3, "hangul"),
)


@cache
def _script_table() -> npt.NDArray[np.uint8]:
    """BMP code point → number of its script; digits and operators are signs."""
    table = np.zeros(_BMP, np.uint8)
    table[0x100:] = SCRIPTS.index("other")
    for first, last, script in _RANGES:
        table[first : last + 1] = SCRIPTS.index(script)
    return table


_POWERS = np.cumprod(np.full(64, 0x01000193, np.uint32), dtype=np.uint32)


def is_cjk_code(codes: Codes) -> Flags:
    """Han, kana and Hangul: scripts in which blanks do not separate words, or not the smallest ones."""
    return ((codes >= 0x3040) & (codes <= 0x9FFF)) | ((codes >= 0xAC00) & (codes <= 0xD7A3)) | (codes >= 0x20000)


def mixed(values: Hashes) -> Hashes:
    """Scatter the bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def grams(tokens: Tokens) -> Grams:
    """4-grams of CJK characters; of other scripts words and pairs of words. A row with no n-gram is one by itself."""
    hashes = np.where(tokens.is_cjk, _windows(tokens.hashes, CJK_GRAM), _windows(tokens.hashes, WORD_GRAM))
    fits = _fits(tokens, np.where(tokens.is_cjk, CJK_GRAM, WORD_GRAM))
    is_word = ~tokens.is_cjk
    for row in np.flatnonzero((np.diff(tokens.bounds) > 0) & (_sums(fits | is_word, tokens.bounds) == 0)):
        start, end = tokens.bounds[row], tokens.bounds[row + 1]
        hashes[start : start + 1] = mixed(np.sum(tokens.hashes[start:end] * _ODD[: end - start], keepdims=True))
        fits[start] = True
    # Each token's n-gram stands where the token does, the word by itself behind it.
    places = np.cumsum(fits, dtype=np.int64) + np.cumsum(is_word, dtype=np.int64)
    total = np.empty(int(places[-1]) if len(places) else 0, np.uint64)
    is_answer = np.empty(len(total), bool)
    for chosen, values, behind in ((fits, hashes, 1 + is_word), (is_word, tokens.hashes, np.ones(len(fits), np.int64))):
        at = (places - behind)[chosen]
        total[at], is_answer[at] = values[chosen], tokens.is_answer[chosen]
    return Grams(total, np.concatenate(([0], places))[tokens.bounds], is_answer)


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


_ODD = np.array([2 * n + 3 for n in range(CJK_GRAM)], np.uint64)


def signatures(grams: Grams) -> npt.NDArray[np.uint32]:
    """(N, 125) MinHash values; the share in which two rows agree estimates the share of n-grams that they share."""
    offsets = grams.bounds.astype(np.uint64)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(grams.hashes, offsets, NUM_HASHES, SEED).to_rows()
    return np.fromiter(chain.from_iterable(rows), np.uint32, len(rows) * NUM_HASHES).reshape(-1, NUM_HASHES)


def bands(signatures: npt.NDArray[np.uint32]) -> Hashes:
    """(25, N) hashes of five MinHash values each: similar rows are equal in at least one."""
    parts = signatures.reshape(len(signatures), NUM_BANDS, NUM_HASHES // NUM_BANDS).astype(np.uint64)
    total = parts[:, :, 0].copy()
    for step in range(1, parts.shape[2]):
        total = total * np.uint64(0x9E3779B97F4A7C15) + parts[:, :, step]
    return np.ascontiguousarray(mixed(total).T)


def _bounds(lengths: Sequence[int] | Ints) -> Ints:
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, np.int64)))).astype(np.int64)


def _sums(flags: Flags, bounds: Ints) -> Ints:
    """How many are set between each two bounds."""
    running = _running(flags)
    return (running[bounds[1:]] - running[bounds[:-1]]).astype(np.int64)


def _running(flags: Flags) -> npt.NDArray[np.int32]:
    """How many are set before each place; a portion has far fewer than 2^31 characters."""
    total = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, dtype=np.int32, out=total[1:])
    return total
