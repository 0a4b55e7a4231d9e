"""The run's page: whole, self-contained, in two languages, with data shown as text, and bearing any missing part."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import torch

from dsr1_tune.moe.monitor import Routing
from dsr1_tune.report.charts import HEIGHT, WIDTH, Line, chart, smoothed
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.report.align_sections import CURVES, layers_of
from dsr1_tune.runs.report.page import TEMPLATE, write_report
from dsr1_tune.runs.report.texts import TEXTS, TRY_ZH
from dsr1_tune.runs.watch.alarms import TRY, WHAT
from dsr1_tune.runs.watch.expert_tables import ExpertTables

EVIL = "<script>alert('x')</script>\u202egnp.exe & {{ 7*7 }}"
PARTS = ["manifest.json", "eval.json", "train_log.jsonl", "data/report.json", "data/train.jsonl", "experts_load.npz"]
VOID = {"meta", "br", "img", "link", "hr", "input"}
SHAPES = {"rect", "path", "line", "polyline", "circle"}


def fill(path: Path, status: str = "finished", text: str = "is it?") -> RunFolder:
    """A run folder as runs leave it."""
    manifest: dict[str, Any] = {
        "status": status,
        "command": "lora",
        "config": {"data": {"files": ["/data/medical.json"]}, "adapter": {"rank": 8}, "note": text},
        "data_sha256": {"/data/medical.json": "ab" * 32},
        "base": {"name": f"some/base {text}", "revision": None},
        "versions": {"dsr1-tune": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux", "gpus": "none"},
        "seconds": {"load": 1.5, "train": 4000.0, "something_new": 3},
        "alarms": [
            {
                "what": "loss_spike",
                "where": "loss",
                "since_step": 41,
                "detail": f"9.1 {text}",
                "try": "x",
                "answer": "warn",
            },
            {"what": "kind_of_tomorrow", "where": text, "since_step": 3, "detail": "", "try": "", "answer": "shrug"},
        ],
        "rollback": {"from_step": 43, "to_step": 20, "learning_rate_factor": 0.5},
        "metrics": {
            "coverage": [
                {"part": "attention", "num_base": 1000, "num_adapted": 1000, "num_trained": 50, "num_frozen": 1000},
                {"part": "router", "num_base": 100, "num_adapted": 0, "num_trained": 0, "num_frozen": 100},
            ]
        },
    }
    answers = [{"question": text, "answer": f"before {text}", "reference": f"reference {text}"}]
    evaluation = {
        "on": "12 held-out records",
        "before": {"loss": 2.5, "num_tokens": 100, "num_records": 12},
        "answers_before": answers,
        "after": {"loss": 2.0, "num_tokens": 100, "num_records": 12},
        "answers_after": [{**answers[0], "answer": f"after {text}"}],
    }
    data = {
        "num_rows": 130,
        "num_kept": 120,
        "num_dropped": 10,
        "dropped": {"empty_answer": 9, text: 1},
        "files": [{"file": f"/data/{text}", "num_rows": 130, "num_kept": 120, "num_dropped": 10}],
    }
    log = [
        {
            "step": step,
            "loss": 2.5 - step / 100 if step != 30 else math.nan,
            "grad_norm/attention": 0.1 * step,
            "num_tokens": 100.0 * step,
            "seconds": 2.0 * step,
            "tokens_per_second": 50.0,
            "memory/rss_gib": 1.5,
            "experts/entropy_mean": 0.9,
            "experts/entropy_min": 0.8,
        }
        for step in range(1, 51)
    ]
    (path / "data").mkdir(parents=True)
    for name, value in (("manifest.json", manifest), ("eval.json", evaluation), ("data/report.json", data)):
        (path / name).write_text(json.dumps(value), encoding="utf-8")
    (path / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 51, "lo')
    record = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes it is"}]}
    (path / "data" / "train.jsonl").write_text((json.dumps(record) + "\n") * 108)
    (path / "data" / "eval.jsonl").write_text((json.dumps(record) + "\n") * 12)
    load_LE = torch.tensor([[4.0, 4.0, 4.0, 4.0], [16.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    one = Routing(("model.layers.1.mlp.experts", "model.layers.2.mlp.experts"), load_LE, load_LE, 2)
    ExpertTables(before=one, training=one, after=one).write(path)
    return RunFolder(path)


def page_of(folder: RunFolder, language: Any = "en") -> str:
    return write_report(folder, language).read_text(encoding="utf-8")


def fill_alignment(path: Path, command: str, text: str = "is it?") -> RunFolder:
    """A run folder as a way of alignment leaves it."""
    folder = fill(path, text=text)
    folder.update(command=command)
    pairs = {"loss": 2.0, "accuracy": 0.55, "accuracy_by_sum": 0.5, "length_accuracy": 0.625, "num_records": 40}
    differs = {"safety": {"num_pairs": 30, "accuracy": 0.9}}
    scores = {"loss": 0.7, "accuracy": 0.5, "margin": 0.0, "calibration_error": 0.1, "length_only": 0.6}
    answers = {"reward": 0.25, "layers": {"form": 0.5, text: 0.125}, "components": {"form/length": 0.5}}
    answers |= {"num_prompts": 24, "answer_tokens": 30.25, "ended": 0.5, "loss": 1.0}
    sections = {
        "dpo": (pairs, pairs | {"accuracy": 0.725}),
        "reward": (scores, scores | {"accuracy": 0.8125, "differs": differs, "num_pairs": 40}),
        "grpo": (answers, answers | {"reward": 0.75}),
    }
    before, after = sections[command]
    told = {"reward_accuracy": 0.9, "reward_margin": 1.5, "beta": 0.1}
    folder.write_evaluation(before=before, after=after, preferences=told)
    metrics = folder.manifest()["metrics"] | {"reward_errors": {f"task/{text}": 17}}
    folder.update(metrics=metrics)
    numbers = {
        "dpo": {"rewards/chosen": 0.5, "rewards/rejected": -0.5, "rewards/accuracies": 0.75, "rewards/margins": 1.0},
        "reward": {"accuracy": 0.75, "margin": 0.5, "min_reward": -1.0, "mean_reward": 0.0, "max_reward": 1.0},
        "grpo": {"reward/mean": 0.5, "reward/form": 0.5, "reward/form/length": 0.5, "reward/task": 0.25}
        | {"reward/errors": 0.1, "policy/kl": 0.01, "policy/entropy": 2.0, "answer/tokens": 30.0},
    }[command]
    lines = [
        {"step": step, "loss": 0.5} | {name: value + step / 99 for name, value in numbers.items()} for step in (1, 2, 3)
    ]
    folder.log_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Structure(HTMLParser):
    """Whether tags are closed as they were opened, and what the page asks for from outside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag in SHAPES

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path, language: str) -> None:
    page = page_of(fill(tmp_path / "run"), language)
    structure = Structure(page)
    assert not structure.open
    assert {"script", "link", "iframe", "object", "form"} & set(structure.tags) == set()
    assert all(place.startswith(("#", "data:image/png;base64,")) for place in structure.fetched)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    assert structure.tags.count("img") == 1 and structure.tags.count("polyline") >= 6
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.parametrize(("language", "said"), [("en", "Alarms"), ("zh", "警报")])
def test_it_tells_everything_that_the_run_left(tmp_path: Path, language: str, said: str) -> None:
    page = page_of(fill(tmp_path / "run"), language)
    text = " ".join(" ".join(Structure(page).texts).split())
    for wanted in (said, "-20.0", "2.5000", "2.0000", "108", "130", "1:06:40", "some/base", "before is it?"):
        assert wanted in text, wanted
    for wanted in ("after is it?", "reference is it?", "41", "9.1 is it?", "medical.json", "2.13.0", "ab" * 32):
        assert wanted in text, wanted
    assert "kind_of_tomorrow" in text and "something_new" in text


def test_each_language_says_its_own(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    english, chinese = page_of(folder, "en"), page_of(folder, "zh")
    assert 'lang="en"' in english and 'lang="zh-Hans"' in chinese
    assert not re.search(r"[\u4e00-\u9fff]", english)
    for text in ("the loss has jumped", "Answers before and after", "routed rows", "What is trained"):
        assert text in english and text not in chinese
    assert "损失突然升高" in chinese


@pytest.mark.parametrize(
    ("text", "language"), [("what is it?", "en"), ("这个药怎么吃？", "zh"), ("これは何ですか", "en")]
)
def test_without_a_word_it_takes_the_language_of_the_records(tmp_path: Path, text: str, language: str) -> None:
    folder = fill(tmp_path / "run", text=text)
    record = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    (folder.data / "train.jsonl").write_text((json.dumps(record) + "\n") * 9)
    assert page_of(folder, "auto") == page_of(folder, language)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_comes_from_the_data_is_text(tmp_path: Path, language: str) -> None:
    page = page_of(fill(tmp_path / "run", text=EVIL), language)
    structure = Structure(page)
    assert "script" not in structure.tags and not structure.open
    assert "&lt;script&gt;" in page and "{{ 7*7 }}" in page and "\u202e" not in page


ALIGNMENT = {
    "dpo": ("+17.5", "55.0", "72.5", "62.5", "90.0", "Implicit rewards of better and worse answers", "1.5000"),
    "reward": ("81.2", "60.0", "safety (30)", "90.0", "Pairs ranked rightly", "Scores in the batch"),
    "grpo": ("+0.500", "0.2500", "0.7500", "form/length", "30.2", "17 ×", "Components of layer (smoothed): form"),
}


@pytest.mark.parametrize("command", ALIGNMENT)
def test_a_page_of_alignment_tells_before_and_after_and_its_own_curves(tmp_path: Path, command: str) -> None:
    folder = fill_alignment(tmp_path / "run", command, text=EVIL)
    (folder.path / "calibration.png").write_bytes(b"picture")
    for language in ("en", "zh"):
        page = page_of(folder, language)
        structure = Structure(page)
        assert not structure.open and "script" not in structure.tags and "{{ 7*7 }}" in page
        assert bool(re.search(r"[\u4e00-\u9fff]", page)) == (language == "zh")
    text = " ".join(" ".join(Structure(page_of(folder, "en")).texts).split())
    for wanted in ALIGNMENT[command]:
        assert wanted in text, wanted
    assert "data:image/png;base64,cGljdHVyZQ==" in page_of(folder)
    assert TEXTS["headline"]["en"] not in text and TEXTS["summary_no_gain"]["en"] not in text


@pytest.mark.parametrize("command", ALIGNMENT)
def test_without_an_after_alignment_claims_nothing(tmp_path: Path, command: str) -> None:
    folder = fill_alignment(tmp_path / "run", command)
    told = json.loads(folder.eval_file.read_text())
    del told["after"]
    folder.eval_file.write_text(json.dumps(told))
    page = page_of(folder)
    assert TEXTS["summary_no_gain"]["en"] in page and 'id="outcome"' not in page and not Structure(page).open


def test_names_beside_the_layers_are_no_layers() -> None:
    log = [
        {"reward/mean": 1, "reward/std": 0, "reward/form": 1, "reward/form/length": 1, "reward/errors": 0, "loss": 1}
    ]
    assert layers_of(log) == {"form": ["length"]}


@pytest.mark.parametrize("kind", ["preference", "prompt"])
def test_the_language_is_told_from_rows_of_any_kind(tmp_path: Path, kind: str) -> None:
    folder = fill(tmp_path / "run")
    asked = [{"role": "user", "content": "这个药怎么吃？"}]
    row = {"messages": asked} if kind == "prompt" else {"prompt": asked, "chosen": asked, "rejected": asked}
    (folder.data / "train.jsonl").write_text((json.dumps(row) + "\n") * 3)
    assert 'lang="zh-Hans"' in page_of(folder, "auto")


@pytest.mark.parametrize("missing", [[part] for part in PARTS] + [PARTS, PARTS[1:]])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_missing_and_damaged_parts_leave_a_sentence(tmp_path: Path, missing: list[str], is_damaged: bool) -> None:
    folder = fill(tmp_path / "run")
    for name in missing:
        if is_damaged:
            (folder.path / name).write_text('{"half a fi')
        else:
            (folder.path / name).unlink()
    for language in ("en", "zh"):
        assert not Structure(page_of(folder, language)).open


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "stopped by alarm"])
def test_an_unfinished_run_says_so_and_how_to_go_on(tmp_path: Path, status: str) -> None:
    folder = fill(tmp_path / "run", status)
    told = json.loads(folder.eval_file.read_text())
    del told["after"], told["answers_after"]
    folder.eval_file.write_text(json.dumps(told))
    page = page_of(folder)
    assert TEXTS["is_partial"]["en"] in page and "--resume" in page
    assert TEXTS[f"status_{status}"]["en"] in page
    assert TEXTS["not_yet"]["en"] in page and TEXTS["summary_no_gain"]["en"] in page


def test_a_loss_on_training_records_is_not_called_a_gain_on_new_ones(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    folder.write_evaluation(on="8 of the training records, as none are held out")
    page = page_of(folder)
    assert TEXTS["headline_train"]["en"] in page and TEXTS["headline"]["en"] not in page


def test_a_dense_run_has_no_picture(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    (folder.path / "experts_load.npz").unlink()
    page = page_of(folder)
    assert "<img" not in page and TEXTS["no_experts"]["en"] in page


def test_every_text_is_there_in_both_languages_with_the_same_values() -> None:
    for key, texts in TEXTS.items():
        assert set(texts) == {"en", "zh"}, key
        english, chinese = ({name for _, name, _, _ in Formatter().parse(text) if name} for text in texts.values())
        assert english == chinese, key
        assert not re.search(r"[\u4e00-\u9fff]", texts["en"]), key
    used = set(re.findall(r'(?:\bt|missing)\("(\w+)"', TEMPLATE.read_text(encoding="utf-8")))
    assert used and used <= set(TEXTS)
    assert {curve.title for curve in CURVES} | {key for curve in CURVES for key, _ in curve.lines} <= set(TEXTS)
    assert set(TRY_ZH) == set(TRY) == set(WHAT)
    assert {f"kind_{what}" for what in WHAT} <= set(TEXTS)


# --- charts ----------------------------------------------------------------------------------------------------------


def test_points_stay_on_the_canvas_and_ticks_between_its_edges() -> None:
    points = [(float(step), math.sin(step / 9) * 10.0 ** (step % 7 - 3)) for step in range(1, 3000)]
    for is_log in (False, True):
        drawn = chart("name", [Line("line", "c0", points)], is_log=is_log)
        assert drawn is not None
        places = drawn["lines"][0]["places"]
        assert 100 < len(places) <= 400
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
        assert len(drawn["y_ticks"]) >= 2 and all(0 <= tick["y"] <= 1 for tick in drawn["y_ticks"])
        assert len(drawn["x_ticks"]) >= 2 and all(0 <= tick["x"] <= 1 for tick in drawn["x_ticks"])


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [2.0] * 5, [math.nan, 3.0, math.inf]])
def test_flat_single_and_broken_curves_are_drawn(values: list[float]) -> None:
    drawn = chart("name", [Line("line", "c0", list(enumerate(values)))])
    assert drawn is not None and drawn["lines"][0]["places"]


def test_nothing_to_draw_is_no_chart() -> None:
    assert chart("name", [Line("line", "c0", []), Line("other", "c1", [(1, math.nan)])]) is None
    assert chart("name", [Line("line", "c0", [(1, 0.0), (2, -1.0)])], is_log=True) is None


def test_smoothing_leaves_single_bad_batches_out() -> None:
    points = [(float(step), 100.0 if step == 50 else 2.0) for step in range(200)]
    assert {value for _, value in smoothed(points)} == {2.0}


def test_writing_again_replaces_the_page(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    first = page_of(folder)
    shutil.rmtree(folder.data)
    assert page_of(folder) != first
