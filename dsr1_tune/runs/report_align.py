"""What the page of an alignment run shows besides any run's: what was measured before and after, and its curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsr1_tune.data.report_texts import Language
from dsr1_tune.runs.report_charts import Line, Points, chart, smoothed
from dsr1_tune.runs.report_texts import say

ALIGNS = ("reward", "dpo", "kto", "ppo", "grpo")
ROLLOUTS = ("ppo", "grpo")

Facts = Mapping[str, Any]
Log = Sequence[Facts]


@dataclass(frozen=True)
class _Curves:
    """A chart: the key of its title, and of each line the key of its name and what it is called in the log."""

    title: str
    lines: tuple[tuple[str, str], ...]
    from_zero: bool = False


CURVES = (
    _Curves("chart_accuracy", (("line_batch", "rewards/accuracies"), ("line_batch", "accuracy"))),
    _Curves("chart_pair", (("line_chosen", "rewards/chosen"), ("line_rejected", "rewards/rejected"))),
    _Curves("chart_margin", (("line_batch", "rewards/margins"), ("line_batch", "margin"))),
    _Curves("chart_logps", (("line_chosen", "logps/chosen"), ("line_rejected", "logps/rejected"))),
    _Curves(
        "chart_scores", (("line_lowest", "min_reward"), ("line_mean", "mean_reward"), ("line_highest", "max_reward"))
    ),
    _Curves(
        "chart_kl",
        (("line_kl_reference", "policy/kl"), ("line_kl_reference", "kl"), ("line_kl_update", "policy/approx_kl")),
    ),
    _Curves("chart_beta", (("line_batch", "kl/beta"),)),
    _Curves("chart_entropy", (("line_batch", "policy/entropy"), ("line_batch", "entropy")), from_zero=True),
    _Curves("chart_clip", (("line_policy", "policy/clip_fraction"), ("line_value", "value/clip_fraction")), True),
    _Curves("chart_tokens", (("line_batch", "answer/tokens"),), from_zero=True),
    _Curves("chart_ended", (("line_batch", "answer/ended"),), from_zero=True),
    _Curves("chart_value_loss", (("line_batch", "value/loss"),), from_zero=True),
    _Curves("chart_explained", (("line_batch", "value/explained_variance"),)),
)


def curves(command: str, log: Log, evaluation: Facts, language: Language) -> Iterator[dict[str, Any]]:
    """The charts of an alignment run, what it is about first; none for any other run."""
    if command not in ALIGNS:
        return
    yield from _reward_curves(log, evaluation, language)
    for curve in CURVES:
        lines = [
            Line(say(key, language), f"c{number % 6}", _points(log, name))
            for number, (key, name) in enumerate(curve.lines)
        ]
        if drawn := chart(say(curve.title, language), lines, from_zero=curve.from_zero):
            yield drawn


def _reward_curves(log: Log, evaluation: Facts, language: Language) -> Iterator[dict[str, Any]]:
    """The reward of the model's own answers: in all, by layer, and of each layer's components."""
    rewards = _points(log, "reward/mean")
    if not rewards:
        return
    measured = [(0.0, _held_out(evaluation, "before")), (rewards[-1][0], _held_out(evaluation, "after"))]
    drawn = chart(
        say("chart_reward", language),
        [
            Line(say("line_loss", language), "faint", rewards),
            Line(say("line_smooth", language), "c0", smoothed(rewards)),
            Line(say("line_held_out_greedy", language), "dots", [point for point in measured if math.isfinite(point[1])]),
        ],
    )
    layers = layers_of(log)
    by_layer = [
        Line(layer, f"c{number % 6}", smoothed(_points(log, f"reward/{layer}")))
        for number, layer in enumerate(layers)
    ]
    parts = [
        chart(
            f"{say('chart_components', language)} {layer}",
            [
                Line(part, f"c{number % 6}", smoothed(_points(log, f"reward/{layer}/{part}")))
                for number, part in enumerate(components)
            ],
        )
        for layer, components in layers.items()
    ]
    yield from (one for one in (drawn, chart(say("chart_layers", language), by_layer), *parts) if one)


def layers_of(log: Log) -> dict[str, list[str]]:
    """The reward's layers, and the components of each, in the order in which the log names them."""
    layers: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for line in log for name in line):
        head, *rest = name.split("/")
        if head != "reward" or not rest or rest[0] in _WHOLE:
            continue
        layer = layers.setdefault(rest[0], [])
        layer += ["/".join(rest[1:])] if len(rest) > 1 else []
    return layers


_WHOLE = ("mean", "std", "errors")
"""What stands beside the layers in the log, and is none."""


def _points(log: Log, name: str) -> Points:
    return [(line["step"], float(line[name])) for line in log if isinstance(line.get(name), (int, float))]
