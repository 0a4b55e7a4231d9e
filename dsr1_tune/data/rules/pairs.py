"""Checks of preference and feedback rows: equal answers, length bias, and rows that contradict one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import xxhash

from dsr1_tune.data.record import Drop, Feedback, Preference, Row, messages_of, prompt_of
from dsr1_tune.data.rules.text_features import folded, quoted, visible
from dsr1_tune.text.amount import amount
from dsr1_tune.text.composed import composed

UNEVEN_RATIO = 3
UNEVEN_CHARS = 100
"""A pair's lengths are remarked on where they differ by so many times and by so many characters."""
TELLING_SHARE = 0.6
TELLING_PAIRS = 20


def answers_differ(row: Row) -> Row | Drop:
    """Drop a preference whose two answers look the same but for blanks: nothing can be learned from it."""
    if isinstance(row, Preference) and _plain(row.chosen.said) == _plain(row.rejected.said):
        said = quoted(row.chosen.said)
        fix = "write a worse answer as rejected, or remove the row"
        return Drop("equal_answers", f"both answers are {said}", fix, row.rejected.path)
    return row


def _plain(text: str) -> str:
    return " ".join(visible(composed(text)).split())


def remarks_on_pair(row: Row) -> tuple[Drop, ...]:
    """What is odd about a preference that is kept: one answer much longer than the other."""
    if not isinstance(row, Preference):
        return ()
    chosen, rejected = len(visible(row.chosen.said)), len(visible(row.rejected.said))
    short, long = sorted((chosen, rejected))
    if long <= UNEVEN_RATIO * short or long - short < UNEVEN_CHARS:
        return ()
    which, path = ("chosen", row.chosen.path) if chosen > rejected else ("rejected", row.rejected.path)
    detail = f"{which} is {long / max(1, short):.1f} times as long ({long:,} and {short:,} characters)"
    return (Drop("uneven_lengths", detail, "let both answers be about as long", path),)


@dataclass(frozen=True, slots=True)
class PreferenceStats:
    """How many pairs there are and which answer is longer, and how many answers are labelled good and bad."""

    num_pairs: int = 0
    num_chosen_longer: int = 0
    num_rejected_longer: int = 0
    num_good: int = 0
    num_bad: int = 0

    @classmethod
    def of(cls, rows: Iterable[Row]) -> PreferenceStats:
        """Count the rows."""
        counts: Counter[str] = Counter()
        for row in rows:
            if isinstance(row, Preference):
                counts.update(pair_counts_as(row.chosen.said, row.rejected.said))
            elif isinstance(row, Feedback):
                counts["num_good" if row.is_good else "num_bad"] += 1
        return cls.counted(counts)

    @classmethod
    def counted(cls, counts: Mapping[str, int]) -> PreferenceStats:
        """The same from counts of the fields' names."""
        return cls(**{name: counts.get(name, 0) for name in cls.__slots__})

    @property
    def longer_share(self) -> float:
        """In what share of the pairs a judge would be right who only takes the longer answer; a tie is half right."""
        num_ties = self.num_pairs - self.num_chosen_longer - self.num_rejected_longer
        return (self.num_chosen_longer + num_ties / 2) / self.num_pairs if self.num_pairs else 0.5

    @property
    def length_share(self) -> float:
        """In what share a judge would be right who looks at length alone, be it the longer or the shorter answer."""
        return max(self.longer_share, 1 - self.longer_share)

    @property
    def length_tells(self) -> bool:
        """Whether so many pairs can be told by length that this may be all that is learned."""
        return self.num_pairs >= TELLING_PAIRS and self.length_share >= TELLING_SHARE

    def sentences(self) -> list[tuple[str, bool]]:
        """What is to be said of pairs and labels, and whether it is a warning."""
        said = []
        if self.num_pairs:
            size = "longer" if self.longer_share >= 0.5 else "shorter"
            text = (
                f"Chosen is the longer answer in {self.num_chosen_longer:,} of {amount(self.num_pairs, 'pair')}, "
                f"rejected in {self.num_rejected_longer:,}: who only takes the {size} one is right in "
                f"{self.length_share:.0%}."
            )
            if self.length_tells:
                text += f" A model may learn just that: add pairs in which the {size} answer is the worse one."
            said.append((text, self.length_tells))
        if self.num_good or self.num_bad:
            lacks = "" if self.num_good and self.num_bad else " One kind alone teaches little: add the other."
            said.append((f"Labels: {self.num_good:,} good, {self.num_bad:,} bad.{lacks}", bool(lacks)))
        return said

    def as_json(self) -> dict[str, float | int]:
        """The counts, with the share that length alone tells."""
        counts = {name: getattr(self, name) for name in self.__slots__}
        return counts | ({"length_share": round(self.length_share, 4)} if self.num_pairs else {})


def pair_counts_as(chosen: str, rejected: str) -> tuple[str, ...]:
    """The fields of PreferenceStats by which a pair of answers counts."""
    good, bad = len(visible(chosen)), len(visible(rejected))
    return ("num_pairs", *(["num_chosen_longer"] if good > bad else ["num_rejected_longer"] if bad > good else []))


def stance_of(row: Row) -> int:
    """64 bits that say what a preference or feedback is about, and in the last of them on whose side it is; else 0.

    Two rows contradict each other where only that bit differs: the same answers, preferred the other way round, or the
    same answer, labelled good and bad.
    """
    match row:
        case Preference():
            chosen, rejected = folded(row.chosen.said), folded(row.rejected.said)
            about, side = sorted((chosen, rejected)), chosen < rejected
            if chosen == rejected:
                return 0
        case Feedback():
            about, side = [folded(row.completion.said)], row.is_good
        case _:
            return 0
    before = [part for message in prompt_of(row) for part in (message.role, folded(message.said))]
    # The lengths keep "ab" + "c" apart from "a" + "bc".
    whole = "".join(f"{len(part)}:{part}" for part in (type(row).__name__, composed(row.tools), *before, *about))
    key = xxhash.xxh3_64_intdigest(whole.encode("utf-8", "surrogatepass"))
    return (key | 2) & ~1 | int(side)


def opposed(stances: Iterable[int]) -> dict[int, int]:
    """The rows, by number, that another one contradicts, each with the first such row."""
    taken = {number: stance for number, stance in enumerate(stances) if stance}
    first: dict[int, int] = {}
    for number, stance in taken.items():
        first.setdefault(stance, number)
    return {number: first[stance ^ 1] for number, stance in taken.items() if stance ^ 1 in first}


def objection(row: Row, where: str) -> Drop:
    """Why a row falls out that another one, `where`, contradicts."""
    path = messages_of(row)[-1].path
    return contradiction("Feedback" if isinstance(row, Feedback) else "Preference", where, path)


def contradiction(kind: str, where: str, path: str = "$") -> Drop:
    """The Drop of a Preference or Feedback that stands the other way round somewhere else."""
    fix = "keep the right one"
    if kind == "Feedback":
        return Drop("contradictory_label", f"the same answer has the other label at {where}", fix, path)
    detail = f"the same two answers are preferred the other way round at {where}"
    return Drop("contradictory_preference", detail, fix, path)
