"""Chunks together are the file: the same rows with the same places, wherever it is cut, whoever reads them."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from collections import Counter

import pytest

from dsr1_tune.data.clean.chunks import Chunk, chunks, open_sources, read_chunk
from dsr1_tune.data.read.json_rows import is_row, lines
from dsr1_tune.data.read.read import check_columns, open_files, read
from dsr1_tune.data.record import Drop, Record
from dsr1_tune.errors import ConfigError, DataError

ROWS = [
    {"instruction": f"问题 {number} a\u2028b\u0085c", "input": "", "output": "回答\n" * (number % 3 + 1)}
    for number in range(9)
]
ODD = [
    *ROWS,
    {"instruction": " <user>: 你好 <bot>: 您好 <user>: 再见", "input": "", "output": "再见"},
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    {"instruction": "no answer"},
    {"instruction": "Q", "output": None},
    {"foo": 1},
    42,
    {"instruction": "Q" * 400, "output": 1e300},
    {"instruction": ["Q"], "output": [{"type": "text", "text": "A"}]},
    *ROWS[:3],
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ODD)
BAD_LINES = LINES.replace('"Q"', '"Q', 1) + "\n \t\r\n\ufeff\n{'input': 1}\n[1, 2\n\ufeff" + LINES.rstrip("\n")
TABLE = [row for row in ROWS if "\x85" in row["instruction"]]
CSV = (
    "instruction,output\r\n"
    + "".join(f'"{row["instruction"]}","{row["output"]}"\r\n' for row in TABLE)
    + 'x\r\n\r\nq,a,b\r\nlast,"ans""wer"\r\nopen,"quote\r\n'
)
DEEP = json.dumps(ROWS[0]) + "\n" + "[" * 300 + "]" * 300 + "\n" + "[" * 5000 + "]" * 5000 + "\n"

# what it is, file name, content
FILES = [
    ("lines", "a.jsonl", LINES),
    ("lines without a last line feed", "a.jsonl", LINES.rstrip("\n")),
    ("lines with CRLF", "a.jsonl", LINES.replace("\n", "\r\n")),
    ("lines with a mark", "a.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
    ("bad lines", "a.jsonl", BAD_LINES),
    ("bad lines with a mark and CRLF", "a.jsonl", b"\xef\xbb\xbf" + BAD_LINES.replace("\n", "\r\n").encode()),
    ("a cut line", "a.jsonl", LINES[:-20]),
    ("broken bytes", "a.jsonl", LINES.encode().replace("问".encode(), b"\xd0", 2) + b"\xef\n\xbb\xbf \n"),
    ("blank lines only between", "a.jsonl", LINES.replace("\n", "\n\n \n\t\r\n")),
    ("deep lines", "a.jsonl", DEEP),
    ("packed lines", "a.jsonl.gz", gzip.compress(LINES.encode())),
    ("GB18030 lines", "a.jsonl", BAD_LINES.encode("gb18030")),
    ("UTF-16 lines", "a.jsonl", LINES.encode("utf-16")),
    ("an array", "a.json", json.dumps(ODD, ensure_ascii=False, indent=1)),
    ("an array in one line", "a.json", json.dumps(ODD)),
    ("a wrapped array", "a.json", json.dumps({"version": 1, "data": ODD}, indent=2)),
    ("a damaged array", "a.json", json.dumps(ODD, indent=1).replace('"Q"', '"Q', 1)),
    ("a cut array", "a.json", json.dumps(ODD)[:-40]),
    ("objects one after another", "a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
    ("a table", "a.csv", CSV),
    ("a GB18030 table", "a.csv", CSV.encode("gb18030")),
]


def same(row):
    """All of a row that can be compared: equality leaves out `row`, `notes` and the messages' paths."""
    messages = [(message.role, message.content, message.path) for message in getattr(row, "messages", ())]
    return repr((type(row), row, row.row, messages, getattr(row, "notes", None)))


def together(pieces):
    outcomes = [read_chunk(pickle.loads(pickle.dumps(chunk))) for chunk in pieces]
    formats: Counter[str] = Counter()
    for _, facts in outcomes:
        formats.update(facts.formats)
    columns = set().union(*(facts.columns for _, facts in outcomes))
    return [row for rows, _ in outcomes for row in rows], formats, columns


@pytest.mark.parametrize("max_bytes", [1, 50, 333, 1 << 20])
@pytest.mark.parametrize(("name", "content"), [file[1:] for file in FILES], ids=[file[0] for file in FILES])
def test_portions_together_are_the_file(write, name, content, max_bytes):
    path = write(name, content)
    (reading,) = open_files([path])
    expected = list(reading.rows)
    pieces = list(chunks([path], max_bytes=max_bytes))
    rows, formats, columns = together(pieces)
    assert list(map(same, rows)) == list(map(same, expected))
    assert [row.place.index for row in rows] == list(range(len(expected)))
    assert formats == reading.formats
    assert {"instruction", "output"} <= columns
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert all(piece.learned.format == reading.format and piece.source == reading.source for piece in pieces)
    assert sum(piece.num_rows for piece in pieces) == len(expected)
    assert len(pieces) == 1 or max_bytes < 1 << 20
    assert len(pieces) > 1 or max_bytes > 50


def test_parquet_rows_are_carried(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}] * 5
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    rows, formats, _ = together(chunks([path], max_bytes=10))
    assert list(map(same, rows)) == list(map(same, read([path])))
    assert formats == {"messages": 5}


def test_random_bytes_between_line_feeds_are_cut_alike(tmp_path):
    """What is a row is decided by the parser; the parent that cuts the file must count the same."""
    chance = random.Random(0)
    pieces = [
        b"\n",
        b"\n",
        b"\n",
        b" ",
        b"\t",
        b"\r",
        b"\xef\xbb\xbf",
        b"\xef",
        b"\xbb",
        b"\xbf",
        b"{}",
        b"\x0c",
        b"\0",
    ]
    for _ in range(300):
        content = b"".join(chance.choices(pieces, k=chance.randrange(1, 30)))
        split = content.split(b"\n")
        terminated = [line + b"\n" for line in split[:-1]] + ([split[-1]] if split[-1] else [])
        assert sum(map(is_row, terminated)) == len(list(lines(terminated, "a")))


def test_only_plain_lines_are_left_on_disk(write):
    on_disk = [write("a.jsonl", ROWS), write("b.jsonl", b"\xef\xbb\xbf" + LINES.encode())]
    assert all(chunk.carried is None for chunk in chunks(on_disk))
    carried = [
        write("c.json", ROWS),
        write("d.jsonl", LINES.encode("utf-16")),
        write("e.jsonl", LINES.replace("\u2028", "").replace("\x85", "").encode("gb18030")),
        write("f.jsonl.gz", gzip.compress(LINES.encode())),
    ]
    assert all(chunk.carried for chunk in chunks(carried))


def test_what_the_head_taught_holds_in_every_portion(write):
    """A row without answer is a mistake among answers, whatever the other rows of its chunk are."""
    rows = [{"question": "Q", "answer": "A"}] * 200 + [{"question": "Q"}] * 200
    found, _, _ = together(chunks([write("a.jsonl", rows)], max_bytes=500))
    assert all(isinstance(row, Record) for row in found[:200])
    assert {row.code for row in found[200:] if isinstance(row, Drop)} == {"missing_field"}
    assert found[399].fix == "add 'answer'"


def test_numbers_go_on_through_all_files(write):
    files = [write("a.jsonl", ROWS), write("b.json", ROWS), write("c.csv", CSV)]
    pieces = list(chunks(files, max_bytes=200))
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    rows, _, _ = together(pieces)
    assert list(map(same, rows)) == list(map(same, read(files)))


def test_a_line_longer_than_a_portion_is_one_portion(write):
    rows = [{"input": "Q", "output": "A" * 5000}, {"input": "Q", "output": "A"}]
    first, second = chunks([write("a.jsonl", rows)], max_bytes=100)
    assert (first.num_rows, second.num_rows) == (1, 1)
    assert (second.first_line, second.first_index, second.start) == (2, 1, first.end)


def test_a_file_that_changes_in_between_is_noticed(write):
    path = write("a.jsonl", ROWS)
    (chunk,) = chunks([path])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a\.jsonl: was changed while it was read"):
        read_chunk(chunk)
    path.write_bytes(b"\n" * chunk.end)
    with pytest.raises(DataError, match="was changed"):
        read_chunk(chunk)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read"):
        read_chunk(chunk)


def test_mapping(write):
    path = write("a.jsonl", [{"x": "Q", "y": "A"}] * 10)
    found, _, columns = together(chunks([path], {"question": "x", "answer": "y"}, max_bytes=30))
    assert all(isinstance(row, Record) for row in found)
    check_columns({"question": "x", "answer": "y"}, columns)
    with pytest.raises(DataError, match="answer=z: no row has such a field") as caught:
        check_columns({"question": "x", "answer": "z"}, columns)
    assert caught.value.hint == "the fields are: x, y"
    with pytest.raises(ConfigError, match="no name 'anser'"):
        open_sources([path], {"anser": "y"})


def test_a_portion_is_small_to_send(write):
    rows = [{"input": f"question {number}", "output": "A" * 1000} for number in range(1000)]
    (chunk,) = chunks([write("a.jsonl", rows)])
    assert isinstance(chunk, Chunk)
    assert len(pickle.dumps(chunk)) < 2000


def test_files_are_cut_lazily(write):
    pieces = chunks([write("a.json", ROWS * 300)], max_bytes=1000)
    first = next(pieces)
    assert first.num_rows < 100
