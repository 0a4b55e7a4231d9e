"""One portion of a data file: read, rules, personal data, contamination → what is kept, what fell out, and its hashes.

This is the part that worker processes share: a portion's outcome depends on the portion and the settings alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from dsr1_tune.data.clean.chunks import Portion, read_portion
from dsr1_tune.data.dedup.contamination import Evaluation
from dsr1_tune.data.dedup.languages import language_codes
from dsr1_tune.data.dedup.minhash import Lookup, own_words
from dsr1_tune.data.dedup.ngrams import (
    Hashes,
    Prints,
    Text,
    Tokens,
    bands,
    fingerprints,
    grams,
    normalise,
    signatures,
    tokens,
)
from dsr1_tune.data.output import Turns, answer_of, as_output, dumps, question_of, turns_of
from dsr1_tune.data.privacy.guard import Action, Guard
from dsr1_tune.data.record import Checked, Drop, Feedback, Preference, Row
from dsr1_tune.data.rules.checker import Checker, not_empty
from dsr1_tune.data.rules.packs import Pack
from dsr1_tune.data.rules.pairs import answers_differ, remarks_on_pair, stance_of

MAX_EXAMPLES = 3
MIN_UNENDED_ROWS = 20
MIN_UNENDED_SHARE = 0.01
_LONG_NUMBER = re.compile(r"[0-9]{5,}[0-9A-Za-z]*|\S*@\S*|\.\w+\.(?:cn|com|org|net)\b")
MAX_EXAMPLE_CHARS = 300
KINDS = ("Record", "Preference", "Prompt", "Feedback")
"""Feedback on bad answers counts as a kind of its own, the next one: it repeats none on good answers."""


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know; small enough to be sent to each."""

    pack: Pack
    privacy_action: Action
    privacy_kinds: tuple[str, ...]
    near: bool
    boilerplate: Hashes
    unended_files: frozenset[str]
    evaluation: Evaluation | None


@dataclass
class Counts:
    """What is counted on the way; of the portions' counts the sum is reported."""

    num_rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    personal_rows: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def count_drop(self, drop: Drop) -> None:
        """One more row that fell out."""
        self.dropped[drop.code] += 1
        self.stages[drop.stage] += 1

    def add(self, other: Counts) -> None:
        """Another portion's counts."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
        self.num_rows += other.num_rows
        for code, examples in other.examples.items():
            some = self.examples.setdefault(code, [])
            some += examples[: MAX_EXAMPLES - len(some)]


@dataclass(frozen=True)
class Scanned:
    """The outcome of one portion: N kept rows, D dropped ones.

    `rows` and `raws` are the kept rows as they will be written and as they were read, `drops` the dropped ones'
    lines for rejected.jsonl; `numbers` and `drop_numbers` are their indices in the file, `lines` their lines; `stances`
    are what `stance_of` says of the rows.
    """

    rows: list[bytes]
    raws: list[bytes]
    numbers: npt.NDArray[np.uint32]
    lines: npt.NDArray[np.uint32]
    kinds: npt.NDArray[np.uint8]
    languages: npt.NDArray[np.uint8]
    stances: Hashes
    prints: Prints
    sketches: npt.NDArray[np.uint8]
    bands: Hashes
    drops: list[bytes]
    drop_numbers: npt.NDArray[np.int64]
    counts: Counts


class Scanner:
    """The steps with everything they look up, made once per process."""

    def __init__(self, settings: Settings) -> None:
        self._checker = Checker(settings.pack)
        self._lenient = Checker(lenient(settings.pack))
        self._unended_files = settings.unended_files
        self._guard = Guard(settings.privacy_kinds, settings.privacy_action)
        self._hide = self._guard.hide if settings.privacy_action in ("redact", "drop") else str
        self.boilerplate = Lookup(settings.boilerplate)
        self._evaluation = settings.evaluation
        self._near = settings.near

    def scan(self, portion: Portion) -> Scanned:
        """Read and judge every row of the portion, one by one; then hash the kept ones all at once."""
        read, facts = read_portion(portion)
        counts = Counts(len(read), formats=Counter(facts.formats), columns=Counter(map(_sound, facts.columns)))
        drops: list[Drop] = []
        kept: list[Row] = []
        for item in read:
            outcome = item if isinstance(item, Drop) else self._check(item, counts)
            if isinstance(outcome, Drop):
                drops.append(outcome)
            else:
                kept.append(outcome)
        outputs = [as_output(row) for row in kept]
        turns = [turns_of(output) for output in outputs]
        text, found = _taken_apart(turns)
        if self._evaluation and kept:
            held = self._evaluation.find(text, found)
            if held:
                drops += [drop.at(kept[n].place, "contamination", kept[n].row) for n, drop in held.items()]
                left = [n for n in range(len(kept)) if n not in held]
                kept, outputs, turns = [kept[n] for n in left], [outputs[n] for n in left], [turns[n] for n in left]
                text, found = _taken_apart(turns)
        drops.sort(key=lambda drop: drop.place.index if drop.place else 0)
        for drop in drops:
            counts.count_drop(drop)
            add_example(counts.examples, drop, hide=self._hide)
        sketches, in_bands = self._hashes(found)
        return Scanned(
            rows=[dumps(output) for output in outputs],
            raws=[dumps(row.row) for row in kept],
            numbers=np.array([row.place.index for row in kept], np.uint32),
            lines=np.array([row.place.line for row in kept], np.uint32),
            kinds=np.array([_kind(row) for row in kept], np.uint8),
            languages=language_codes(found),
            stances=np.array([stance_of(row) for row in kept], np.uint64),
            prints=_prints(text, kept),
            sketches=sketches,
            bands=in_bands,
            drops=[reject(drop, dumps(drop.row)) for drop in drops],
            drop_numbers=np.array([drop.place.index if drop.place else 0 for drop in drops], np.int64),
            counts=counts,
        )

    def _check(self, row: Row, counts: Counts) -> Row | Drop:
        """Rules, then personal data; the first that objects decides."""
        filled = not_empty(row)
        if not isinstance(filled, Drop):
            filled = answers_differ(row)
        checked = Checked(filled) if isinstance(filled, Drop) else self._ruled(row)
        if isinstance(checked.row, Drop):
            return checked.row.at(row.place, "rules", row.row)
        guarded = self._guarded(checked.row, counts)
        if isinstance(guarded.row, Drop):
            return guarded.row.at(row.place, "privacy", row.row)
        notes = (*row.notes, *remarks_on_pair(row), *checked.notes)
        if notes or checked.repaired or guarded.repaired:
            self._remark(row, notes, {*checked.repaired, *guarded.repaired}, counts)
        return guarded.row

    def _ruled(self, row: Row) -> Checked:
        """What the rules say. In a file in which many answers lack their last full stop, that is only a remark."""
        checked = self._checker.check(row)
        drop = checked.row
        if not isinstance(drop, Drop) or drop.code != "truncated_answer" or row.place.file not in self._unended_files:
            return checked
        again = self._lenient.check(row)
        return again if isinstance(again.row, Drop) else replace(again, notes=(*again.notes, drop))

    def _guarded(self, row: Row, counts: Counts) -> Checked:
        """The row after its personal data was looked for, and what was found counted."""
        if self._guard.action == "off":
            return Checked(row)
        guarded, found = self._guard.check(row)
        if found:
            counts.personal.update(found)
            counts.personal_rows.update(found.keys())
        return guarded

    def _remark(self, row: Row, notes: Sequence[Drop], mended: set[str], counts: Counts) -> None:
        """Count what is odd about a kept row, and what was mended in it."""
        for code in {note.code for note in notes}:
            counts.noted[code] += 1
        for note in notes:
            add_example(counts.examples, note.at(row.place, "note", row.row), hide=self._hide)
        counts.mended.update(mended)

    def _hashes(self, found: Tokens) -> tuple[npt.NDArray[np.uint8], Hashes]:
        """A byte of each MinHash value, to estimate similarity by, and the bands."""
        if not self._near:
            num_rows = len(found.bounds) - 1
            return np.zeros((num_rows, 0), np.uint8), np.zeros((0, num_rows), np.uint64)
        pieces = grams(found)
        if len(self.boilerplate.hashes):
            pieces = pieces.only(own_words(pieces, self.boilerplate))
        signs = signatures(pieces)
        return signs.astype(np.uint8), bands(signs)


def lenient(pack: Pack) -> Pack:
    """The pack, but that an answer may end without a full stop."""
    truncated = pack.rules.truncated_answer.model_copy(update={"unended": False})
    return pack.model_copy(update={"rules": pack.rules.model_copy(update={"truncated_answer": truncated})})


def leaves_out_full_stops(rows: Sequence[Row], pack: Pack) -> bool:
    """Whether it is these rows' way, as it is in forums, to end an answer without a full stop: 1 % of them do."""
    strict, loose = Checker(pack), Checker(lenient(pack))
    num_unended = 0
    for row in rows:
        drop = strict.check(row).row
        if isinstance(drop, Drop) and drop.code == "truncated_answer":
            num_unended += not isinstance(loose.check(row).row, Drop)
    return num_unended >= max(MIN_UNENDED_ROWS, MIN_UNENDED_SHARE * len(rows))


def _kind(row: Row) -> int:
    return KINDS.index(type(row).__name__) + (isinstance(row, Feedback) and not row.is_good)


def _taken_apart(turns: Sequence[Turns]) -> tuple[Text, Tokens]:
    text = normalise(turns)
    return text, tokens(text)


def _prints(text: Text, rows: Sequence[Row]) -> Prints:
    """What tells rows apart; the functions that may be called are part of what is asked."""
    prints = fingerprints(text, np.array([1 + isinstance(row, Preference) for row in rows], np.int64))
    tools = np.array([xxhash.xxh3_64_intdigest(row.tools.encode()) if row.tools else 0 for row in rows], np.uint64)
    if not tools.any():
        return prints
    return replace(prints, question=np.stack((prints.question[:, 0] ^ tools, prints.question[:, 1]), axis=1))


def reject(drop: Drop, raw: bytes) -> bytes:
    """A line of rejected.jsonl: where the row stands, what is wrong, how to mend it, and the whole row as it was."""
    return dumps(drop.as_json())[:-1] + b',"row":' + raw + b"}"


def add_example(
    examples: dict[str, list[dict[str, Any]]],
    drop: Drop,
    output: dict[str, Any] | None = None,
    hide: Callable[[str], str] = str,
) -> None:
    """Keep the first few rows of every code for the report; `output` is the row as it will be written.

    Without it the row as it was read is shown, and `hide` takes personal data out: reports travel further than data.
    """
    some = examples.setdefault(drop.code, [])
    if len(some) >= MAX_EXAMPLES:
        return
    where = drop.as_json()
    if output:
        question, answer = question_of(output), answer_of(output)
    else:
        read = dumps(drop.row)[: 4 * MAX_EXAMPLE_CHARS].decode(errors="replace")
        question, answer = hide(read), ""
    if hide is not str:
        # An excerpt may hold a part of a number, which nobody recognises.
        where["detail"] = _LONG_NUMBER.sub("…", hide(where["detail"].split(", near ")[0]))
    shown = {name: where[name] for name in ("file", "line", "index", "path", "detail")}
    shown |= {"question": question[:MAX_EXAMPLE_CHARS], "answer": answer[:MAX_EXAMPLE_CHARS]}
    some.append({name: _sound(value) if isinstance(value, str) else value for name, value in shown.items()})


def _sound(text: str) -> str:
    """The text without halves of characters, which no report can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
