"""What the page of an alignment run shows: what was measured before and after, and its own curves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.runs.report.align_sections import ALIGNS, CURVES, TEXTS, Row, curves, layers_of, outcome
from tests.report.conftest import Page
from tests.runs.report.conftest import EVIL, fill_alignment, page_of

ALIGNMENT = {
    "dpo": ("+17.5", "55.0", "72.5", "62.5", "90.0", "Implicit rewards of better and worse answers", "1.5000"),
    "reward": ("81.2", "60.0", "safety (30)", "90.0", "Pairs ranked rightly", "Scores in the batch"),
    "grpo": ("+0.500", "0.2500", "0.7500", "form/length", "30.2", "17 ×", "Components of layer (smoothed): form"),
}


@pytest.mark.parametrize("command", ALIGNMENT)
def test_alignment_page_tells_before_and_after_and_its_own_curves(tmp_path: Path, command: str) -> None:
    folder = fill_alignment(tmp_path / "run", command, text=EVIL)
    (folder.path / "calibration.png").write_bytes(b"picture")
    for language in ("en", "zh"):
        page = page_of(folder, language)
        assert "script" not in Page(page).tags and "{{ 7*7 }}" in page
        assert bool(re.search(r"[\u4e00-\u9fff]", page)) == (language == "zh")
    text = Page(page_of(folder, "en")).text
    for wanted in ALIGNMENT[command]:
        assert wanted in text, wanted
    assert "data:image/png;base64,cGljdHVyZQ==" in page_of(folder)
    assert TEXTS.say("headline", "en") not in text and TEXTS.say("summary_no_gain", "en") not in text


@pytest.mark.parametrize("command", ALIGNMENT)
def test_alignment_page_without_an_after_claims_nothing(tmp_path: Path, command: str) -> None:
    folder = fill_alignment(tmp_path / "run", command)
    told = json.loads(folder.eval_file.read_text())
    del told["after"]
    folder.eval_file.write_text(json.dumps(told))
    page = page_of(folder)
    assert TEXTS.say("summary_no_gain", "en") in page and 'id="outcome"' not in page
    assert TEXTS.say("summary_no_gain", "en") in Page(page).part("header")


def test_layers_of_leaves_out_numbers_beside_the_layers() -> None:
    log = [
        {"reward/mean": 1, "reward/std": 0, "reward/form": 1, "reward/form/length": 1, "reward/errors": 0, "loss": 1}
    ]
    assert layers_of(log) == {"form": ["length"]}


PAIRS = {"accuracy": 0.5, "loss": 2.0, "length_accuracy": 0.6, "num_records": 1200}


def test_outcome_of_preferences_is_the_change_in_points() -> None:
    told = {"before": PAIRS, "after": PAIRS | {"accuracy": 0.475}, "preferences": {"reward_margin": -0.25}}
    for command in ("dpo", "kto"):
        found = outcome(command, told, {}, "en")
        assert found is not None and (found.big, found.is_worse, found.kind) == (
            "-2.5",
            True,
            "preferences",
        )
        assert found.values == {
            "pairs": "1,200",
            "before": "50.0\u202f%",
            "after": "47.5\u202f%",
            "length": "60.0\u202f%",
        }
        assert Row("by how much more, on average (DPO's implicit reward)", "", "-0.2500") in found.rows


def test_outcome_of_a_reward_model_no_better_than_chance_is_worse() -> None:
    scores = {"accuracy": 0.4, "num_pairs": 7, "differs": {"safety": {"num_pairs": 3, "accuracy": 1.0}}}
    found = outcome("reward", {"before": scores, "after": scores | {"accuracy": 0.5}}, {}, "zh")
    assert found is not None and (found.big, found.is_worse) == ("50.0\u202f%", True)
    assert Row("safety (3)", "100.0\u202f%", "100.0\u202f%", is_part=True) in found.rows
    assert found.rows[0] == Row("排序正确的回答对", "40.0\u202f%", "50.0\u202f%")


def test_outcome_of_rollouts_lists_layers_above_their_components() -> None:
    before = {"reward": 0.5, "layers": {"form": 0.5, "task": 0.1}, "components": {"form/length": 0.25}}
    after = {
        "reward": 0.25,
        "layers": {"form": 0.4, "task": 0.2},
        "components": {"form/length": 0.75, "task/number": 1.0},
    }
    found = outcome("ppo", {"before": before, "after": after}, {"reward_errors": {"task/number": 2, "form/a": 1}}, "en")
    assert found is not None and (found.big, found.is_worse) == ("-0.250", True)
    assert [(row.name, row.before, row.after) for row in found.rows if row.is_part] == [
        ("form", "0.5000", "0.4000"),
        ("form/length", "0.2500", "0.7500"),
        ("task", "0.1000", "0.2000"),
        ("task/number", "–", "1.0000"),
    ]
    assert found.errors == (("form/a", 1), ("task/number", 2))


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        ("lora", PAIRS, PAIRS),
        ("dpo", PAIRS, {}),
        ("dpo", {"accuracy": float("nan")}, PAIRS),
        ("grpo", PAIRS, PAIRS),
        ("reward", {"accuracy": "half"}, PAIRS),
    ],
)
def test_outcome_is_none_where_a_side_was_not_measured(command: str, before: Any, after: Any) -> None:
    assert outcome(command, {"before": before, "after": after}, {}, "en") is None


def test_curves_are_those_of_the_log_and_none_for_other_runs() -> None:
    log = [{"step": step, "rewards/margins": 0.5, "reward/errors": 0.0, "policy/entropy": 2.0} for step in (1, 2)]
    assert [chart["name"] for chart in curves("dpo", log, {}, "en")] == [
        "Margin between better and worse answers",
        "Entropy, in nats per token",
    ]
    assert list(curves("lora", log, {}, "en")) == []
    assert all(list(curves(command, [], {}, "zh")) == [] for command in ALIGNS)


def test_curves_of_rewards_mark_what_was_measured_before_and_after() -> None:
    log = [
        {"step": step, "reward/mean": step / 10, "reward/form": 0.5, "reward/form/length": 0.5} for step in (1, 2, 3)
    ]
    told = {"before": {"reward": 0.0}, "after": {"reward": 0.4}}
    drawn = list(curves("grpo", log, told, "en"))
    assert [chart["name"] for chart in drawn] == [
        "Mean reward of the answers",
        "Reward by layer, after its gate (smoothed)",
        "Components of layer (smoothed): form",
    ]
    dots = drawn[0]["lines"][-1]
    assert dots["look"] == "dots" and [x for x, _ in dots["places"]] == [0.0, 1000.0]


def test_curves_have_every_title_and_name_in_the_catalogue() -> None:
    drawn = [curve for curves_of in CURVES.values() for curve in curves_of]
    assert {curve.title for curve in drawn} | {key for curve in drawn for key, _ in curve.lines} <= set(TEXTS.texts)
