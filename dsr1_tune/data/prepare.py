"""The steps in order: read, rules, duplicates → what is kept, what fell out and why; and the files that say so."""

from __future__ import annotations

import random
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import orjson

from dsr1_tune.atomic import atomic_write
from dsr1_tune.config import Data
from dsr1_tune.data.dedup.exact import exact_duplicate, first_copies
from dsr1_tune.data.dedup.minhash import LEARNED_ROWS
from dsr1_tune.data.dedup.row_hashes import Alike
from dsr1_tune.data.output import as_output, dumps
from dsr1_tune.data.phrase_table import load_yaml
from dsr1_tune.data.prepared import FileSummary, Prepared
from dsr1_tune.data.read.ground_truth import result_of
from dsr1_tune.data.read.read import open_files
from dsr1_tune.data.read.values import Unusable
from dsr1_tune.data.record import Drop, Prompt, Record, Row, prompt_of
from dsr1_tune.data.report import reject
from dsr1_tune.data.row_check import RowCheck, leaves_out_full_stops, pack_of
from dsr1_tune.data.rules.pairs import objection, opposed, stance_of
from dsr1_tune.data.split import split_section
from dsr1_tune.errors import DataError
from dsr1_tune.text.amount import amount

MAX_NAMED = 5
_NEEDS: dict[str, dict[str, str]] = load_yaml(Path(__file__).with_suffix(".yaml"))

AnyRow = TypeVar("AnyRow", bound=Row)


def examine(data: Data) -> Prepared:
    """Read everything; keep what passes the rules and repeats no other row. Raises DataError where unreadable.

    Of the rows that are evaluated on, only those fall out that cannot be used at all.
    """
    rows: list[Row] = []
    drops: list[Drop] = []
    files: list[FileSummary] = []
    mended: dict[str, Counter[str]] = {}
    pack = pack_of(data)
    least = (data.min_question_chars, data.min_answer_chars)
    for reading in open_files((*data.files, *data.eval_files), data.map):
        source, name = reading.source, str(reading.source.path)
        is_eval = source.path in data.eval_files
        num_before = len(rows) + len(drops)
        items = iter(reading.rows)
        check = RowCheck(None)
        if not is_eval:
            head = list(islice(items, LEARNED_ROWS)) if pack else []
            items = chain(head, items)
            good = [row for row in head if not isinstance(row, Drop)]
            check = RowCheck(pack, [name] if pack and leaves_out_full_stops(good, pack) else [], least)
        for item in items:
            outcome = item if isinstance(item, Drop) else _checked(item, check, mended.setdefault(name, Counter()))
            if isinstance(outcome, Drop):
                drops.append(outcome)
            else:
                rows.append(outcome)
        num_rows = len(rows) + len(drops) - num_before
        found = (name, source.layout, source.encoding, reading.format, num_rows, reading.formats)
        files.append(FileSummary(*found, data.weight(name), is_eval))
    return _without_copies(Prepared(tuple(rows), tuple(drops), tuple(files), mended))


def _checked(row: Row, check: RowCheck, mended: Counter[str]) -> Row | Drop:
    """The row, perhaps mended, with the remarks on it, or why it falls out."""
    checked = check.check(row)
    if isinstance(checked.row, Drop):
        return checked.row.at(row.place, "rules", row.row)
    mended.update(checked.repaired)
    if not checked.notes:
        return checked.row
    notes = tuple(note.at(row.place, "rules", row.row) for note in checked.notes)
    return replace(checked.row, notes=row.notes + notes)


def _without_copies(prepared: Prepared) -> Prepared:
    """Less the rows that say the same as an earlier one, and those that others contradict: nobody can say who is right.

    A row that `data clean` wrote several times, as its file's weight says, is learned several times. A copy in a file
    that counts for less than 1 yields to one that is taken for sure.
    """
    rows = prepared.train_rows
    drops = []
    opposites = opposed([stance_of(row) for row in rows])
    partial = {file.file for file in prepared.files if file.weight < 1}
    for number, first in enumerate(first_copies(rows, [row.place.file in partial for row in rows]).tolist()):
        row = rows[number]
        if first != number:
            if _source_of(row) and _source_of(row) == _source_of(rows[first]):
                continue
            drop = exact_duplicate(rows[first].place.seen_from(row.place))
        elif number in opposites:
            drop = objection(row, rows[opposites[number]].place.seen_from(row.place))
        else:
            continue
        drops.append(drop.at(row.place, "duplicates", row.row))
    found = prepared.with_drops(drops)
    order = {file.file: number for number, file in enumerate(prepared.files)}

    def in_files(drop: Drop) -> tuple[int, int]:
        return (order[drop.place.file], drop.place.index) if drop.place else (0, 0)

    return replace(found, drops=tuple(sorted(found.drops, key=in_files)))


def _source_of(row: Row) -> Any:
    """The place that `data clean` noted of a row that it wrote, in this file."""
    source = row.row.get("source") if isinstance(row.row, dict) else None
    is_place = isinstance(source, dict) and source.keys() == {"file", "line", "index"}
    return (row.place.file, *source.values()) if is_place and isinstance(source, dict) else None


def prepare(data: Data, kind: type[Row] = Record) -> Prepared:
    """The rows to train on: `examine`, and only rows of one kind (by default those with an answer to learn).

    Of the other kinds prompts can be made: a model's answer is then checked against the row's column of RESULTS, or
    else against a question's answer; the answers that people have compared or labelled are left out.

    Raises DataError for a damaged file (unless allowed), and where nothing is left to learn from.
    """
    prepared = examine(data)
    if kind is Prompt:
        prepared = _as_prompts(prepared, data.map.get("ground_truth", ""))
    num_usable = sum(isinstance(row, kind) for row in prepared.rows)
    if prepared.damage and not data.allow_damaged:
        broken = [f"{drop.place}: {drop.detail}" for drop in prepared.damage]
        if len(broken) > MAX_NAMED:
            broken = [*broken[:MAX_NAMED], f"and {len(broken) - MAX_NAMED} more such places"]
        hint = (
            "mend the file: rows beyond that place may be lost; or train on the "
            f"{num_usable} that could be read with --set data.allow_damaged=true"
        )
        raise DataError("\n".join(broken), hint=hint)
    need = _NEEDS[kind.__name__]
    if prepared.rows and not num_usable:
        kinds = _listed(Counter(map(_kind, prepared.rows)))
        raise DataError(f"{_names(prepared)}: {need['lack']} ({kinds} rows)", hint=need["hint"])
    prepared = prepared.with_drops(
        Drop(need["code"], f"a {_kind(row)} row", "keep it in a file of its own").at(row.place, "selection", row.row)
        for row in prepared.rows
        if not isinstance(row, kind)
    )
    prepared = prepared.with_drops(_not_drawn(prepared.rows, data))
    prepared = prepared.with_drops(_held_in_evaluation(prepared))
    if not prepared.rows:
        reasons = _listed(Counter(drop.code for drop in prepared.drops))
        first = prepared.drops[0]
        message = (
            f"{_names(prepared)}: of {amount(len(prepared.drops), 'row')} none can be used ({reasons}); the first: "
        )
        hint = f"{first.fix}; see every row with: dsr1-tune data check {shlex.join(f.file for f in prepared.files)}"
        raise DataError(f"{message}{first.place}: {first.detail}", hint=hint)
    return prepared


def _as_prompts(prepared: Prepared, column: str) -> Prepared:
    """Prompts alone, less the rows whose result is no text; `column` is what --map names for the result."""
    made = [_as_prompt(row, column) for row in prepared.rows]
    drops = tuple(one for one in made if isinstance(one, Drop))
    rows = tuple(one for one in made if not isinstance(one, Drop))
    return replace(prepared, rows=rows, drops=prepared.drops + drops)


def _as_prompt(row: Row, column: str = "") -> Row | Drop:
    """The row as a prompt; its result is what its column says, else a question's answer."""
    if isinstance(row, Prompt):
        return row
    try:
        result = result_of(row.row, column)
    except Unusable as bad:
        return bad.drop.at(row.place, "selection", row.row)
    if result is None and isinstance(row, Record):
        result = row.answer
    return Prompt(prompt_of(row), result, row.place, row.tools, row.row, row.notes)


def _not_drawn(records: Sequence[Row], data: Data) -> list[Drop]:
    """Of the files that count for less than 1, the records that are left out; the same ones every time."""
    drops = []
    for file, weight in data.weights.items():
        of_file = [record for record in records if record.place.file == file]
        num_left_out = len(of_file) - round(min(weight, 1) * len(of_file))
        left_out = random.Random(f"{file} {weight}").sample(of_file, num_left_out)
        drop = Drop("not_drawn", f"the file's weight is {weight:g}", "give the file the weight 1 to take all")
        drops += [drop.at(record.place, "selection", record.row) for record in left_out]
    return drops


def repeat(records: Sequence[AnyRow], weights: Mapping[str, float], seed: int) -> tuple[AnyRow, ...]:
    """The rows to train on, those of a file with weight 2.5 twice, and every other one of them once more."""
    repeated: list[AnyRow] = list(records)
    for file, weight in weights.items():
        of_file = [record for record in records if record.place.file == file]
        if weight > 1:
            repeated += of_file * (int(weight) - 1)
            repeated += random.Random(seed).sample(of_file, round(weight % 1 * len(of_file)))
    return tuple(repeated)


def _kind(row: Row) -> str:
    return type(row).__name__.lower()


def _names(prepared: Prepared) -> str:
    return ", ".join(file.file for file in prepared.files)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common())


def _held_in_evaluation(prepared: Prepared) -> list[Drop]:
    """The training rows that ask the same as a row of the evaluation files, or are near copies of one."""
    held_out = prepared.eval_rows
    if not held_out:
        return []
    rows = prepared.train_rows
    groups = Alike.of((*held_out, *rows)).groups.tolist()
    evaluated = dict(zip(reversed(groups[: len(held_out)]), reversed(held_out), strict=True))
    fix = "keep it out of the training data"
    return [
        Drop("contaminated", f"asks or says nearly the same as the evaluation row {evaluated[group].place}", fix).at(
            row.place, "contamination", row.row
        )
        for row, group in zip(rows, groups[len(held_out) :], strict=True)
        if group in evaluated
    ]


def write(prepared: Prepared, folder: Path, held_out: Sequence[Row] = ()) -> None:
    """Leave `train.jsonl`, `eval.jsonl` (the `held_out` rows), `rejected.jsonl` and `report.json` in the folder."""
    places = {record.place for record in held_out}
    train = [row for row in prepared.rows if row.place not in places]
    _write_lines(folder / "train.jsonl", (dumps(as_output(row)) for row in train))
    _write_lines(folder / "eval.jsonl", (dumps(as_output(row)) for row in held_out))
    write_rejects(prepared.drops, folder / "rejected.jsonl")
    report = prepared.report(split=split_section(len(train), len(train), len(held_out), []))
    with atomic_write(folder / "report.json", binary=True) as file:
        file.write(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")


def write_rejects(drops: Iterable[Drop], path: Path) -> None:
    """One line per dropped row: where it stands, what is wrong, how to mend it, and the whole row as it was."""
    _write_lines(path, (reject(drop, dumps(drop.row)) for drop in drops))


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with atomic_write(path, binary=True) as file:
        for line in lines:
            file.write(line + b"\n")
