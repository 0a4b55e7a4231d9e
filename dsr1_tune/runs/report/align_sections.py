"""The parts of report.html that only alignment runs have: the measures before and after, and their curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dsr1_tune.config import REWARD_NUMBERS
from dsr1_tune.report.catalogue import Catalogue, Language
from dsr1_tune.report.charts import Line, chart, smoothed

TEXTS = Catalogue.beside(__file__)
PAIRS = ("dpo", "kto")
ROLLOUTS = ("ppo", "grpo")
ALIGNS = ("reward", *PAIRS, *ROLLOUTS)
LOSS_OF_ITS_OWN = (*PAIRS, *ROLLOUTS)
"""Here the loss before and after is another than the one that is trained: both on one chart would mislead."""

Facts = Mapping[str, Any]
Log = Sequence[Facts]


@dataclass(frozen=True)
class Row:
    """A measure before and after: numbers as text, and whether it is a part of the one above."""

    name: str
    before: str
    after: str
    is_part: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of an alignment run: the headline number, what it is, and every measure."""

    big: str
    is_worse: bool
    kind: str
    """headline_<kind> says what the large number is, summary_<kind> is the sentence that `values` are put into."""
    values: dict[str, str]
    rows: tuple[Row, ...]
    errors: tuple[tuple[str, int], ...] = ()
    """Rewards that could not be given, by component."""


def outcome(command: str, evaluation: Facts, metrics: Facts, language: Language) -> Outcome | None:
    """The result of an alignment run; None for other runs, and until before and after have both been measured."""
    before, after = section(evaluation, "before"), section(evaluation, "after")
    if command in ROLLOUTS and _are_numbers(before.get("reward"), after.get("reward")):
        errors = tuple(sorted((str(name), int(count)) for name, count in section(metrics, "reward_errors").items()))
        return _of_rollouts(before, after, errors, language)
    if command in (*PAIRS, "reward") and _are_numbers(before.get("accuracy"), after.get("accuracy")):
        outcome_of = _of_reward_model if command == "reward" else _of_preferences
        return outcome_of(before, after, section(evaluation, "preferences"), language)
    return None


def _of_rollouts(before: Facts, after: Facts, errors: tuple[tuple[str, int], ...], language: Language) -> Outcome:
    change = after["reward"] - before["reward"]
    rows = [Row(TEXTS.say("row_reward", language), _number(before["reward"]), _number(after["reward"]))]
    for layer, value in section(after, "layers").items():
        rows.append(Row(str(layer), _number(section(before, "layers").get(layer)), _number(value), is_part=True))
        for name, score in section(after, "components").items():
            if name.startswith(f"{layer}/"):
                earlier = section(before, "components").get(name)
                rows.append(Row(str(name), _number(earlier), _number(score), is_part=True))
    was, now = (f"{stage['answer_tokens']:.1f}" if "answer_tokens" in stage else "–" for stage in (before, after))
    rows.append(Row(TEXTS.say("row_tokens", language), was, now))
    rows.append(Row(TEXTS.say("row_ended", language), _share(before.get("ended")), _share(after.get("ended"))))
    values = {stage: f"{facts['reward']:.4f}" for stage, facts in (("before", before), ("after", after))}
    values["prompts"] = f"{int(after.get('num_prompts', 0)):,}"
    return Outcome(f"{change:+.3f}", change < 0, "reward", values, tuple(rows), errors)


def _of_preferences(before: Facts, after: Facts, preferences: Facts, language: Language) -> Outcome:
    points = 100 * (after["accuracy"] - before["accuracy"])
    rows = [Row(TEXTS.say("row_likelier", language), _share(before["accuracy"]), _share(after["accuracy"]))]
    if "accuracy_by_sum" in after:
        by_sum = _share(before.get("accuracy_by_sum")), _share(after["accuracy_by_sum"])
        rows.append(Row(TEXTS.say("row_likelier_whole", language), *by_sum))
    rows += [
        Row(TEXTS.say("row_raised", language), "", _share(preferences.get("reward_accuracy"))),
        Row(TEXTS.say("row_raised_margin", language), "", _number(preferences.get("reward_margin"))),
        Row(TEXTS.say("row_loss_chosen", language), _number(before.get("loss")), _number(after.get("loss"))),
        Row(TEXTS.say("row_length", language), "", _share(after.get("length_accuracy"))),
    ]
    values = _accuracies(before, after, after.get("length_accuracy"))
    return Outcome(f"{points:+.1f}", points < 0, "preferences", values, tuple(rows))


def _of_reward_model(before: Facts, after: Facts, preferences: Facts, language: Language) -> Outcome:
    rows = [Row(TEXTS.say("row_accuracy", language), _share(before["accuracy"]), _share(after["accuracy"]))]
    for name, bucket in section(after, "differs").items():
        was = section(section(before, "differs"), name).get("accuracy")
        accuracies = _share(was), _share(bucket.get("accuracy"))
        rows.append(Row(f"{name} ({bucket.get('num_pairs')})", *accuracies, is_part=True))
    error_was, error_is = (_number(stage.get("calibration_error")) for stage in (before, after))
    rows += [
        Row(TEXTS.say("row_margin", language), _number(before.get("margin")), _number(after.get("margin"))),
        Row(TEXTS.say("row_loss_pairs", language), _number(before.get("loss")), _number(after.get("loss"))),
        Row(TEXTS.say("row_calibration", language), error_was, error_is),
        Row(TEXTS.say("row_length", language), "", _share(after.get("length_only"))),
    ]
    values = _accuracies(before, after, after.get("length_only"))
    return Outcome(_share(after["accuracy"]), after["accuracy"] <= 0.5, "reward_model", values, tuple(rows))


def _accuracies(before: Facts, after: Facts, by_length: Any) -> dict[str, str]:
    return {
        "pairs": f"{int(after.get('num_records', after.get('num_pairs', 0))):,}",
        "before": _share(before["accuracy"]),
        "after": _share(after["accuracy"]),
        "length": _share(by_length),
    }


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def _number(value: Any) -> str:
    return f"{value:.4f}" if _are_numbers(value) else "–"


def _share(value: Any) -> str:
    return f"{100 * value:.1f}\u202f%" if _are_numbers(value) else "–"


@dataclass(frozen=True)
class Curves:
    """A chart: the key of its title, and of each line the key of its name and what it is called in the log."""

    title: str
    lines: Sequence[tuple[str, str]]
    from_zero: bool = False

    def draw(self, log: Log, language: Language) -> dict[str, Any] | None:
        """What the template draws; None if there is nothing to be drawn."""
        lines = [
            Line(TEXTS.say(key, language), f"c{number % 6}", points(log, name))
            for number, (key, name) in enumerate(self.lines)
        ]
        return chart(TEXTS.say(self.title, language), lines, from_zero=self.from_zero)


CURVES: dict[str, list[Curves]] = {
    kind: [Curves(**one) for one in charts]
    for kind, charts in yaml.safe_load(Path(__file__).with_name("curves.yaml").read_text(encoding="utf-8")).items()
}


def curves(command: str, log: Log, evaluation: Facts, language: Language) -> Iterator[dict[str, Any]]:
    """The charts of an alignment run, its objective first; none for any other run."""
    if command not in ALIGNS:
        return
    yield from _reward_curves(log, evaluation, language)
    for curve in CURVES["align"]:
        is_zero = not any(value for _, name in curve.lines for _, value in points(log, name))
        if not (curve.from_zero and is_zero) and (drawn := curve.draw(log, language)):
            yield drawn


def _reward_curves(log: Log, evaluation: Facts, language: Language) -> Iterator[dict[str, Any]]:
    """The reward of the model's own answers: in all, by layer, and of each layer's components."""
    rewards = points(log, "reward/mean")
    if not rewards:
        return
    ends = ((0.0, section(evaluation, "before")), (rewards[-1][0], section(evaluation, "after")))
    measured = [(step, float(one["reward"])) for step, one in ends if isinstance(one.get("reward"), (int, float))]
    in_all = [
        Line(TEXTS.say("line_loss", language), "faint", rewards),
        Line(TEXTS.say("line_smooth", language), "c0", smoothed(rewards)),
        Line(TEXTS.say("line_held_out_greedy", language), "dots", measured),
    ]
    layers = layers_of(log)
    drawn = [
        chart(TEXTS.say("chart_reward", language), in_all),
        chart(TEXTS.say("chart_layers", language), _smooth(log, {layer: f"reward/{layer}" for layer in layers})),
    ]
    for layer, parts in layers.items():
        lines = _smooth(log, {part: f"reward/{layer}/{part}" for part in parts})
        drawn.append(chart(f"{TEXTS.say('chart_components', language)} {layer}", lines))
    yield from (one for one in drawn if one)


def _smooth(log: Log, names: Mapping[str, str]) -> list[Line]:
    return [
        Line(shown, f"c{number % 6}", smoothed(points(log, name))) for number, (shown, name) in enumerate(names.items())
    ]


def layers_of(log: Log) -> dict[str, list[str]]:
    """The reward's layers, and the components of each, in the order in which the log names them."""
    layers: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for line in log for name in line):
        head, _, rest = name.partition("/")
        layer, _, part = rest.partition("/")
        if head == "reward" and layer and (part or layer not in REWARD_NUMBERS):
            layers.setdefault(layer, []).extend([part] if part else [])
    return layers


def points(log: Log, name: str) -> list[tuple[float, float]]:
    """(step, value) of a number in the log, where it is one."""
    return [(line["step"], float(line[name])) for line in log if isinstance(line.get(name), (int, float))]


def section(facts: Facts, name: str) -> Facts:
    """A nested mapping of facts; empty where it is missing or something else."""
    value = facts.get(name)
    return value if isinstance(value, Mapping) else {}
