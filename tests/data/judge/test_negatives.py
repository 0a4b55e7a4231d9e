"""Bad rows made of good ones: other questions, shuffled characters and words; and what is usual at which length."""

from __future__ import annotations

import numpy as np

from dsr1_tune.data.judge.negatives import NUM_ROWS, Bands, draw, shuffle_characters, shuffle_words


def texts(rows):
    return [(f"question {row % 50}", f"answer {row}") for row in rows.tolist()]


def test_draw_gives_each_row_two_other_questions() -> None:
    reference = draw(np.arange(200), texts, seed=1)
    assert 150 < len(reference) <= 200
    for place, (question, answer) in enumerate(reference.pairs):
        first, second = reference.questions[place]
        assert len({question, first, second}) == 3
        assert reference.wrong_of(place) == [(first, answer), (second, answer)]
    assert reference.wrong(1)[3] == (reference.questions[3][1], reference.pairs[3][1])
    again = draw(np.arange(200), texts, seed=1)
    assert again.pairs == reference.pairs and again.questions == reference.questions
    assert draw(np.arange(200), texts, seed=2).pairs != reference.pairs


def test_draw_leaves_out_rows_without_other_questions_and_takes_only_so_many() -> None:
    assert len(draw(np.arange(30), lambda rows: [("same", f"answer {row}") for row in rows], seed=0)) == 0
    assert len(draw(np.arange(2 * NUM_ROWS), texts, seed=0)) <= NUM_ROWS


def test_shuffle_characters_keeps_the_characters() -> None:
    text = "The heart beats faster."
    shuffled = shuffle_characters(text, np.random.default_rng(0))
    assert shuffled != text and sorted(shuffled) == sorted(text)


def test_shuffle_words_keeps_words_and_spaces() -> None:
    text = "The heart  beats\nfaster than before."
    shuffled = shuffle_words(text, np.random.default_rng(0))
    assert shuffled != text and sorted(shuffled.split()) == sorted(text.split())
    assert [char for char in shuffled if char.isspace()] == [" ", " ", " ", "\n", " ", " "]
    assert sorted(shuffle_words("规律的运动可以增强", np.random.default_rng(0))) == sorted("规律的运动可以增强")


def test_reference_shuffles_each_row_in_its_own_way() -> None:
    reference = draw(np.arange(100), texts, seed=3)
    shuffled = reference.shuffled(shuffle_characters, seed=0)
    assert shuffled == reference.shuffled(shuffle_characters, seed=0)
    assert [question for question, _ in shuffled] == [question for question, _ in reference.pairs]


def test_bands_are_medians_by_octave_of_length() -> None:
    lengths = np.array([10] * 30 + [100] * 30 + [1000] * 3)
    values = np.array([1.0] * 30 + [5.0] * 30 + [9.0] * 3)
    bands = Bands(values, lengths)
    assert bands.usual(np.array([9, 100, 1000])).tolist() == [1.0, 5.0, 5.0]  # too few of the longest
    assert Bands(np.array([np.nan]), np.array([3])).usual(np.array([3])).tolist() == [0.0]
