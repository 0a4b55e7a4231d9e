"""What the data stage writes of a row, and the turns it reads from it again."""

from __future__ import annotations

import orjson
import pytest

from dsr1_tune.data.output import answer_of, as_output, dumps, question_of, turns_of, turns_of_row
from dsr1_tune.data.record import Feedback, Message, Place, Preference, Prompt, Record, Row

PLACE = Place("a.json", 3, 2)
ASKED = (Message("system", "S"), Message("user", "Q"))
GOOD, BAD = Message("assistant", "A"), Message("assistant", "B")
ROWS: list[tuple[Row, str, str]] = [
    (Record((*ASKED, GOOD), PLACE, "[1]"), "S\nQ", "A"),
    (Preference(ASKED, GOOD, BAD, PLACE), "S\nQ", "A"),
    (Feedback(ASKED, BAD, False, PLACE), "S\nQ", "B"),
    (Prompt(ASKED, "42", PLACE), "S\nQ", "42"),
    (Prompt(ASKED, None, PLACE), "S\nQ", ""),
]


@pytest.mark.parametrize(("row", "question", "answer"), ROWS, ids=lambda value: type(value).__name__)
def test_output_has_the_rows_turns_question_and_answer(row: Row, question: str, answer: str) -> None:
    output = as_output(row)
    assert turns_of(output) == turns_of_row(row)
    assert (question_of(output), answer_of(output)) == (question, answer)
    assert output["source"] == {"file": "a.json", "line": 3, "index": 2}
    assert output.get("tools", "") == row.tools


def test_output_of_feedback_and_prompts_keeps_label_and_result() -> None:
    assert as_output(ROWS[2][0])["label"] is False and as_output(ROWS[3][0])["ground_truth"] == "42"
    assert "ground_truth" not in as_output(ROWS[4][0])


def test_dumps_writes_whatever_a_row_holds() -> None:
    assert orjson.loads(dumps({"a": 1})) == {"a": 1}
    for odd in ("\ud800", 2**70, [[[[1]]]], b"bytes", object):
        assert dumps({"odd": odd}).startswith(b'{"odd"') and b"\n" not in dumps({"odd": odd})
