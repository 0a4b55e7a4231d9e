"""What is in the data: rows by kind, lengths, languages, turns, systems, tools and how questions begin."""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dsr1_tune.data.inspect.tables import plain, titled
from dsr1_tune.data.record import Drop, Preference, Prompt, Record, Row, prompt_of
from dsr1_tune.text.amount import amount
from dsr1_tune.text.composed import composed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CountTokens = Callable[[list[str]], list[int]]
"""Texts → the number of tokens of each."""

NUM_SAMPLED = 5_000
MAX_NAMES = 20_000
NUM_SHOWN = 10
PARTS = ("question", "answer", "conversation")

# Batches for the tokenizer: so many rows, or so many characters.
_BATCH_ROWS = 64
_BATCH_CHARS = 1_000_000
_LANGUAGE_CHARS = 2_000
_KANA_SHARE = 0.1
_SCRIPTS = {
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f]+"),
    "han": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "kana": re.compile(r"[\u3041-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]+"),
    "cyrillic": re.compile(r"[\u0400-\u052f]+"),
    "arabic": re.compile(r"[\u0600-\u06ff\u0750-\u077f]+"),
    "other": re.compile(
        r"[^\W\d_A-Za-z\u00c0-\u052f\u0600-\u06ff\u0750-\u077f\u3041-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
    ),
}


class Lengths:
    """Lengths counted as they come, in bounded memory: quantiles to within 1 %, and a histogram for the report."""

    def __init__(self) -> None:
        self.num = 0
        self.max = 0
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        """Count one length."""
        self.num += 1
        self.max = max(self.max, length)
        self._counts[_three_digits(length)] += 1

    def quantile(self, share: float) -> int | None:
        """The length that `share` of all lengths do not exceed; None where nothing was counted."""
        rank, passed = max(1, -(-self.num * round(share * 1000) // 1000)), 0
        for length in sorted(self._counts):
            passed += self._counts[length]
            if passed >= rank:
                return length
        return None

    def as_json(self) -> dict[str, Any]:
        """`{"edges", "counts", "median", "p95", "max"}`; a bin holds its lower edge, and not its upper one."""
        if not self.num:
            return {"edges": [], "counts": [], "median": None, "p95": None, "max": None}
        edges = _edges(min(self._counts), self.max)
        counts = [0] * (len(edges) - 1)
        for length, number in self._counts.items():
            counts[bisect_right(edges, length) - 1] += number
        of = {"median": self.quantile(0.5), "p95": self.quantile(0.95), "max": self.max}
        return {"edges": edges, "counts": counts, **of}


def _three_digits(length: int) -> int:
    """12345 → 12300: so many different lengths, and no more, whatever comes."""
    scale = 10 ** max(0, len(str(length)) - 3)
    return length // scale * scale


def _edges(least: int, most: int) -> list[int]:
    """Rounded edges, each about 1.4 times the one before, around all lengths from `least` to `most`."""
    series = [*range(6), 7, *(step * 10**power for power in range(12) for step in (10, 15, 20, 30, 40, 50, 70))]
    first = bisect_right(series, least) - 1
    last = bisect_right(series, most)
    return series[first : last + 1]


@dataclass(frozen=True, slots=True)
class Stats:
    """The numbers of a data set; names are counted from the most frequent on."""

    num_rows: int
    kinds: dict[str, int]
    codes: dict[str, int]
    languages: dict[str, int]
    turns: dict[int, int]
    unit: Literal["tokens", "characters"]
    num_sampled: int
    lengths: dict[str, dict[str, Any]]
    num_with_system: int
    num_with_tools: int
    num_with_thoughts: int
    systems: tuple[tuple[str, int], ...]
    first_words: tuple[tuple[str, int], ...]

    @property
    def num_good(self) -> int:
        """Rows that could be read."""
        return sum(self.kinds.values())

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values; `lengths` are as in report.json."""
        return {
            **{name: getattr(self, name) for name in ("num_rows", "num_good", "kinds", "codes", "languages")},
            "turns": {str(number): rows for number, rows in self.turns.items()},
            "lengths": {"unit": self.unit, "num_sampled": self.num_sampled, **self.lengths},
            **{f"num_with_{what}": getattr(self, f"num_with_{what}") for what in ("system", "tools", "thoughts")},
            "systems": [{"text": text, "num_rows": number} for text, number in self.systems],
            "first_words": [{"words": words, "num_rows": number} for words, number in self.first_words],
        }


def stats(rows: Iterable[Row | Drop], count_tokens: CountTokens | None = None, seed: int = 42) -> Stats:
    """Count everything in one pass and bounded memory.

    Lengths are in characters of all rows; with `count_tokens` in tokens of 5,000 rows drawn at random.
    """
    kinds: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    turns: Counter[int] = Counter()
    systems, first_words = _Frequent(), _Frequent()
    lengths = _Sampled(count_tokens, seed) if count_tokens else _Counted()
    num_tools = num_systems = num_thoughts = 0
    for row in rows:
        if isinstance(row, Drop):
            codes[row.code] += 1
            continue
        kinds[type(row).__name__.lower()] += 1
        said, answer = prompt_of(row), _answer(row)
        question = next((message.content for message in reversed(said) if message.role == "user"), "")
        whole = "\n".join([*(message.said for message in said), answer])
        lengths.add(question, answer, whole)
        languages[language(whole)] += 1
        turns[sum(message.role == "user" for message in said)] += 1
        first_words.add(_first_words(question))
        num_tools += bool(row.tools)
        num_thoughts += "<think>" in answer
        if said and said[0].role == "system":
            num_systems += 1
            systems.add(said[0].content.strip()[:200])
    return Stats(
        sum(kinds.values()) + sum(codes.values()),
        dict(kinds.most_common()),
        dict(codes.most_common()),
        dict(languages.most_common()),
        dict(sorted(turns.items())),
        "tokens" if count_tokens else "characters",
        *lengths.finish(),
        num_with_system=num_systems,
        num_with_tools=num_tools,
        num_with_thoughts=num_thoughts,
        systems=systems.most_common(3),
        first_words=first_words.most_common(NUM_SHOWN),
    )


def language(text: str) -> str:
    """zh, ja, ko, latin, cyrillic, arabic, other or none: the script that most words, or Han characters, are in."""
    text = text[:_LANGUAGE_CHARS]
    found: Counter[str] = Counter({name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()})
    han, kana = found.pop("han"), found.pop("kana")
    found["ja" if kana > _KANA_SHARE * (han + kana) else "zh"] = han + kana
    name, number = max(found.items(), key=lambda pair: (pair[1], pair[0] != "other"))
    return name if number else "none"


def _answer(row: Row) -> str:
    if isinstance(row, (Record, Prompt)):
        return row.answer or ""
    return (row.chosen if isinstance(row, Preference) else row.completion).said


def _first_words(question: str) -> str:
    """How a question begins: its first two words, or its first two Han characters."""
    start = composed(question.lstrip()[:80]).lower()
    if start and not start[0].isascii() and _SCRIPTS["han"].match(start):
        return start[:2]
    return " ".join(start.split()[:2]).rstrip(",.:;?!")


class _Counted:
    """Lengths in characters, of every row."""

    def __init__(self) -> None:
        self._lengths = {part: Lengths() for part in PARTS}

    def add(self, *texts: str) -> None:
        self._count([len(text) or None for text in texts])

    def _count(self, lengths: Sequence[int | None]) -> None:
        for part, length in zip(PARTS, lengths, strict=True):
            if length is not None:
                self._lengths[part].add(length)

    def finish(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """(rows measured, the lengths of each part)."""
        return self._lengths["conversation"].num, {part: lengths.as_json() for part, lengths in self._lengths.items()}


class _Sampled(_Counted):
    """Lengths in tokens, of a sample drawn at random from a stream (reservoir sampling); texts are not kept."""

    def __init__(self, count_tokens: CountTokens, seed: int) -> None:
        super().__init__()
        self._count_tokens = count_tokens
        self._random = random.Random(seed)
        self._num_seen = 0
        self._sample: list[tuple[int | None, ...]] = []
        self._waiting: dict[int, tuple[str, ...]] = {}
        self._waiting_chars = 0

    def add(self, *texts: str) -> None:
        self._num_seen += 1
        slot = self._num_seen - 1 if self._num_seen <= NUM_SAMPLED else self._random.randrange(self._num_seen)
        if slot >= NUM_SAMPLED:
            return
        self._waiting[slot] = texts
        self._waiting_chars += sum(map(len, texts))
        if len(self._waiting) >= _BATCH_ROWS or self._waiting_chars >= _BATCH_CHARS:
            self._measure()

    def finish(self) -> tuple[int, dict[str, dict[str, Any]]]:
        self._measure()
        for row in self._sample:
            self._count(row)
        return len(self._sample), super().finish()[1]

    def _measure(self) -> None:
        counted = iter(self._count_tokens([text for texts in self._waiting.values() for text in texts if text]))
        for slot, texts in self._waiting.items():
            row = tuple(next(counted) if text else None for text in texts)
            if slot < len(self._sample):
                self._sample[slot] = row
            else:
                self._sample.append(row)
        self._waiting, self._waiting_chars = {}, 0


class _Frequent:
    """The most frequent of any number of names; the rarest are forgotten when there are too many."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        if not name:
            return
        self._counts[name] += 1
        if len(self._counts) > MAX_NAMES:
            self._counts = Counter(dict(self._counts.most_common(MAX_NAMES // 2)))

    def most_common(self, number: int) -> tuple[tuple[str, int], ...]:
        return tuple(self._counts.most_common(number))


def show_stats(found: Stats, console: Console) -> None:
    """Print the numbers as tables."""
    bad = ((f"bad: {code}", number) for code, number in found.codes.items())
    rows = _shares("Rows", "what", [*found.kinds.items(), *bad], found.num_rows or 1)
    rows.add_section()
    rows.add_row("together", f"{found.num_rows:,}", "")
    console.print(rows)
    if not found.num_good:
        return
    console.print(_lengths_table(found))
    has = (
        ("a system prompt", found.num_with_system),
        ("tools", found.num_with_tools),
        ("thoughts (<think>)", found.num_with_thoughts),
    )
    for title, column, counts in (
        ("Languages", "language", found.languages.items()),
        ("Questions per conversation", "questions", _few(found.turns)),
        ("Rows that have", "what", has),
        ("Most frequent system prompts", "text", found.systems),
        ("Questions begin with", "text", found.first_words),
    ):
        if counts:
            console.print(_shares(title, column, counts, found.num_good))


def _shares(title: str, column: str, counts: Iterable[tuple[str, int]], whole: int) -> Table:
    table = titled(title, [column], ["rows", "share"])
    for name, number in counts:
        table.add_row(plain(name.replace("\n", " ")), f"{number:,}", f"{number / whole:.1%}")
    return table


def _lengths_table(found: Stats) -> Table:
    of = f"{found.unit} of {amount(found.num_sampled, 'row')}" + (" drawn at random" if found.unit == "tokens" else "")
    table = titled(f"Lengths ({of})", ["part"], ["median", "95 % below", "longest"])
    for part in PARTS:
        lengths = found.lengths[part]
        if lengths["max"] is not None:
            table.add_row(part, *(f"{lengths[name]:,}" for name in ("median", "p95", "max")))
    return table


def _few(turns: dict[int, int]) -> list[tuple[str, int]]:
    """The numbers of turns, all beyond the first few in one line."""
    few = [(str(number), rows) for number, rows in turns.items() if number < NUM_SHOWN]
    more = sum(rows for number, rows in turns.items() if number >= NUM_SHOWN)
    return [*few, *([(f"{NUM_SHOWN} or more", more)] if more else [])]
