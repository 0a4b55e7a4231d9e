"""Layouts and encodings: every row has its line and index, and what is broken spoils nothing else."""

from __future__ import annotations

import json
import tracemalloc
from itertools import islice

import pytest

from dsr1_tune.data.clean.chunks import chunks
from dsr1_tune.data.read.read import read
from dsr1_tune.errors import DataError

ROW = {"input": "问", "output": "答"}


def test_read_one_object_is_one_row(write):
    (record,) = read(
        [write("a.json", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]})]
    )
    assert (record.answer, record.place.line, record.messages[1].path) == ("A", 1, "$.conversations[1].value")


@pytest.mark.parametrize("key", ["[1]", "{}", "1", "null", "input"])
def test_read_names_of_fields_are_texts(write, key):
    (row,) = read([write("a.json", f'{{"input": "Q", {key}: 1, "output": "A"}}')])
    assert (row.code, row.place.line) == ("json_damaged", 1)
    assert "a field's name in double quotes (line 1, column 16" in row.detail


def test_read_messages_can_be_printed_whatever_the_names(write):
    """Fields may be named with half characters, or with whole texts."""
    for row in ({"\ud800": 1, "x" * 5000: 2}, {"messages": [{"\ud800": 1}]}, {"q": 1, **dict.fromkeys("bcdefgijk", 1)}):
        rows = list(read([write("a.json", json.dumps([{"input": "Q", "output": "A"}, row]))]))
        assert len(f"{rows[1].detail} {rows[1].fix}".encode()) < 200
    with pytest.raises(DataError) as caught:
        list(read([write("a.csv", b"\xff,b\nq,a\n" + "问".encode() * 50)]))
    assert "its columns are" in str(caught.value.message.encode())


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "wrapped.json"])
def test_read_a_large_file_takes_little_memory(tmp_path, name):
    """60 MB are walked in blocks of 1 MB."""
    path = tmp_path / name
    with path.open("w", encoding="utf-8") as file:
        before, between, after = {"a.json": ("[", ",\n", "]"), "a.jsonl": ("", "\n", "")}.get(
            name, ('{"data": [', ",", "]}")
        )
        rows = [json.dumps({"input": "Q", "output": "A" * 10_000})] * 600
        file.write(before + between.join(rows))
        for _ in range(9):
            file.write(between + between.join(rows))
        file.write(after)
    assert path.stat().st_size > 6e7
    for walk in (lambda: read([path]), lambda: chunks([path], max_bytes=1 << 20)):
        tracemalloc.start()
        number = sum(getattr(item, "num_rows", 1) for item in walk())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert number == 6000
        assert peak < 12e6


def test_reading_is_lazy(write):
    file = write("a.jsonl", "".join(json.dumps(ROW) + "\n" for _ in range(500)) + "{")
    assert len(list(islice(read([file]), 3))) == 3
