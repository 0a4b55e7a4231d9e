"""Rows as a base's chat template shows them, with what is learned of them marked: a look before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dsr1_tune.config import TuneRun
from dsr1_tune.data.encode.example import IGNORED, Example, encode_all
from dsr1_tune.data.inspect.show import heading, reason, visible
from dsr1_tune.data.record import Drop, Record, Row
from dsr1_tune.data.row_check import RowCheck, pack_of

if TYPE_CHECKING:
    from rich.console import Console

_LEARNED = "bold green"


@dataclass(frozen=True)
class Part:
    """A run of tokens that are all learned, or all not, as text."""

    text: str
    is_learned: bool


def parts_of(example: Example, tokenizer: Any) -> list[Part]:
    """The text of an example in the order of its tokens, parted where what is learned begins and ends."""
    parts = []
    end, before = 0, ""
    for is_learned, labels in groupby(example.labels, lambda label: label != IGNORED):
        end += len(list(labels))
        # From the beginning each time: some tokenizers drop the blank before what they decode by itself.
        text = tokenizer.decode(example.input_ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        parts.append(Part(text[len(before) :], is_learned))
        before = text
    return parts


def encoded(
    rows: Iterable[Row | Drop], tokenizer: Any, config: TuneRun
) -> Iterator[tuple[Row | Drop, list[Example | Drop]]]:
    """Every row with what a run would make of it: an example, several where it is split, or why there is none."""
    data = config.data
    check = RowCheck(pack_of(data), least=(data.min_question_chars, data.min_answer_chars))
    for row in rows:
        checked = row if isinstance(row, Drop) else check.check(row).row
        if not isinstance(checked, Record):
            yield row, [checked] if isinstance(checked, Drop) else []
            continue
        found = encode_all([checked], tokenizer, config.schedule.max_tokens, config.encoding)
        yield row, [*found.examples, *found.drops, *found.lost_parts]


def show_learned(rows: Iterable[Row | Drop], tokenizer: Any, config: TuneRun, console: Console) -> None:
    """Print rows as the model sees them; what is learned is green, or in «» where there are no colours."""
    for number, (row, outcomes) in enumerate(encoded(rows, tokenizer, config)):
        if number:
            console.print()
        console.print(heading(row))
        if not outcomes:
            console.print("only conversations are shown so", style="dim")
        for outcome in outcomes:
            if isinstance(outcome, Drop):
                console.print(reason(outcome))
            else:
                _print_example(outcome, tokenizer, console)


def _print_example(example: Example, tokenizer: Any, console: Console) -> None:
    from rich.text import Text

    marks = ("«", "»") if console.color_system is None else ("", "")
    shown = Text()
    for part in parts_of(example, tokenizer):
        text = visible(part.text, _LEARNED if part.is_learned else "dim")
        shown.append_text(Text.assemble(marks[0], text, marks[1]) if part.is_learned else text)
    console.print(shown, soft_wrap=True)
    num_learned = sum(label != IGNORED for label in example.labels)
    cut = f", {example.num_cut:,} more are cut off" if example.num_cut else ""
    told = f"tokens: {len(example.input_ids):,}, of which learned: {num_learned:,}{cut}"
    console.print(told, style="dim", highlight=False)


def learned_as_json(rows: Iterable[Row | Drop], tokenizer: Any, config: TuneRun) -> list[dict[str, Any]]:
    """The same for programs: an entry for every example, and for every row of which there is none."""
    found = []
    for row, outcomes in encoded(rows, tokenizer, config):
        where = asdict(row.place) if row.place else {}
        for outcome in outcomes:
            if isinstance(outcome, Drop):
                found.append(where | {"code": outcome.code, "detail": outcome.detail, "fix": outcome.fix})
                continue
            parts = [{"text": part.text, "learned": part.is_learned} for part in parts_of(outcome, tokenizer)]
            ids = {"input_ids": list(outcome.input_ids), "labels": list(outcome.labels)}
            found.append(where | {"parts": parts, "num_cut": outcome.num_cut, **ids})
    return found
