"""The steps in order: read, rules, duplicates → what is kept, what fell out and why; and the files that say so."""

from __future__ import annotations

import random
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from dsr1_tune.atomic import atomic_write
from dsr1_tune.config import Data
from dsr1_tune.data.dedup.exact import Seen
from dsr1_tune.data.inspect.tables import Report
from dsr1_tune.data.output import as_output, dumps
from dsr1_tune.data.prepared import FileFacts, Prepared
from dsr1_tune.data.read.ground_truth import result_of
from dsr1_tune.data.read.read import open_files
from dsr1_tune.data.read.values import Unusable
from dsr1_tune.data.record import Drop, Feedback, Preference, Prompt, Record, Row, prompt_of
from dsr1_tune.data.rules import checker as rules
from dsr1_tune.data.rules.packs import load_pack
from dsr1_tune.data.rules.pairs import answers_differ, objection, opposed, remarks_on_pair, stance_of
from dsr1_tune.errors import DataError

MAX_NAMED = 5

AnyRow = TypeVar("AnyRow", bound=Row)
Drawn = TypeVar("Drawn")


def examine(data: Data) -> Prepared:
    """Read everything; keep what passes the rules and was not seen before. Raises DataError where unreadable."""
    rows: list[Row] = []
    drops: list[Drop] = []
    files: list[FileFacts] = []
    seen = Seen()
    checker = rules.Checker(load_pack(data.rules)) if data.rules else None
    for reading in open_files(data.files, data.map):
        num_before = len(rows) + len(drops)
        for item in reading.rows:
            outcome = item if isinstance(item, Drop) else _judge(item, data, checker, seen)
            if isinstance(outcome, Drop):
                drops.append(outcome)
            else:
                rows.append(outcome)
        source = reading.source
        num_rows = len(rows) + len(drops) - num_before
        files.append(FileFacts(str(source.path), source.layout, source.encoding, reading.format, num_rows))
    return _without_contradictions(Prepared(tuple(rows), tuple(drops), tuple(files)))


def _judge(row: Row, data: Data, checker: rules.Checker | None, seen: Seen) -> Row | Drop:
    """The steps after reading, cheap ones first; the first that objects decides."""
    outcome = rules.not_empty(row)
    if not isinstance(outcome, Drop):
        outcome = answers_differ(row)
    if not isinstance(outcome, Drop):
        outcome = rules.long_enough(row, data.min_question_chars, data.min_answer_chars)
    notes = remarks_on_pair(row)
    if checker and not isinstance(outcome, Drop):
        checked = checker.check(outcome)
        outcome, notes = checked.row, notes + checked.notes
    if isinstance(outcome, Drop):
        return outcome.at(row.place, "rules", row.row)
    if notes:
        outcome = replace(outcome, notes=row.notes + tuple(note.at(row.place, "rules", row.row) for note in notes))
    row = outcome
    outcome = seen.first_time(row)
    return outcome.at(row.place, "duplicates", row.row) if isinstance(outcome, Drop) else outcome


def _without_contradictions(prepared: Prepared) -> Prepared:
    """Less the preferences and feedback that other rows contradict: nobody can say which of them is right."""
    rows = prepared.rows
    pairs = opposed([stance_of(row) for row in rows])
    if not pairs:
        return prepared
    drops = [
        objection(rows[one], _seen_from(rows[one], rows[other])).at(rows[one].place, "duplicates", rows[one].row)
        for one, other in pairs.items()
    ]
    order = {file.file: number for number, file in enumerate(prepared.files)}

    def in_files(drop: Drop) -> tuple[int, int]:
        return (order[drop.place.file], drop.place.index) if drop.place else (0, 0)

    found = prepared.with_drops(drops)
    return replace(found, drops=tuple(sorted(found.drops, key=in_files)))


def _seen_from(row: Row, other: Row) -> str:
    where = f"line {other.place.line}" if other.place.file == row.place.file else str(other.place)
    return f"{where} (row {other.place.index})"


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
    need = NEEDS[kind]
    if prepared.rows and not num_usable:
        kinds = _listed(Counter(type(row).__name__.lower() for row in prepared.rows))
        raise DataError(f"{_names(prepared)}: {need.lack} ({kinds} rows)", hint=need.hint)
    prepared = prepared.with_drops(
        Drop(need.code, f"a {type(row).__name__.lower()} row", "keep it in a file of its own").at(
            row.place, "selection", row.row
        )
        for row in prepared.rows
        if not isinstance(row, kind)
    )
    prepared = prepared.with_drops(_not_drawn(prepared.rows, data))
    if not prepared.rows:
        reasons = _listed(Counter(drop.code for drop in prepared.drops))
        first = prepared.drops[0]
        message = f"{_names(prepared)}: none of the {len(prepared.drops)} rows can be used ({reasons}); the first: "
        hint = f"{first.fix}; see every row with: dsr1-tune data check {shlex.join(f.file for f in prepared.files)}"
        raise DataError(f"{message}{first.place}: {first.detail}", hint=hint)
    return prepared


def _as_prompts(prepared: Prepared, column: str) -> Prepared:
    """Prompts alone, less the rows whose result is no text; `column` is what --map names for the result."""
    made = [_as_prompt(row, column) for row in prepared.rows]
    drops = [
        one.at(row.place, "selection", row.row)
        for one, row in zip(made, prepared.rows, strict=True)
        if isinstance(one, Drop)
    ]
    rows = tuple(one for one in made if not isinstance(one, Drop))
    return replace(prepared, rows=rows, drops=prepared.drops + tuple(drops))


def _as_prompt(row: Row, column: str = "") -> Row | Drop:
    """The row as a prompt; its result is what its column says, else a question's answer."""
    if isinstance(row, Prompt):
        return row
    try:
        result = result_of(row.row, column)
    except Unusable as bad:
        return bad.drop
    if result is None and isinstance(row, Record):
        result = row.answer
    return Prompt(prompt_of(row), result, row.place, row.tools, row.row, row.notes)


@dataclass(frozen=True)
class _Need:
    """What is said where files hold no row, or some rows not, of the kind that is needed."""

    lack: str
    hint: str
    code: str = "not_of_this_kind"


NEEDS: dict[type[Row], _Need] = {
    Record: _Need(
        "no row has an answer to learn",
        "supervised training needs questions with answers: add them, or name the columns with --map",
        code="not_supervised",
    ),
    Preference: _Need(
        "no row has a better and a worse answer",
        "reward and dpo need rows with prompt, chosen and rejected: see dsr1-tune data init --format preference, or "
        "name the columns with --map; rows with a completion and a label are for kto",
    ),
    Feedback: _Need(
        "no row has an answer with a label",
        "kto needs rows with prompt, completion and label (true or false): see dsr1-tune data init --format feedback, "
        "or name the column with --map label=NAME; rows with chosen and rejected are for dpo",
    ),
    Prompt: _Need(
        "no row has a prompt",
        "ppo and grpo need rows with a prompt, and ground_truth or an answer where it can be checked: see dsr1-tune "
        "data init --format prompts",
    ),
}


def _not_drawn(records: Sequence[Row], data: Data) -> list[Drop]:
    """Of the files that count for less than 1, the records that are left out; the same ones every time."""
    drops = []
    for file, weight in data.weights.items():
        of_file = [record for record in records if record.place.file == file]
        left_out = random.Random(f"{file} {weight}").sample(
            of_file, len(of_file) - round(min(weight, 1) * len(of_file))
        )
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


def _names(prepared: Prepared) -> str:
    return ", ".join(file.file for file in prepared.files)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common())


def split(records: Sequence[Drawn], eval_share: float, seed: int) -> tuple[tuple[Drawn, ...], tuple[Drawn, ...]]:
    """(to train on, held out), both in the order of `records`; the same seed draws the same records.

    At least one is held out where there are two and the share is above 0, and at least one is trained on.
    """
    num_held_out = 0
    if eval_share > 0 and len(records) > 1:
        num_held_out = min(max(1, round(len(records) * eval_share)), len(records) - 1)
    drawn = set(random.Random(seed).sample(range(len(records)), num_held_out))
    train = tuple(record for number, record in enumerate(records) if number not in drawn)
    return train, tuple(records[number] for number in sorted(drawn))


def write(prepared: Prepared, folder: Path, held_out: Sequence[Row] = ()) -> None:
    """Leave `train.jsonl`, `eval.jsonl` (the `held_out` rows), `rejected.jsonl` and `report.json` in the folder."""
    places = {record.place for record in held_out}
    train = [row for row in prepared.rows if row.place not in places]
    _write_lines(folder / "train.jsonl", map(as_output, train))
    _write_lines(folder / "eval.jsonl", map(as_output, held_out))
    write_rejects(prepared.drops, folder / "rejected.jsonl")
    summary = Report.of(prepared).summary()
    with atomic_write(folder / "report.json", binary=True) as file:
        file.write(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")


def write_rejects(drops: Iterable[Drop], path: Path) -> None:
    """One line per dropped row: where it stands, what is wrong, how to mend it, and the whole row as it was."""
    _write_lines(path, ({**drop.as_json(), "row": drop.row} for drop in drops))


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path, binary=True) as file:
        for value in values:
            file.write(dumps(value) + b"\n")
