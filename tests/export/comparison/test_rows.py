"""Which rows models are compared on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Record
from dsr1_tune.errors import DataError
from dsr1_tune.export.comparison.rows import GENERAL, choose_rows
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import QUICK, compared


def test_built_in_rows_are_in_both_languages_and_of_every_kind() -> None:
    records = [row for row in read([GENERAL]) if isinstance(row, Record)]
    num_chinese = sum(any("\u4e00" <= sign <= "\u9fff" for sign in record.question) for record in records)
    assert len(records) == len({record.question for record in records}) == 60
    assert 20 <= num_chinese <= 40


def test_rows_come_from_the_run_or_from_files(base: Path, run: RunFolder, sums: Path) -> None:
    assert choose_rows((base, run.adapter), QUICK).domain == choose_rows((run.path, base), QUICK).domain
    from_file = choose_rows((base, base), QUICK.model_copy(update={"data": (sums,)}))
    assert from_file.domain is not None and len(from_file.domain.records) == 6 and from_file.domain.name == "sums.json"
    without = choose_rows((base, base), QUICK)
    assert without.domain is None and "--data" in without.remarks[0] and len(without.asked) == 2


def test_rows_without_answers_are_refused(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "what is 2 times 3?"}\n')
    with pytest.raises(DataError, match="no question with its answer"):
        compared(base, base, QUICK.model_copy(update={"data": (file,)}))
