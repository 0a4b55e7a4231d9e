"""Layouts and encodings: every row has its line and index, and what is broken spoils nothing else."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from itertools import islice

import pytest

from dsr1_tune.data.clean.chunks import chunks
from dsr1_tune.data.read import json_rows
from dsr1_tune.data.read.read import open_files, read
from dsr1_tune.data.record import Drop, Record
from dsr1_tune.errors import DataError

ROW = {"input": "问", "output": "答"}
ROWS = [{"input": f"问题 {number}", "output": f"回答 {number}"} for number in range(3)]


def places(rows):
    return [(row.place.line, row.place.index) for row in rows]


def answers(rows):
    return [row.answer if isinstance(row, Record) else row.code for row in rows]


def dumps(value, indent=None):
    return json.dumps(value, ensure_ascii=False, indent=indent)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.json", dumps(ROWS), [1, 1, 1]),
        ("a.json", dumps(ROWS, indent=2), [2, 6, 10]),
        ("a.json", dumps({"data": ROWS}, indent=2), [3, 7, 11]),
        ("a.json", dumps({"type": "text2text", "instances": ROWS}, indent=2), [4, 8, 12]),
        ("a.json", "\n".join(map(dumps, ROWS)), [1, 2, 3]),
        ("a.json", "\n".join(dumps(row, indent=1) for row in ROWS), [1, 5, 9]),
        ("a.jsonl", "\n\n".join(map(dumps, ROWS)) + "\n", [1, 3, 5]),
        ("a.jsonl", dumps(ROWS, indent=2), [2, 6, 10]),
        ("a.jsonl", ",\n".join(map(dumps, ROWS)), [1, 2, 3]),
        ("a.txt", "\n".join(map(dumps, ROWS)), [1, 2, 3]),
        ("a.json", "[\n" + "\n".join(dumps(row) + "," for row in ROWS) + "\n]", [2, 3, 4]),
        ("a.csv", "input,output\n" + "".join(f"{row['input']},{row['output']}\n" for row in ROWS), [2, 3, 4]),
        ("a.tsv", "input\toutput\n" + "".join(f"{row['input']}\t{row['output']}\n" for row in ROWS), [2, 3, 4]),
        ("a.csv", "input;output\n" + "".join(f"{row['input']};{row['output']}\n" for row in ROWS), [2, 3, 4]),
    ],
)
@pytest.mark.parametrize("style", ["plain", "crlf and mark", "gzip", "utf-16", "gb18030"])
def test_layouts(write, name, content, lines, style):
    data = content.encode()
    if style == "crlf and mark":
        data = b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode()
    elif style == "gzip":
        name, data = f"{name}.gz", gzip.compress(data)
    elif style in ("utf-16", "gb18030"):
        data = content.encode(style)
    rows = list(read([write(name, data)]))
    assert answers(rows) == [row["output"] for row in ROWS]
    assert places(rows) == list(zip(lines, range(3), strict=True))


def test_one_object_is_one_row(write):
    (record,) = read(
        [write("a.json", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]})]
    )
    assert (record.answer, record.place.line, record.messages[1].path) == ("A", 1, "$.conversations[1].value")


def test_lines_end_at_line_feeds_only(write):
    row = {"input": "a\u2028b\u0085c", "output": "d\x0be"}
    text = json.dumps(row, ensure_ascii=False)
    for name, content in [("a.jsonl", f"{text}\n{text}\n"), ("a.json", f"[\n{text},\n{text}]")]:
        first, second = read([write(name, content)])
        assert second.place.line - first.place.line == 1
        assert first.question == "a\u2028b\u0085c"


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read_ = list(read([tmp_path / "a.parquet"]))
    assert answers(read_) == ["A", "A"]
    assert places(read_) == [(1, 0), (2, 1)]


def test_gb18030_csv_with_multi_line_fields(write):
    content = 'department,title,ask,answer\r\n内科,发烧,"孩子三岁,\n三十九度","多喝水。\n""及时""就医"\r\n'
    content += "内科,咳嗽,很久了,看医生\r\n"
    (reading,) = open_files([write("a.csv", content, "gb18030")])
    first, second = reading.rows
    assert reading.source.encoding == "gb18030"
    assert first.question == "发烧\n孩子三岁,\n三十九度"
    assert first.answer == '多喝水。\n"及时"就医'
    assert places([first, second]) == [(2, 0), (5, 1)]


def test_one_bad_byte_costs_one_row(write):
    good = json.dumps(ROW, ensure_ascii=False).encode()
    bad = json.dumps({"input": "问", "output": "好@"}, ensure_ascii=False).encode().replace(b"@", b"\xd0")
    for name, data in [
        ("a.jsonl", b"\n".join([good, bad, good])),
        ("a.json", b"[" + b",\n".join([good, bad, good]) + b"]"),
    ]:
        rows = list(read([write(name, data)]))
        assert answers(rows) == ["答", "bad_encoding", "答"]
        assert (rows[1].path, rows[1].place.line) == ("$.output", 2)
        assert "0xD0" in rows[1].detail


def test_a_malformed_line_costs_one_row(write):
    lines = [json.dumps(ROW), '{"input": "a "b" c", "output": "x"}', "", "{'input': 1}", json.dumps(ROW)]
    rows = list(read([write("a.jsonl", "\n".join(lines) + "\n")]))
    assert answers(rows) == ["答", "json_malformed", "json_malformed", "答"]
    assert places(rows) == [(1, 0), (2, 1), (4, 2), (5, 3)]
    assert "column 15" in rows[1].detail
    assert rows[1].row == lines[1]
    assert "json.dumps" in rows[2].fix


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_that_breaks_off_yields_its_whole_rows(write, name):
    content = json.dumps(ROWS, indent=2, ensure_ascii=False) if name == "a.json" else "\n".join(map(json.dumps, ROWS))
    rows = list(read([write(name, content[: content.index("2")])]))
    assert answers(rows) == ["回答 0", "回答 1", "json_truncated"]
    assert rows[-1].place.line == (10 if name == "a.json" else 3)


@pytest.mark.parametrize("ending", ["", ",", ",\n"])
def test_an_array_without_its_bracket_is_truncated(write, ending):
    rows = list(read([write("a.json", json.dumps(ROWS)[:-1] + ending)]))
    assert answers(rows) == ["回答 0", "回答 1", "回答 2", "json_truncated"]
    assert rows[-1].place.index == 3


def test_a_wrapped_array_that_breaks_off_is_truncated_once(write):
    text = json.dumps({"data": ROWS}, indent=1)
    for end in (text.index("1"), len(text) - 2):
        rows = list(read([write("a.json", text[:end])]))
        assert [code for code in answers(rows) if code.startswith("json")] == ["json_truncated"]


def test_a_broken_element_is_skipped_where_its_end_is_plain(write):
    content = '[\n{"input": "a", "output": "b"},\n{"input": "a" "output": "b"},\n{"input": "c", "output": "d"}\n]'
    rows = list(read([write("a.json", content)]))
    assert answers(rows) == ["b", "json_damaged", "d"]
    assert "line 3, column 15" in rows[1].detail
    assert rows[1].row == '{"input": "a" "output": "b"}'


@pytest.mark.parametrize("key", ["[1]", "{}", "1", "null", "input"])
def test_names_of_fields_are_texts(write, key):
    (row,) = read([write("a.json", f'{{"input": "Q", {key}: 1, "output": "A"}}')])
    assert (row.code, row.place.line) == ("json_damaged", 1)
    assert "a field's name in double quotes (line 1, column 16" in row.detail


def test_messages_can_be_printed_whatever_the_names(write):
    """Fields may be named with half characters, or with whole texts."""
    for row in ({"\ud800": 1, "x" * 5000: 2}, {"messages": [{"\ud800": 1}]}, {"q": 1, **dict.fromkeys("bcdefgijk", 1)}):
        rows = list(read([write("a.json", json.dumps([{"input": "Q", "output": "A"}, row]))]))
        assert len(f"{rows[1].detail} {rows[1].fix}".encode()) < 200
    with pytest.raises(DataError) as caught:
        list(read([write("a.csv", b"\xff,b\nq,a\n" + "问".encode() * 50)]))
    assert "its columns are" in str(caught.value.message.encode())


def test_lines_whose_beginning_is_missing_cost_one_row(write):
    content = 'put": "Q", "history": [["q", "a"]], "output": "lost"}\n' + "".join(
        json.dumps(row) + "\n" for row in ROWS
    )
    for name in ("a.jsonl", "a.json", "a.txt"):
        rows = list(read([write(name, content)]))
        assert answers(rows) == ["json_malformed", "回答 0", "回答 1", "回答 2"]
    with pytest.raises(DataError, match="a piece of JSON, of which the beginning is missing"):
        list(read([write("b.json", json.dumps(ROWS, indent=1)[40:])]))


def test_a_bare_word_costs_one_row(write):
    rows = list(read([write("a.json", '[{"input": "a", "output": "b"},\nNone,\n{"input": "c", "output": "d"}]')]))
    assert answers(rows) == ["b", "json_damaged", "d"]


def test_nothing_after_a_broken_element_is_lost_silently(write):
    content = '[{"input": "a", "output": "b"}, {"input": "a" ]]}, {"input": "c", "output": "d"}]'
    rows = list(read([write("a.json", content)]))
    assert answers(rows) == ["b", "json_damaged"]
    assert rows[1].row.endswith('"d"}]')


def test_deep_nesting_costs_one_row(write):
    good = json.dumps({**ROW, "more": "[" * 500})
    for depth in (201, 900, 50_000):
        deep = "[" * depth + "]" * depth
        for name, content in [("a.json", f"[{good}, {deep}, {good}]"), ("a.jsonl", f"{good}\n{deep}\n{good}\n")]:
            rows = list(read([write(name, content)]))
            assert answers(rows) == ["答", "nested_too_deep", "答"]
            assert rows[1].row == deep


def test_arrays_are_walked_in_small_blocks(write, monkeypatch):
    """Values, numbers and blanks that lie across the edges of the window come out whole."""
    rows = [{"input": "问" * 40, "output": "答" * 300}, 1234567890, {"input": "Q", "output": '\\u4f60 " ] }'}]
    file = write("a.json", json.dumps(rows * 5, indent=3))
    expected = [(type(row), row.place, row.row) for row in read([file])]
    for size in (1, 7, 64):
        monkeypatch.setattr(json_rows, "BLOCK_CHARS", size)
        assert [(type(row), row.place, row.row) for row in read([file])] == expected
    assert len(expected) == 15


def test_alike_rows_of_an_array_are_read_as_any_others(write, monkeypatch):
    """Rows that follow each other alike take a short cut; what comes out is the same, down to the places."""
    row = {"input": "Q", "output": "A"}
    tricky = [
        row,
        {"input": '"},\n {"input": "', "output": "}, {"},
        {"input": "Q", "output": {"input": 1}, "more": [{"input": 2}, {"input": 3}]},
        row,
        {"other": 1, "input": "Q", "output": "A"},
        row,
        row,
        {"input": "Q", "output": 2**64},
        {"input": "Q", "output": float("inf")},
        {"input": "\ud800", "output": "A"},
        [row, row],
        row,
        {"input": "Q", "output": [[[0] * 3] * 3]},
        None,
        row,
        row,
    ]
    files = [write(f"{indent}.json", json.dumps(tricky * 3, indent=indent)) for indent in (None, 0, 2)]
    files.append(write("odd.json", dumps(tricky[:2] * 4).replace("}, {", "}\n\n , \r\n{")))
    files.append(write("deep.json", json.dumps([row, row, {**row, "x": json.loads("[" * 250 + "]" * 250)}, row, row])))
    files.append(write("broken.json", json.dumps([row] * 9).replace('"A"}', '"A}', 4).replace('"A}', '"A"}', 3)))

    def outcomes():
        return [(type(o), repr(o), repr(o.row)) for file in files for o in read([file])]

    quickly = outcomes()
    monkeypatch.setattr(json_rows.Window, "alike", lambda self: iter(()))
    assert outcomes() == quickly


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "wrapped.json"])
def test_a_large_file_takes_little_memory(tmp_path, name):
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


def test_csv_rows_with_other_columns(write):
    content = 'input,output\nq,a\nq,a,x\nq\nq,a,,\n"q"x,a\n\nlast,a\n'
    rows = list(read([write("a.csv", content)]))
    assert answers(rows) == ["a", "csv_malformed", "csv_malformed", "a", "csv_malformed", "a"]
    assert places(rows) == [(2, 0), (3, 1), (4, 2), (5, 3), (6, 4), (8, 5)]
    assert rows[1].row == "q,a,x\n"


def test_columns_of_the_same_name_are_not_merged(write):
    with pytest.raises(DataError, match=r"a\.csv: several columns are named 'output'"):
        list(read([write("a.csv", "input,output,output,,\nq,a,b,,\n")]))
    (row,) = read([write("b.csv", "input,output,,\nq,a,,\n")])
    assert answers([row]) == ["a"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_huge_numbers(write, name):
    """Beyond 64 bits a number is not exact in any layout; one with 5000 digits is not read at all."""
    numbers = [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400]
    lines = [f'{{"input": "Q", "output": {number}}}' for number in [*map(str, numbers), "1" * 5000, "1e999", "0"]]
    content = "\n".join(lines) if name == "a.jsonl" else "[" + ",\n".join(lines) + "]"
    rows = list(read([write(name, content)]))
    damaged = "json_malformed" if name == "a.jsonl" else "json_damaged"
    whole = [str(2**63), str(2**64 - 1)]
    assert answers(rows) == [*whole, "wrong_type", "wrong_type", str(10**400), damaged, "wrong_type", "0"]


def test_a_quote_that_never_closes_is_damage(write):
    rows = list(read([write("a.csv", 'input,output\nq,a\nq,"a\nq,a\nq,a\n')]))
    assert answers(rows) == ["a", "csv_truncated"]
    assert isinstance(rows[1], Drop)
    assert (rows[1].place.line, rows[1].row) == (3, 'q,"a\nq,a\nq,a\n')
