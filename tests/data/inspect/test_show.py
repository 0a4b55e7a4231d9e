"""Rows are found where they stand, and shown with everything visible."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dsr1_tune.config import Data
from dsr1_tune.data.inspect.show import MAX_CHARS, is_rejected, pick, read_rejected, show_rows
from dsr1_tune.data.prepare import examine, write_rejects
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Place
from dsr1_tune.errors import DataError

ROWS = [{"input": f"question {number}", "output": f"answer {number}"} for number in range(50)]


def shown(rows, full=False, width=200, color=False):
    console = Console(file=io.StringIO(), width=width, force_terminal=color, color_system="standard" if color else None)
    show_rows(rows, console, full)
    return console.file.getvalue()


@pytest.fixture
def rows(write):
    return lambda: read([write("a.jsonl", ROWS)])


def test_rows_by_index_and_line(rows):
    assert [row.place.index for row in pick(rows(), row=17)] == [17]
    assert [row.place.line for row in pick(rows(), line=18)] == [18]
    assert [row.place.index for row in pick(rows())] == [0, 1, 2]


def test_a_line_within_a_row_finds_the_row(write):
    file = write("a.json", ROWS)  # four lines a row, from line 2
    assert [row.question for row in pick(read([file]), line=7)] == ["question 1"]
    with pytest.raises(DataError, match="no row with line 99"):
        pick(read([write("b.jsonl", ROWS)]), line=99)
    with pytest.raises(DataError, match="no row with line 2"):
        pick(read([write("c.jsonl", '{"input": "Q", "output": "A"}\n\n{"input": "R", "output": "A"}\n')]), line=2)


def test_a_sample_is_drawn_from_everywhere_and_is_repeatable(rows):
    drawn = [row.place.index for row in pick(rows(), sample=5)]
    assert len(set(drawn)) == 5 and drawn == sorted(drawn) and max(drawn) > 10
    assert [row.place.index for row in pick(rows(), sample=5)] == drawn
    assert [row.place.index for row in pick(rows(), sample=5, seed=1)] != drawn
    assert len(pick(rows(), sample=500)) == 50


def test_what_is_not_there_is_said(rows):
    with pytest.raises(DataError, match="no row with row 50") as error:
        pick(rows(), row=50)
    assert "from 0" in error.value.hint
    with pytest.raises(DataError, match="code refusal"):
        pick(rows(), code="refusal")
    with pytest.raises(DataError) as error:
        pick(rows(), code="refused")
    assert "not known" in error.value.hint


def test_rejected_rows_are_shown_with_their_reason(write, tmp_path):
    bad = [*ROWS[:2], {"input": "感冒了怎么办？", "output": " "}, {"input": "Q", "ouput": "A"}, 42]
    prepared = examine(Data(files=(write("a.jsonl", bad),)))
    write_rejects(prepared.drops, tmp_path / "rejected.jsonl")
    assert is_rejected(tmp_path / "rejected.jsonl") and not is_rejected(tmp_path / "a.jsonl")
    drops = list(read_rejected(tmp_path / "rejected.jsonl"))
    assert drops == list(prepared.drops)
    text = shown(pick(read_rejected(tmp_path / "rejected.jsonl"), code="empty_answer"))
    assert "a.jsonl:3, row 2" in text and "empty_answer $.output\nthe answer is blank\n→ write the answer" in text
    assert "user: 感冒了怎么办？\nassistant: ·\n" in text
    whole = shown(drops)
    assert '"ouput": "A"' in whole and "not_an_object" in whole and "\n42\n" in whole


@pytest.mark.parametrize("line", ["{}", "not JSON", '{"file": "a", "line": "x", "index": 0, "row": 1}', "[" * 100_000])
def test_a_file_that_only_begins_as_rejected_rows(tmp_path, line):
    path = tmp_path / "rejected.jsonl"
    good = Drop("refusal", "x", place=Place("a", 1, 0), row={"input": "Q", "output": "A"})
    write_rejects([good], path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"rejected.jsonl:2: is no line"):
        list(read_rejected(path))


def test_files_that_are_no_rejected_rows(tmp_path, write):
    assert not is_rejected(tmp_path / "nothing.jsonl")
    assert not is_rejected(write("a.json", ROWS))
    assert not is_rejected(write("b.bin", b"\xff\xfe\x00"))


def test_conversations_are_shown_by_role(write):
    file = write(
        "a.jsonl",
        [
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Weather?"},
                    {"role": "assistant", "tool_calls": [{"function": {"name": "sun", "arguments": "{}"}}]},
                    {"role": "tool", "content": '{"sun": 1}'},
                    {"role": "assistant", "content": "It shines."},
                ],
                "tools": [{"name": "sun"}],
            },
            {"prompt": "Which?", "chosen": "This.", "rejected": "That."},
        ],
    )
    text = shown(pick(read([file])))
    assert "conversation, tools\n" in text and "preference\n" in text
    assert "system: Be kind.\nuser: Weather?\nassistant: sun({})\n" in text
    assert 'tool: {"sun": 1}\nassistant: It shines.\n' in text
    assert "user: Which?\nchosen: This.\nrejected: That.\n" in text
    prompt = write("b.jsonl", [{"prompt": f"{n}+1?", "ground_truth": str(n + 1)} for n in range(3)])
    assert "user: 0+1?\nground truth: 1\n" in shown(pick(read([prompt]), row=0))


def test_what_cannot_be_seen_is_made_visible(write):
    file = write("a.jsonl", [{"input": "a\tb  \nc \u3000d", "output": "[red]x\x1b[31m\u202e\u200b 好[/red]"}])
    text = shown(pick(read([file])))
    assert "user: a→b··\nc \u3000d\n" in text
    assert "assistant: [red]x\\x1b[31m\\u202e\\u200b 好[/red]" in text
    colored = shown(pick(read([file])), color=True)
    assert "\x1b[31m\u202e" not in colored and "\u202e" not in colored


def test_long_texts_are_cut_unless_asked_for(write):
    file = write("a.jsonl", [{"input": "Q?", "output": "长" * 3_000}])
    text = shown(pick(read([file])), width=10_000)
    assert "长" * MAX_CHARS in text and "长" * (MAX_CHARS + 1) not in text
    assert "2,400 more characters, see them with --full" in text
    assert "长" * 3_000 in shown(pick(read([file])), full=True, width=10_000)


def test_whatever_a_dropped_row_holds_is_shown():
    deep: list = []
    for _ in range(5_000):
        deep = [deep]
    odd = [None, "text\x00", {"a": deep}, {"messages": [1]}, {"input": "\ud800", "output": 1e300}]
    text = shown([Drop("wrong_type", "odd", place=Place("a", n, n), row=row) for n, row in enumerate(odd, 1)])
    assert "text\\x00" in text and text.count("wrong_type") == len(odd)
    assert text.encode("utf-8")
