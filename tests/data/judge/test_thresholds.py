"""From scores to decisions: few good rows are lost, whatever part of the file is bad."""

from __future__ import annotations

import numpy as np
import pytest

from dsr1_tune.data.judge.negatives import Bands, draw, shuffle_characters, shuffle_words
from dsr1_tune.data.judge.thresholds import Blend, auc, auc_floor, auc_of_good, cut_at, find_cut, share_of_bad


def scores(rng: np.random.Generator, number: int, share: float, apart: float = 4.0) -> np.ndarray:
    """Rows of which a share is bad; good ones score around `apart`, bad ones around 0."""
    is_bad = rng.random(number) < share
    return np.where(is_bad, rng.normal(0, 1, number), rng.normal(apart, 1, number))


def test_thresholds_auc_counts_pairs() -> None:
    good, bad = np.array([3.0, 1.0, np.nan]), np.array([2.0, 1.0])
    assert auc(good, bad) == (1 + 1 + 0 + 0.5) / 4
    assert np.isnan(auc(np.array([]), bad))


def test_thresholds_auc_floor_is_lower_with_fewer_rows() -> None:
    assert 0.5 < auc_floor(0.7, 30, 30) < auc_floor(0.7, 300, 300) < 0.7
    assert auc_floor(0.9, 1, 1) == 0.0


def test_thresholds_auc_of_good_rows_takes_the_bad_ones_out() -> None:
    rng = np.random.default_rng(0)
    bad = rng.normal(0, 1, 4000)
    mixed, pure = scores(rng, 4000, 0.3, 2.0), scores(rng, 4000, 0.0, 2.0)
    assert auc(mixed, bad) < auc(pure, bad) - 0.1
    assert auc_of_good(auc(mixed, bad), 0.3) == pytest.approx(auc(pure, bad), abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3])
def test_thresholds_the_share_of_bad_rows_is_found(share: float) -> None:
    rng = np.random.default_rng(1)
    found = share_of_bad(scores(rng, 2000, share), rng.normal(0, 1, 4000))
    assert found == pytest.approx(share, abs=0.01 + 0.2 * share)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_thresholds_bad_rows_are_cut_off_and_good_ones_are_not(share: float) -> None:
    rng = np.random.default_rng(2)
    cut = find_cut(scores(rng, 2000, share), rng.normal(0, 1, 4000), max_lost=0.01)
    assert cut is not None
    good, bad = rng.normal(4, 1, 100_000), rng.normal(0, 1, 100_000)
    assert (good < cut.value).mean() < 0.015
    assert (bad < cut.value).mean() > 0.6


def test_thresholds_nothing_is_cut_off_a_clean_file() -> None:
    lost = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        good = scores(rng, 400, 0.0)
        cut = find_cut(good, rng.normal(0, 1, 800), max_lost=0.005)
        lost.append(float((good < cut.value).mean()) if cut else 0.0)
    assert np.mean(lost) < 0.002 and max(lost) < 0.01


def test_thresholds_a_score_that_tells_little_cuts_little() -> None:
    rng = np.random.default_rng(3)
    good = scores(rng, 400, 0.0, apart=1.0)
    cut = find_cut(good, rng.normal(0, 1, 800), max_lost=0.005)
    assert cut is None or cut.lost <= 0.005


def test_thresholds_a_given_cut_off_says_what_it_does() -> None:
    seen = np.array([0.0] * 10 + [5.0] * 90)
    cut = cut_at(1.0, seen, np.zeros(50))
    assert (cut.share_bad, cut.found, cut.lost) == pytest.approx((0.1, 1.0, 0.0))
    assert cut_at(1.0, np.zeros(0), np.zeros(0)).lost == 0.0


def test_thresholds_the_blend_tells_better_than_its_parts_and_in_log_odds() -> None:
    rng = np.random.default_rng(4)
    good, bad = rng.normal([1, 1.5], 1, (4000, 2)), rng.normal(0, 1, (4000, 2))
    bad[0, 0] = np.nan
    blend = Blend.fit(good, bad)
    together = auc(blend(good), blend(bad))
    assert together > max(auc(good[:, part], bad[:, part]) for part in (0, 1)) + 0.03
    # For these bells the true log-odds are x + 1.5 y - (1 + 2.25) / 2.
    assert blend(np.array([[1.0, 1.0]]))[0] == pytest.approx(2.5 - 1.625, abs=0.2)
    assert np.isnan(blend(np.array([[np.nan, 1.0]]))[0])


def test_thresholds_bands_know_what_is_usual_at_which_length() -> None:
    lengths = np.array([10] * 30 + [100] * 30 + [5000] * 3)
    bands = Bands(np.array([4.0] * 30 + [2.0] * 30 + [9.0] * 3), lengths)
    # The band of three rows is too thin: there the median of all holds.
    assert bands.usual(np.array([12, 90, 5000, np.nan])).tolist() == [4.0, 2.0, 4.0, 4.0]


def test_thresholds_reference_rows_get_questions_of_rows_that_say_something_else() -> None:
    texts = [(f"question {i % 40}", f"answer {i % 30}") for i in range(200)]
    reference = draw(np.arange(200), lambda rows: [texts[row] for row in rows.tolist()], seed=0)
    assert len(reference) > 190
    for place, (question, answer) in enumerate(reference.pairs):
        wrong = reference.wrong_of(place)
        assert len({question, *(asked for asked, _ in wrong)}) == 3
        for other, (asked, said) in zip(reference.others[place], wrong, strict=True):
            assert said == answer and texts[other][0] == asked and texts[other][1] != answer
    again = draw(np.arange(200), lambda rows: [texts[row] for row in rows.tolist()], seed=0)
    assert again.questions == reference.questions


def test_thresholds_shuffling_keeps_what_it_shuffles() -> None:
    rng = np.random.default_rng(0)
    for text in ("The quick brown fox jumps over it.", "多喝水，多休息，注意保暖。", "x"):
        for shuffle in (shuffle_characters, shuffle_words):
            assert sorted(shuffle(text, rng)) == sorted(text)
    assert shuffle_words("", rng) == ""
    spaced = "The quick brown fox jumps over the lazy dog"
    salad = shuffle_words(spaced, np.random.default_rng(1))
    assert salad != spaced and sorted(salad.split()) == sorted(spaced.split())
