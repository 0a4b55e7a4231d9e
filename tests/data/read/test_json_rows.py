"""JSON row by row: what is broken costs as little as can be, and places are exact."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.data.read import json_rows
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Record
from dsr1_tune.errors import DataError

ROW = {"input": "问", "output": "答"}
ROWS = [{"input": f"问题 {number}", "output": f"回答 {number}"} for number in range(3)]


def places(rows):
    return [(row.place.line, row.place.index) for row in rows]


def answers(rows):
    return [row.answer if isinstance(row, Record) else row.code for row in rows]


def dumps(value, indent=None):
    return json.dumps(value, ensure_ascii=False, indent=indent)


def test_json_rows_end_at_line_feeds_only(write):
    row = {"input": "a\u2028b\u0085c", "output": "d\x0be"}
    text = json.dumps(row, ensure_ascii=False)
    for name, content in [("a.jsonl", f"{text}\n{text}\n"), ("a.json", f"[\n{text},\n{text}]")]:
        first, second = read([write(name, content)])
        assert second.place.line - first.place.line == 1
        assert first.question == "a\u2028b\u0085c"


def test_json_rows_lose_one_row_to_a_malformed_line(write):
    lines = [json.dumps(ROW), '{"input": "a "b" c", "output": "x"}', "", "{'input': 1}", json.dumps(ROW)]
    rows = list(read([write("a.jsonl", "\n".join(lines) + "\n")]))
    assert answers(rows) == ["答", "json_malformed", "json_malformed", "答"]
    assert places(rows) == [(1, 0), (2, 1), (4, 2), (5, 3)]
    assert "column 15" in rows[1].detail
    assert rows[1].row == lines[1]
    assert "json.dumps" in rows[2].fix


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_rows_of_a_file_that_breaks_off(write, name):
    content = json.dumps(ROWS, indent=2, ensure_ascii=False) if name == "a.json" else "\n".join(map(json.dumps, ROWS))
    rows = list(read([write(name, content[: content.index("2")])]))
    assert answers(rows) == ["回答 0", "回答 1", "json_truncated"]
    assert rows[-1].place.line == (10 if name == "a.json" else 3)


@pytest.mark.parametrize("ending", ["", ",", ",\n"])
def test_json_rows_of_an_array_without_its_bracket(write, ending):
    rows = list(read([write("a.json", json.dumps(ROWS)[:-1] + ending)]))
    assert answers(rows) == ["回答 0", "回答 1", "回答 2", "json_truncated"]
    assert rows[-1].place.index == 3


def test_json_rows_of_a_wrapped_array_that_breaks_off(write):
    text = json.dumps({"data": ROWS}, indent=1)
    for end in (text.index("1"), len(text) - 2):
        rows = list(read([write("a.json", text[:end])]))
        assert [code for code in answers(rows) if code.startswith("json")] == ["json_truncated"]


def test_json_rows_skip_a_broken_element_where_its_end_is_plain(write):
    content = '[\n{"input": "a", "output": "b"},\n{"input": "a" "output": "b"},\n{"input": "c", "output": "d"}\n]'
    rows = list(read([write("a.json", content)]))
    assert answers(rows) == ["b", "json_damaged", "d"]
    assert "line 3, column 15" in rows[1].detail
    assert rows[1].row == '{"input": "a" "output": "b"}'


def test_json_rows_lose_one_row_to_lines_without_their_beginning(write):
    content = 'put": "Q", "history": [["q", "a"]], "output": "lost"}\n' + "".join(
        json.dumps(row) + "\n" for row in ROWS
    )
    for name in ("a.jsonl", "a.json", "a.txt"):
        rows = list(read([write(name, content)]))
        assert answers(rows) == ["json_malformed", "回答 0", "回答 1", "回答 2"]
    with pytest.raises(DataError, match="a piece of JSON, of which the beginning is missing"):
        list(read([write("b.json", json.dumps(ROWS, indent=1)[40:])]))


def test_json_rows_lose_one_row_to_a_bare_word(write):
    rows = list(read([write("a.json", '[{"input": "a", "output": "b"},\nNone,\n{"input": "c", "output": "d"}]')]))
    assert answers(rows) == ["b", "json_damaged", "d"]


def test_json_rows_lose_nothing_silently_after_a_broken_element(write):
    content = '[{"input": "a", "output": "b"}, {"input": "a" ]]}, {"input": "c", "output": "d"}]'
    rows = list(read([write("a.json", content)]))
    assert answers(rows) == ["b", "json_damaged"]
    assert rows[1].row.endswith('"d"}]')


def test_json_rows_lose_one_row_to_deep_nesting(write):
    good = json.dumps({**ROW, "more": "[" * 500})
    for depth in (201, 900, 50_000):
        deep = "[" * depth + "]" * depth
        for name, content in [("a.json", f"[{good}, {deep}, {good}]"), ("a.jsonl", f"{good}\n{deep}\n{good}\n")]:
            rows = list(read([write(name, content)]))
            assert answers(rows) == ["答", "nested_too_deep", "答"]
            assert rows[1].row == deep


def test_json_rows_walk_arrays_in_small_blocks(write, monkeypatch):
    """Values, numbers and blanks that lie across the edges of the window come out whole."""
    rows = [{"input": "问" * 40, "output": "答" * 300}, 1234567890, {"input": "Q", "output": '\\u4f60 " ] }'}]
    file = write("a.json", json.dumps(rows * 5, indent=3))
    expected = [(type(row), row.place, row.row) for row in read([file])]
    for size in (1, 7, 64):
        monkeypatch.setattr(json_rows, "BLOCK_CHARS", size)
        assert [(type(row), row.place, row.row) for row in read([file])] == expected
    assert len(expected) == 15


def test_json_rows_that_are_alike_are_read_as_any_others(write, monkeypatch):
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


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_rows_with_huge_numbers(write, name):
    """Beyond 64 bits a number is not exact in any layout; one with 5000 digits is not read at all."""
    numbers = [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400]
    lines = [f'{{"input": "Q", "output": {number}}}' for number in [*map(str, numbers), "1" * 5000, "1e999", "0"]]
    content = "\n".join(lines) if name == "a.jsonl" else "[" + ",\n".join(lines) + "]"
    rows = list(read([write(name, content)]))
    damaged = "json_malformed" if name == "a.jsonl" else "json_damaged"
    whole = [str(2**63), str(2**64 - 1)]
    assert answers(rows) == [*whole, "wrong_type", "wrong_type", str(10**400), damaged, "wrong_type", "0"]


# Texts as files hold them; a lone surrogate cannot be written in UTF-8.
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(_TEXTS, inside, max_size=4),
    max_leaves=12,
)
_OBJECTS = st.dictionaries(_TEXTS, _VALUES, max_size=4).filter(lambda row: not row.keys() & json_rows.WRAPPERS)
_INDENTS = st.sampled_from([None, 0, 1, 4])


def values(found):
    return [item.value if isinstance(item, json_rows.Raw) else item.code for item in found]


@given(rows=st.lists(_OBJECTS, min_size=1, max_size=8), indent=_INDENTS, wrapped=st.booleans(), as_ascii=st.booleans())
def test_json_rows_of_any_array_are_read_back_with_their_lines(rows, indent, wrapped, as_ascii):
    content = json.dumps({"data": rows} if wrapped else rows, ensure_ascii=as_ascii, indent=indent)
    found = list(json_rows.document(io.StringIO(content, newline="\n"), "a.json"))
    assert values(found) == rows
    assert [row.place.index for row in found] == list(range(len(rows)))
    if indent is not None:
        starts, line = [], 2 + wrapped
        for row in rows:
            starts.append(line)
            line += json.dumps(row, ensure_ascii=as_ascii, indent=indent).count("\n") + 1
        assert [row.place.line for row in found] == starts


@given(
    rows=st.lists(_VALUES, min_size=1, max_size=8),
    as_bytes=st.booleans(),
    gaps=st.lists(st.integers(0, 2), min_size=8, max_size=8),
)
def test_json_rows_of_any_lines_are_read_back_with_their_lines(rows, as_bytes, gaps):
    texts, places = [], []
    for row, gap in zip(rows, gaps, strict=False):
        texts += ["\n"] * gap + [json.dumps(row, ensure_ascii=False) + "\n"]
        places.append(len(texts))
    found = list(json_rows.lines([text.encode() for text in texts] if as_bytes else texts, "a.jsonl"))
    assert values(found) == rows
    assert [(row.place.line, row.place.index) for row in found] == list(zip(places, range(len(rows)), strict=True))


@given(rows=st.lists(_OBJECTS, min_size=1, max_size=5), indent=_INDENTS, cut=st.floats(0, 1))
def test_json_rows_before_a_damaged_tail_are_all_read(rows, indent, cut):
    content = json.dumps(rows, ensure_ascii=False, indent=indent)
    content = content[: max(1, int(cut * len(content)))]
    found = list(json_rows.document(io.StringIO(content, newline="\n"), "a.json"))
    whole = [item.value for item in found if isinstance(item, json_rows.Raw)]
    assert whole == rows[: len(whole)]
    drops = [item for item in found if not isinstance(item, json_rows.Raw)]
    if content.endswith("]") and whole == rows:
        assert drops == []
    else:
        assert [drop.code for drop in drops] in (["json_truncated"], ["json_damaged"]) and found[-1] is drops[0]


@given(block=st.integers(16, 64), rows=st.lists(_OBJECTS, min_size=1, max_size=5))
def test_json_rows_do_not_depend_on_where_a_block_ends(block, rows):
    content = json.dumps(rows, ensure_ascii=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK_CHARS", block)
        assert values(json_rows.document(io.StringIO(content, newline="\n"), "a.json")) == rows
