"""Single rows are held to the same in training, `data check` and `data clean`."""

from __future__ import annotations

from dsr1_tune.config import Data
from dsr1_tune.data.record import Drop, Message, Place, Preference, Record
from dsr1_tune.data.row_check import RowCheck, leaves_out_full_stops, pack_of

ENDED = "Rest, drink enough water, and keep the arm still until the swelling has gone down."
UNENDED = ENDED[:-1] + " after some days of the"
PACK = pack_of(Data(rules="general"))


def record(answer: str, index: int = 0) -> Record:
    messages = (Message("user", "What helps against a sprain?", "$.input"), Message("assistant", answer, "$.output"))
    return Record(messages, Place("a.json", index + 1, index))


def code(check: RowCheck, row: Record) -> str:
    outcome = check.check(row).row
    return outcome.code if isinstance(outcome, Drop) else ""


def test_row_check_without_a_pack_drops_only_what_cannot_be_learned() -> None:
    check = RowCheck(None)
    assert [code(check, record(answer)) for answer in ("TODO", UNENDED, " ")] == ["", "", "empty_answer"]
    longer = RowCheck(None, least=(1, 3))
    assert [code(longer, record(answer)) for answer in ("ab", "abc")] == ["answer_too_short", ""]


def test_row_check_applies_the_rules_of_a_pack() -> None:
    check = RowCheck(PACK)
    answers = ("TODO", UNENDED, ENDED)
    assert [code(check, record(answer)) for answer in answers] == ["placeholder_answer", "truncated_answer", ""]


def test_row_check_lets_answers_end_without_a_full_stop_where_a_file_does() -> None:
    stopless = record(ENDED[:-1])
    assert [code(RowCheck(PACK, files), stopless) for files in ([], ["b.json"], ["a.json"])] == [
        "truncated_answer",
        "truncated_answer",
        "",
    ]
    assert [note.code for note in RowCheck(PACK, ["a.json"]).check(stopless).notes] == ["truncated_answer"]


def test_row_check_remarks_on_pairs() -> None:
    prompt = (Message("user", "Which one?"),)
    pair = Preference(prompt, Message("assistant", "A" * 400), Message("assistant", "B"), Place("a", 1, 0))
    assert [note.code for note in RowCheck(None).check(pair).notes] == ["uneven_lengths"]
    same = Preference(prompt, Message("assistant", "A"), Message("assistant", "A "), Place("a", 1, 0))
    outcome = RowCheck(None).check(same).row
    assert isinstance(outcome, Drop) and outcome.code == "equal_answers"


def test_pack_of_takes_the_larger_of_two_least_lengths() -> None:
    assert pack_of(Data()) is None
    named = pack_of(Data(min_answer_chars=5), "general")
    assert named and named.rules.lengths.min_answer_chars == 5 and named.rules.lengths.min_question_chars == 1


def test_leaves_out_full_stops_needs_many_such_rows() -> None:
    assert PACK
    ended, stopless = ([record(answer, number) for number in range(100)] for answer in (ENDED, ENDED[:-1]))
    assert not leaves_out_full_stops([*ended, *stopless[:19]], PACK)
    assert leaves_out_full_stops([*ended, *stopless[:20]], PACK)
