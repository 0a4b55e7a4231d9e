"""The bench: rows by language, how well a score tells good rows from bad, and the blend of scores."""

from __future__ import annotations

import numpy as np
import pytest

from dsr1_tune.config import Judge
from dsr1_tune.data.judge.bench import Measure, as_good, as_score, blend, measure, open_bench


class Rows:
    """Numbered pairs, most of them Latin."""

    def __init__(self, num: int) -> None:
        self.requested: list[int] = []
        self.num = num

    def __len__(self) -> int:
        return self.num

    def texts(self, indices, /):
        self.requested += indices
        return [(f"Q{index}", f"A{index}") for index in indices]

    def languages(self):
        return ["han" if index % 4 == 0 else "latin" for index in range(self.num)]


def bench(num: int = 400, **settings):
    said: list[str] = []
    return open_bench(Rows(num), Judge(**settings), 0, said.append), said


def test_open_bench_sorts_rows_by_language_the_most_frequent_first() -> None:
    opened, _ = bench(12)
    assert list(opened.languages) == ["latin", "han"]
    assert opened.languages["han"].tolist() == [0, 4, 8]
    assert np.isnan(opened.scores["fit"]).all() and len(opened.scores["fit"]) == 12


def test_open_bench_draws_a_sample() -> None:
    opened, _ = bench(400, sample=0.1)
    assert len(opened.rows) == 40 == sum(map(len, opened.languages.values()))
    assert opened.rows.tolist() == sorted(set(opened.rows.tolist()))


def test_bench_reads_rows_in_the_sources_order_and_gives_them_in_its_own() -> None:
    opened, _ = bench(12)
    assert opened.texts(np.array([5, 2, 5])) == [("Q5", "A5"), ("Q2", "A2"), ("Q5", "A5")]
    assert opened.pairs.requested == [2, 5]


def test_bench_notes_a_line_once() -> None:
    opened, said = bench(12)
    opened.note("too few rows")
    opened.note("too few rows")
    assert (opened.notes, said) == (["too few rows"], ["judge: too few rows"])


def test_measure_switches_off_what_tells_nothing_or_has_too_few_rows() -> None:
    opened, said = bench()
    rng = np.random.default_rng(0)
    good, bad = rng.normal(2, 1, 300), rng.normal(0, 1, 300)
    measure(opened, "overlap", "latin", good, bad)
    assert opened.is_on("overlap", "latin") and opened.measures["overlap", "latin"].auc > 0.85
    measure(opened, "overlap", "latin", bad, rng.normal(0, 1, 300))
    assert not opened.is_on("overlap", "latin") and "no better than chance" in opened.measures["overlap", "latin"].off
    measure(opened, "overlap", "han", good[:50], bad[:50])
    assert "only 50 rows to try it on" in opened.measures["overlap", "han"].off
    assert not opened.is_on("cosine", "latin")
    assert said[-1].startswith("judge: overlap is not used on han")


def test_blend_ranks_rows_as_the_scores_do_and_leaves_unknown_rows_out() -> None:
    opened, _ = bench()
    rows = opened.languages["latin"]
    rng = np.random.default_rng(0)
    opened.scores["cosine"][rows[:-1]] = np.linspace(0, 1, len(rows) - 1)
    seen, bad = rng.normal(0.8, 0.2, 200), rng.normal(0.2, 0.2, (200, 2))
    opened.measures["cosine", "latin"] = Measure(seen, bad, 0.9)
    blend(opened, "latin")
    fit = opened.scores["fit"][rows]
    assert (np.diff(fit[:-1]) > 0).all() and np.isnan(fit[-1])
    assert opened.is_on("fit", "latin") and opened.fit_auc[rows[0]] > 0.9 and opened.fit_auc[rows[-1]] == 0


@pytest.mark.parametrize("score", ["surprise", "overlap", "cosine", "perplexity", "ifd", "contrast"])
def test_as_good_and_as_score_undo_each_other(score: str) -> None:
    values = np.array([0.25, 0.5, 4.0])
    good = as_good(score, values)
    assert [as_score(score, value) for value in good] == pytest.approx(values.tolist())
    is_lower_better = score in ("surprise", "perplexity", "ifd")
    assert (np.diff(good) < 0).all() == is_lower_better


def test_as_good_takes_no_words_for_no_shared_word() -> None:
    assert as_good("overlap", np.array([np.nan])).tolist() == [0.0]
    assert np.isnan(as_good("cosine", np.array([np.nan]))).all()
