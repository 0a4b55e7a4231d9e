"""The kind of a reference answer, and the option that an answer settles on."""

from __future__ import annotations

import pytest

from dsr1_tune.text.answer_kind import chosen_letter, is_list, items, kind_of, num_options


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b)", "B"),
        ("The answer is C.", "C"),
        ("A is wrong, so the answer is D", "D"),
        ("答案是B，因为A不对", "B"),
        ("故选 C", "C"),
        ("\\boxed{D}", "D"),
        ("A patient should rest.", None),
        ("", None),
    ],
)
def test_chosen_letter_is_the_option_an_answer_settles_on(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer) == letter


@pytest.mark.parametrize(
    ("question", "reference", "kind"),
    [
        ("Which? A. one B. two", "B", "choice"),
        ("Who?", "B", "span"),
        ("?", "答案是三十二", "number"),
        ("?", "7:30", "number"),
        ("?", "July 1, 2024", "number"),
        ("?", "2, 5", "list"),
        ("?", "Rest is best. Drink water.", "span"),
        ("?", "one two three four five six seven eight nine", "text"),
    ],
)
def test_kind_of_a_reference(question: str, reference: str, kind: str) -> None:
    assert kind_of(question, reference) == kind


def test_items_of_a_list() -> None:
    assert items("- Fever\n- dry Cough") == ["fever", "dry cough"]
    assert items("发烧、咳嗽") == ["发 烧", "咳 嗽"]
    assert is_list("a, b") and not is_list("a b") and not is_list("It is so, and you can.")


def test_num_options_counts_in_order() -> None:
    assert num_options("A. one\nB. two\nD. four") == 2
    assert num_options("选哪个？ A、一 B、二 C、三") == 3 and num_options("What?") == 0
