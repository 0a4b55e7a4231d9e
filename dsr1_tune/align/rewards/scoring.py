"""Score conversations with a reward model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache

from dsr1_tune.align.preference.encode import encode_one
from dsr1_tune.align.rewards.component import NoScore
from dsr1_tune.config import RewardRun
from dsr1_tune.data.record import Drop, Feedback, Message, Place
from dsr1_tune.models.trained.reward_model import RewardFacts, ScalarModel

Ids = tuple[int, ...]


def score_conversations(
    model: ScalarModel,
    conversations: Sequence[tuple[Sequence[Message], str]],
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda count: None,
) -> list[float | NoScore]:
    """The score of each (prompt messages, answer), in order.

    It is a NoScore, which says why, for one that the model cannot be shown (blank, refused by the chat template, or
    beyond its context) or gives no finite number.
    """
    shown = [(tuple(prompt), Message("assistant", text)) for prompt, text in conversations]
    encoded = [encode_answer(model, prompt, answer, max_context(model)) for prompt, answer in shown]
    scores = score_encoded(model, encoded, batch_size, advance)
    return [NoScore(score.detail) if isinstance(score, Drop) else score for score in scores]


def score_encoded(
    model: ScalarModel, encoded: Sequence[Ids | Drop], batch_size: int, advance: Callable[[int], None]
) -> list[float | NoScore | Drop]:
    """The score of each conversation in order; a NoScore for one that is not finite, the Drop where that stands."""
    found = iter(model.score([ids for ids in encoded if not isinstance(ids, Drop)], batch_size, advance).tolist())
    return [ids if isinstance(ids, Drop) else finite_score(next(found)) for ids in encoded]


def finite_score(score: float) -> float | NoScore:
    """The score, or a NoScore that says why where it is not a finite number."""
    return score if math.isfinite(score) else NoScore(f"the reward model gives it no finite score ({score})")


def encode_answer(
    model: ScalarModel,
    prompt: tuple[Message, ...],
    answer: Message,
    max_tokens: int,
    place: Place | None = None,
    tools: str = "",
) -> Ids | Drop:
    """A conversation as the reward model was trained to see it, or why it cannot be shown."""
    row = Feedback(prompt, answer, is_good=True, place=place or Place("", 0, 0), tools=tools)
    outcome = encode_one(row, model.tokenizer, _settings(model.facts, max_tokens))
    return outcome if isinstance(outcome, Drop) else outcome.input_ids


def _settings(facts: RewardFacts, max_tokens: int) -> RewardRun:
    return _alike(facts.think, json.dumps(facts.template), facts.special_tokens, max_tokens)


@cache
def _alike(think: str, template: str, special_tokens: str, max_tokens: int) -> RewardRun:
    return RewardRun.model_validate(
        {
            "sequences": {"think": think},
            "template": json.loads(template),
            "data": {"special_tokens": special_tokens},
            "schedule": {"max_tokens": max_tokens},
        }
    )


def max_context(model: ScalarModel) -> int:
    """The longest conversation that the model has positions for."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)
