"""What a model has scored is kept on disk, and a line that was cut off is scored again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsr1_tune.data.judge.score_cache import Memo, digest

PAIRS = [("Q", "A"), ("QA", ""), ("", "QA")]


class Model:
    """Scores by length; remembers what was requested."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __call__(self, pairs):
        self.seen += pairs
        return np.array(
            [[len(question) / 3, float("nan") if not answer else len(answer)] for question, answer in pairs]
        )


def test_memo_scores_each_pair_once_and_across_runs(tmp_path: Path) -> None:
    model = Model()
    with Memo(tmp_path / "cache" / "scores.jsonl") as memo:
        first = memo.scores([*PAIRS, PAIRS[0]], model)
        assert (model.seen, memo.num_new) == (PAIRS, 3)
        np.testing.assert_array_equal(first[0], first[3])
        np.testing.assert_array_equal(first[0], [0.3333, 1.0])
        assert np.isnan(first[1, 1])
    with Memo(tmp_path / "cache" / "scores.jsonl") as again:
        np.testing.assert_array_equal(again.scores(PAIRS, model), first[:3])
        assert (len(model.seen), again.num_new) == (3, 0)


def test_memo_remembers_where_work_ended(tmp_path: Path) -> None:
    with Memo(tmp_path / "a") as memo:
        assert memo.end("work") is None
        memo.set_end("work", 7)
        memo.set_end("work", 9)
    with Memo(tmp_path / "a") as again:
        assert (again.end("work"), again.end("other")) == (9, None)


def test_memo_scores_again_what_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with Memo(path) as memo:
        memo.scores(PAIRS, Model())
    path.write_bytes(path.read_bytes()[:-20])
    model = Model()
    with Memo(path) as memo:
        memo.scores(PAIRS, model)
    assert model.seen == PAIRS[2:]
    with Memo(path) as memo:
        memo.scores(PAIRS, model)
    assert model.seen == PAIRS[2:]


def test_digest_tells_where_a_text_ends() -> None:
    assert len({digest("Q", "A"), digest("QA", ""), digest("", "QA"), digest("QA")}) == 4
    assert digest("\ud800") == digest("\ud800") != digest("")
