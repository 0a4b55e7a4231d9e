"""What a run leaves in its data folder reads back as the kind that it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsr1_tune.data.prepare import write
from dsr1_tune.data.prepared import FileSummary, Prepared
from dsr1_tune.data.record import Feedback, Message, Place, Preference, Prompt, Record, Row
from dsr1_tune.errors import RunError
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.kept_rows import kept_rows

ASKED = (Message("system", "Be kind."), Message("user", "Human: what is 6 * 7?"))
# Texts that look like something else: tags of a dialogue, a label, JSON.
SAID, OTHER = Message("assistant", "Human: Q Assistant: A"), Message("assistant", '[{"role": "user"}]')
PLACES = [Place("a.jsonl", number + 1, number) for number in range(4)]


def rows_of(kind: type[Row]) -> list[Row]:
    if kind is Preference:
        return [Preference(ASKED, SAID, OTHER, place) for place in PLACES]
    if kind is Feedback:
        return [Feedback(ASKED, SAID, place.index == 1, place) for place in PLACES]
    if kind is Prompt:
        return [Prompt(ASKED, "true" if place.index else None, place) for place in PLACES]
    return [Record((*ASKED, SAID), place) for place in PLACES]


@pytest.mark.parametrize("kind", [Record, Preference, Feedback, Prompt])
def test_rows_come_back_as_they_were(tmp_path: Path, kind: type[Row]) -> None:
    rows = rows_of(kind)
    folder = RunFolder(tmp_path)
    folder.data.mkdir()
    prepared = Prepared(tuple(rows), (), (FileSummary("a.jsonl", "JSON lines", "utf-8", "", len(rows)),))
    write(prepared, folder.data, rows[-1:])
    for which, expected in (("train", rows[:-1]), ("eval", rows[-1:])):
        again = kept_rows(folder, which, kind)
        assert [as_said(row) for row in again] == [as_said(row) for row in expected]
    others = {Record, Preference, Feedback, Prompt} - {kind}
    assert [kept_rows(folder, "train", other) for other in others] == [[], [], []]


def as_said(row: Row) -> Row:
    """The row without its place, which is now another."""
    return type(row)(**{name: getattr(row, name) for name in row.__slots__ if name not in ("place",)}, place=PLACES[0])


def test_a_folder_without_its_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"eval\.jsonl: is missing"):
        kept_rows(RunFolder(tmp_path), "eval", Preference)
