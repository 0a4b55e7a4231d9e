"""Scores of answers: which one fits, and that each says what its formula says."""

from __future__ import annotations

import pytest

from dsr1_tune.export.comparison.answer_scores import Task, distinct, exact_match, rouge_l, scores, word_f1
from dsr1_tune.text.answer_kind import Kind, kind_of

OPTIONS = "Which?\nA. one\nB. two\nC. three\nD. four"


@pytest.mark.parametrize(
    ("question", "reference", "kind"),
    [
        (OPTIONS, "B", "choice"),
        ("选哪个？ A、一 B、二 C、三", "答案：C", "choice"),
        (OPTIONS, "(b)", "choice"),
        ("Which vitamin helps bones?", "D", "span"),  # no options are offered
        ("What is 6 times 7?", "42", "number"),
        ("How much?", "$1,250.50", "number"),
        ("多少毫克？", "３．５ 毫克", "number"),
        ("How many?", "Two dozen is 24 and one makes 25.\n#### 25", "number"),
        ("Solve.", "so x is \\boxed{3/4}", "number"),
        ("Name the drugs.", "aspirin, ibuprofen, warfarin", "list"),
        ("有哪些症状？", "发烧、咳嗽、头痛", "list"),
        ("Name them.", "- fever\n- cough", "list"),
        ("Who?", "William Shakespeare", "span"),
        ("谁写的？", "曹雪芹", "span"),
        ("How?", "Rest, drink water, and see a doctor if the fever lasts.", "text"),
        ("怎么办？", "多喝水，注意休息，如果持续发烧三天以上请及时就医。", "text"),
        ("Tell me.", "First line of a text.\nSecond line of it.", "text"),
    ],
)
def test_task_kind_follows_from_the_reference(question: str, reference: str, kind: Kind) -> None:
    task = Task.of(question, reference)
    assert task.kind == kind == kind_of(question, reference)
    assert set(scores(task, reference).values()) == {1.0}
    assert set(scores(task, "zzz qqq").values()) == {0.0}


def test_scores_of_numbers_compare_numbers() -> None:
    def numeric(answer: str, reference: str) -> float:
        return scores(Task.of("How much?", reference), answer)["numeric"]

    assert numeric("it costs 2.50 dollars", "$2.5") == 1.0
    assert numeric("2.51", "2.5") == 0.0
    assert numeric("two", "2") == 1.0
    assert numeric("The answer is 3 + 4 = 7", "7") == 1.0
    assert numeric("答案是三万二千", "3.2万元") == 1.0
    assert numeric("The ratio is 3 to 4.", "3:4") == 1.0 and numeric("Answer: 4", "3:4") == 0.0
    assert numeric("50%", "50%") == numeric("50", "50%") == numeric("0.5", "50%") == 1.0


def test_scores_leave_out_thoughts() -> None:
    task = Task.of("What is 6 times 7?", "<think>six sevens</think>\n\n42")
    assert (task.kind, task.reference) == ("number", "42")
    assert scores(task, "<think>perhaps 41</think>it is 42") == {"numeric": 1.0}
    assert scores(task, "<think>it is 42</think>no idea") == {"numeric": 0.0}


# What rouge-score 0.1.2 gives for the English ones; the Chinese ones by hand.
@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The cat sat on the mat.", "A cat was sitting on the mat", 0.6153846153846153),
        ("Take 3.5 mg twice daily, don't stop.", "take 3.5mg daily; do not stop early", 0.47058823529411764),
        ("Rest and drink water", "See a doctor if it lasts", 0.0),
        ("多喝热水", "多喝水", 2 * 3 / 7),
        ("服用 aspirin 两次", "每天服用aspirin两次", 2 * 5 / 12),
        ("", "", 1.0),
        ("", "something", 0.0),
    ],
)
def test_rouge_l_is_rouge_scores(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected, abs=1e-12)
    assert rouge_l(reference, answer) == pytest.approx(expected, abs=1e-12)


def test_word_f1_and_exact_match_are_squads() -> None:
    assert exact_match("The Pacific Ocean!", "pacific ocean") == 1.0
    assert exact_match("the", "a") == 0.0
    # 2 of 3 words found are right, and 2 of 2 wanted ones are found.
    assert word_f1("the big Pacific Ocean", "Pacific Ocean") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert word_f1("fever fever", "fever") == pytest.approx(2 * 0.5 * 1 / 1.5)
    task = Task.of("有哪些症状？", "发烧、咳嗽、头痛")
    assert scores(task, "咳嗽，发烧，流鼻涕，腹泻")["f1"] == pytest.approx(2 * 2 / 7)


def test_distinct_counts_over_all_answers() -> None:
    assert distinct(["a b a", "a b"], 1) == 2 / 5
    assert distinct(["a b a", "a b"], 2) == 2 / 3
    assert distinct(["a"], 2) is None
