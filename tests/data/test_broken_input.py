"""Whatever is handed in, the message names the place and the mend, and there is no traceback."""

from __future__ import annotations

import gzip
import json
import os
import re

import pytest

from dsr1_tune.config import Data
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.read import files
from dsr1_tune.errors import TuneError

ROWS = [{"input": f"question {number}", "output": f"answer {number}"} for number in range(50)]
ARRAY = json.dumps(ROWS, indent=1)
LINES = "\n".join(map(json.dumps, ROWS))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4

# what it is, file name, content, what the message says, what the hint says
BROKEN = [
    ("truncated array", "a.json", ARRAY[:700], "the file ends inside this row", "mend the file"),
    ("truncated lines", "a.jsonl", LINES[:690], "a.jsonl:15: the file ends inside this row", "allow_damaged"),
    ("broken in the middle", "a.json", ARRAY.replace('5",', '5"', 1), "line 24, column", "rows beyond that place"),
    ("a list of numbers", "a.json", "[1, 2, 3]", "3 not_an_object", "data check"),
    ("a list of lists", "a.json", '[["Q", "A"], ["R", "B"]]', "a list (['Q', 'A'])", '{"input"'),
    ("a list of texts", "a.json", '["Q", "A"]', "text ('Q')", '{"input"'),
    ("a single number", "a.json", "42", "holds a single value, 42", "JSON lines"),
    ("a single text", "a.json", '"hello"', 'holds a single value, "hello"', "JSON lines"),
    ("null", "a.json", "null", "holds a single value, null", "JSON lines"),
    ("an empty array", "a.json", "[]", "holds no rows", "write rows"),
    ("an empty file", "a.json", "", "is empty (0 bytes)", "write the rows"),
    ("blanks only", "a.jsonl", "\n \n\t\n", "nothing but blanks", "write the rows"),
    ("nested nulls", "a.json", '[{"messages": [{"role": "user", "content": null}]}]', "is null", "write the text"),
    ("null rows", "a.json", "[null, null]", "null, not an object", '{"input"'),
    ("empty answers", "a.json", '[{"input": "Q", "output": ""}]', "the answer is blank", "write the answer"),
    ("unknown fields", "a.json", '[{"foo": 1, "bar": 2}]', "its fields are foo, bar", "--map question=NAME"),
    ("questions only", "a.json", '[{"question": "Q"}]', "no row has an answer", "--map"),
    ("preferences only", "a.json", '[{"prompt": "Q", "chosen": "A", "rejected": "B"}]', "1 preference", "answers"),
    (
        "a 5 MB field",
        "a.json",
        json.dumps([{"input": "Q", "output": "A" * 5_000_000}]),
        "5,000,000 characters",
        "split",
    ),
    ("deep nesting", "a.json", "[" * 100_000 + "]" * 100_000, "more than 200 levels deep", "flatten"),
    ("deep objects", "a.jsonl", '{"a":' * 9000 + "1" + "}" * 9000 + "\n{}", "of 2 rows none can be used", "flatten"),
    ("lone surrogates", "a.jsonl", '{"input": "Q", "output": "\\ud800"}', "half a character", "UTF-8"),
    ("NUL characters", "a.jsonl", '{"input": "Q", "output": "a\\u0000"}', "a NUL", "remove it"),
    ("an image", "a.json", PNG, "is binary", "UTF-8"),
    ("a zip archive", "a.csv", b"PK\x03\x04" + PNG, "Excel workbook", "save the sheet as CSV"),
    ("a PDF", "a.json", b"%PDF-1.7 ...", "is a PDF", "extract"),
    ("half UTF-16", "a.json", ARRAY.encode("utf-16")[:-1], "is not the text it begins as", "UTF-8"),
    (
        "gzip cut short",
        "a.json.gz",
        gzip.compress(ARRAY.encode())[:-30],
        "damaged or cut short",
        "fetch the file again",
    ),
    (
        "gzip with wrong bytes",
        "a.json.gz",
        gzip.compress(ARRAY.encode())[:40] + b"xx" * 30,
        "damaged",
        "fetch the file",
    ),
    ("no gzip at all", "a.gz", b"\x1f\x8bnot", "damaged", "fetch the file"),
    ("corrupt Parquet", "a.parquet", b"PAR1" + PNG + b"PAR1", "no readable Parquet file", "again"),
    ("no Parquet at all", "a.parquet", "hello", "no readable Parquet file", "again"),
    ("prose", "a.txt", "It was a dark and stormy night.\nThe rain fell.", "is not JSON, and not a table", "are read"),
    ("prose named JSON", "a.json", "It was a dark, stormy night.", "it begins with 'It was a dark", "are read"),
    ("HTML", "a.json", "<!DOCTYPE html><html><head></head></html>", "an HTML page", "are read"),
    ("XML", "a.xml", "<?xml version='1.0'?><rows/>", "is XML", "are read"),
    ("an LFS pointer", "a.json", "version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull", "are read"),
    ("Python's notation", "a.jsonl", "{'input': 'Q'}\n{'input': 'R'}\n", "2 json_malformed", "json.dumps"),
    ("unknown columns", "a.csv", "name,age\nx,3\n", "its columns are 'name', 'age'", "--map question=NAME"),
    ("no header", "a.csv", "hello,world\nfoo,bar\n", "its columns are 'hello', 'world'", "--map question=NAME"),
    ("a header only", "a.csv", "input,output\n", "holds no rows", "write rows"),
    (
        "two answer columns",
        "a.csv",
        "question,answer,response\nq,a,b\n",
        "could be answer or response",
        "--map answer=",
    ),
    ("an open quote", "a.csv", 'input,output\nq,a\nr,"b\ns,c\n', "a.csv:3: a quote is opened", "mend the file"),
]


@pytest.mark.parametrize(("name", "content", "message", "hint"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_files(write, name, content, message, hint):
    path = write(name, content)
    with pytest.raises(TuneError) as caught:
        prepare(Data(files=(path,)))
    assert name in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 1000


def test_a_missing_file_suggests_its_neighbours(write, tmp_path):
    write("medical.json", ROWS)
    with pytest.raises(TuneError, match=r"medcial\.json: no such file") as caught:
        prepare(Data(files=(tmp_path / "medcial.json",)))
    assert "did you mean" in caught.value.hint and "medical.json" in caught.value.hint
    with pytest.raises(TuneError, match="there is no folder"):
        prepare(Data(files=(tmp_path / "nowhere" / "a.json",)))


def test_a_folder_lists_its_data_files(write, tmp_path):
    write("medical.json", ROWS)
    with pytest.raises(TuneError, match="is a folder") as caught:
        prepare(Data(files=(tmp_path,)))
    assert caught.value.hint == "name the files in it: medical.json"


def test_permission(write, monkeypatch):
    path = write("a.json", ROWS)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    # Root, as whom tests often run, may read everything.
    monkeypatch.setattr(files, "_open_bytes", refuse)
    with pytest.raises(TuneError, match=r"a\.json: permission denied") as caught:
        prepare(Data(files=(path,)))
    assert "chmod" in caught.value.hint


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(TuneError, match="no regular file"):
        prepare(Data(files=(tmp_path / "a.json",)))


def test_every_broken_file_is_named_at_once(write, tmp_path):
    paths = (write("a.json", ""), tmp_path / "missing.json", write("c.json", ROWS))
    with pytest.raises(TuneError) as caught:
        prepare(Data(files=paths))
    assert re.search(r"a\.json: is empty.*\n.*missing\.json: no such file", caught.value.message)


def test_the_same_file_twice(write):
    path = write("a.json", ROWS)
    with pytest.raises(TuneError, match="named twice"):
        prepare(Data(files=(path, path)))


def test_no_file():
    with pytest.raises(TuneError, match="no data file"):
        prepare(Data())
