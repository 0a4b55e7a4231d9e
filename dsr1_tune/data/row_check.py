"""What every row is held to by itself, in training, `data check` and `data clean`: filled in, answers differ, rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dsr1_tune.config import Data
from dsr1_tune.data.record import Checked, Drop, Row
from dsr1_tune.data.rules.checker import Checker, long_enough, not_empty
from dsr1_tune.data.rules.packs import Pack, load_pack
from dsr1_tune.data.rules.pairs import answers_differ, remarks_on_pair
from dsr1_tune.data.rules.remarks import remarks_on_calls, remarks_on_masks, remarks_on_unread_calls

MIN_UNENDED_ROWS = 20
MIN_UNENDED_SHARE = 0.01


class RowCheck:
    """The checks of single rows, cheap ones first; the first that objects decides.

    Without a pack of rules only what cannot be learned from is dropped, and what is shorter than `least` (characters
    of question and answer). `unended_files` are those in which answers need no full stop at their end.
    """

    def __init__(self, pack: Pack | None, unended_files: Iterable[str] = (), least: tuple[int, int] = (1, 1)) -> None:
        self._checker = Checker(pack) if pack else None
        self._lenient = Checker(_lenient(pack)) if pack else None
        self._unended_files = frozenset(unended_files)
        self._least = least

    def check(self, row: Row) -> Checked:
        """The row, perhaps mended, or the first Drop; and remarks of the rules and of our own."""
        filled = not_empty(row)
        if not isinstance(filled, Drop):
            filled = answers_differ(row)
        if isinstance(filled, Drop):
            return Checked(filled)
        checked = self._ruled(row)
        if isinstance(checked.row, Drop):
            return checked
        remarks = (
            *remarks_on_pair(row),
            *remarks_on_unread_calls(row),
            *remarks_on_calls(row),
            *remarks_on_masks(row),
        )
        return replace(checked, notes=remarks + checked.notes) if remarks else checked

    def _ruled(self, row: Row) -> Checked:
        """What the rules say. In a file in which many answers lack their last full stop, that is only a remark."""
        if self._checker is None or self._lenient is None:
            # What is not blank has one character.
            return Checked(row if self._least == (1, 1) else long_enough(row, *self._least))
        checked = self._checker.check(row)
        drop = checked.row
        if not isinstance(drop, Drop) or drop.code != "truncated_answer" or row.place.file not in self._unended_files:
            return checked
        again = self._lenient.check(row)
        return again if isinstance(again.row, Drop) else replace(again, notes=(*again.notes, drop))


def pack_of(data: Data, default: str | None = None) -> Pack | None:
    """The pack of rules that the settings name, else the default one, with the least lengths that they ask for."""
    name = data.rules or default
    if name is None:
        return None
    pack = load_pack(name)
    lengths = pack.rules.lengths
    least = {
        "min_question_chars": max(lengths.min_question_chars, data.min_question_chars),
        "min_answer_chars": max(lengths.min_answer_chars, data.min_answer_chars),
    }
    rules = pack.rules.model_copy(update={"lengths": lengths.model_copy(update=least)})
    return pack.model_copy(update={"rules": rules})


def leaves_out_full_stops(rows: Sequence[Row], pack: Pack) -> bool:
    """Whether it is these rows' way, as it is in forums, to end an answer without a full stop: 1 % of them do."""
    strict, loose = Checker(pack), Checker(_lenient(pack))
    num_unended = 0
    for row in rows:
        drop = strict.check(row).row
        if isinstance(drop, Drop) and drop.code == "truncated_answer":
            num_unended += not isinstance(loose.check(row).row, Drop)
    return num_unended >= max(MIN_UNENDED_ROWS, MIN_UNENDED_SHARE * len(rows))


def _lenient(pack: Pack) -> Pack:
    """The pack, but that an answer may end without a full stop."""
    truncated = pack.rules.truncated_answer.model_copy(update={"unended": False})
    return pack.model_copy(update={"rules": pack.rules.model_copy(update={"truncated_answer": truncated})})
