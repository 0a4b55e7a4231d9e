"""The time that scores share, and cosines of texts that are embedded once."""

from __future__ import annotations

import numpy as np

from dsr1_tune.data.judge.scores import Budget, Cosines


def test_budget_shares_what_is_left() -> None:
    now = [0.0]
    budget = Budget(lambda: now[0], 100.0)
    part = budget.share(0.25)
    assert (budget.left, part.left) == (100.0, 25.0)
    now[0] = 60.0
    assert (budget.left, part.left, budget.share(0.5).left) == (40.0, -35.0, 20.0)
    assert part.share(0.5).left == 0.0


class Embedder:
    """Unit vectors by the first letter; remembers what was requested."""

    name = "letters"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def questions(self, texts, /):
        self.seen += texts
        return np.array([np.eye(26)[ord(text[0]) - 97] for text in texts])

    answers = questions


def test_cosines_embed_every_text_once_until_forgotten() -> None:
    model = Embedder()
    cosines = Cosines(model)
    assert cosines([("a", "a"), ("a", "b"), ("c", "b")]).tolist() == [[1.0], [0.0], [0.0]]
    assert model.seen == ["a", "c", "a", "b"]
    cosines([("a", "b")])
    assert len(model.seen) == 4
    cosines.forget()
    cosines([("a", "b")])
    assert model.seen[4:] == ["a", "b"]
