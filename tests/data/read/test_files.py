"""Files in every layout and encoding: CSV, Parquet, JSON, packed or not."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsr1_tune.data.read.files import identify, raw_rows
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
def test_files_in_every_layout(write, name, content, lines, style):
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


def test_parquet_files_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read_ = list(read([tmp_path / "a.parquet"]))
    assert answers(read_) == ["A", "A"]
    assert places(read_) == [(1, 0), (2, 1)]


def test_csv_files_in_gb18030_with_multi_line_fields(write):
    content = 'department,title,ask,answer\r\n内科,发烧,"孩子三岁,\n三十九度","多喝水。\n""及时""就医"\r\n'
    content += "内科,咳嗽,很久了,看医生\r\n"
    (reading,) = open_files([write("a.csv", content, "gb18030")])
    first, second = reading.rows
    assert reading.source.encoding == "gb18030"
    assert first.question == "发烧\n孩子三岁,\n三十九度"
    assert first.answer == '多喝水。\n"及时"就医'
    assert places([first, second]) == [(2, 0), (5, 1)]


def test_files_lose_one_row_to_one_bad_byte(write):
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


def test_csv_files_with_rows_of_other_columns(write):
    content = 'input,output\nq,a\nq,a,x\nq\nq,a,,\n"q"x,a\n\nlast,a\n'
    rows = list(read([write("a.csv", content)]))
    assert answers(rows) == ["a", "csv_malformed", "csv_malformed", "a", "csv_malformed", "a"]
    assert places(rows) == [(2, 0), (3, 1), (4, 2), (5, 3), (6, 4), (8, 5)]
    assert rows[1].row == "q,a,x\n"


def test_csv_files_with_columns_of_the_same_name(write):
    with pytest.raises(DataError, match=r"a\.csv: several columns are named 'output'"):
        list(read([write("a.csv", "input,output,output,,\nq,a,b,,\n")]))
    (row,) = read([write("b.csv", "input,output,,\nq,a,,\n")])
    assert answers([row]) == ["a"]


def test_csv_files_with_a_quote_that_never_closes(write):
    rows = list(read([write("a.csv", 'input,output\nq,a\nq,"a\nq,a\nq,a\n')]))
    assert answers(rows) == ["a", "csv_truncated"]
    assert isinstance(rows[1], Drop)
    assert (rows[1].place.line, rows[1].row) == (3, 'q,"a\nq,a\nq,a\n')


_CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
_PAIRS = st.lists(st.tuples(_CELLS, _CELLS), min_size=2, max_size=5)


def _json(pairs):
    return json.dumps([{"input": question, "output": answer} for question, answer in pairs], ensure_ascii=False)


def _json_lines(pairs):
    return "".join(
        json.dumps({"input": question, "output": answer}, ensure_ascii=False) + "\n" for question, answer in pairs
    )


def _table(delimiter):
    def write(pairs):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([("input", "output"), *pairs])
        return text.getvalue()

    return write


LAYOUTS = {
    "JSON": _json,
    "JSON lines": _json_lines,
    "CSV": _table(","),
    "CSV with semicolons": _table(";"),
    "CSV with tabs": _table("\t"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(pairs=_PAIRS, ending=st.sampled_from([".json", ".jsonl", ".txt", ".csv", ""]), packed=st.booleans())
def test_identify_tells_the_layout_by_content_whatever_the_name(tmp_path, layout, pairs, ending, packed):
    if ending == ".csv" and not layout.startswith("CSV"):
        ending = ".txt"  # a name that says table is believed where the text could be one
    if ending in (".json", ".jsonl") and layout.startswith("CSV"):
        ending = ".txt"
    data = LAYOUTS[layout](pairs).encode()
    path = tmp_path / f"rows{ending}"
    path.write_bytes(gzip.compress(data) if packed else data)
    source = identify(path)
    assert source.layout == layout.split(" with")[0]
    found = list(raw_rows(source))
    assert [(row.value["input"], row.value["output"]) for row in found] == pairs
    assert [row.place.index for row in found] == list(range(len(pairs)))


@pytest.mark.parametrize(
    "text",
    [
        'input,output\n0,0\n"""",""""\n',
        '"input","output"\n"Is it ""a"", or {b}?","It is ""a"", [1], {""c"": 1}, {2}."\n"Why?","So.\nAnd so."\n',
        'input;output\n"a; b";"c, ""d"", e"\n',
    ],
)
def test_identify_takes_quoted_cells_for_a_table(write, text):
    assert identify(write("rows.txt", text)).layout == "CSV"
    assert [row for row in raw_rows(identify(write("rows.txt", text))) if isinstance(row, Drop)] == []


@pytest.mark.parametrize(
    "text",
    [
        '"input": "a", "output": "b"},\n{"input": "c",\n"output": "d"}\n',
        '"a", "b"],\n["c", "d"]\n',
        '"output": "b"},\n{"input": "c", "output": "d"}]\n',
    ],
)
def test_identify_takes_the_end_of_json_for_no_table(write, text):
    with pytest.raises(DataError, match="a piece of JSON"):
        identify(write("rows.txt", text))


def test_identify_believes_a_name_that_says_code_also_of_even_lines(write):
    with pytest.raises(DataError, match="looks like"):
        identify(write("rows.py", "first, second\nthird, fourth\n"))


def test_identify_takes_rows_about_html_for_rows(write):
    rows = [
        {"input": "What does <head> hold?", "output": "A page's title."},
        {"input": "And <body>?", "output": "Text."},
    ]
    assert identify(write("a.jsonl", rows)).layout == "JSON lines"
    with pytest.raises(DataError, match="an HTML page"):
        identify(write("b.jsonl", "<meta charset='utf-8'>\n<head><title>404</title></head>"))
