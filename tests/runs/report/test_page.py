"""The run's page: whole, self-contained, in two languages, with data shown as text, and bearing any missing part."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.runs.report.page import TEXTS
from dsr1_tune.runs.watch.alarms import TEXTS as ALARMS
from tests.report.conftest import Page
from tests.runs.report.conftest import EVIL, fill, page_of

PARTS = ["manifest.json", "eval.json", "train_log.jsonl", "data/report.json", "data/train.jsonl", "experts_load.npz"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_is_whole_and_needs_nothing_else(tmp_path: Path, language: str) -> None:
    page = page_of(fill(tmp_path / "run"), language)
    whole = Page(page)
    assert [name for name, count in whole.figures if not name.strip() or count < 1] == [] and len(whole.figures) == 5
    assert {"script", "link", "iframe", "object", "form"} & set(whole.tags) == set()
    assert all(place.startswith(("#", "data:image/png;base64,")) for place in whole.fetched)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    assert whole.tags.count("img") == 1 and whole.tags.count("polyline") >= 6
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.parametrize(("language", "said"), [("en", "Alarms"), ("zh", "警报")])
def test_page_tells_everything_that_the_run_left(tmp_path: Path, language: str, said: str) -> None:
    page = page_of(fill(tmp_path / "run"), language)
    text = Page(page).text
    for wanted in (said, "-20.0", "2.5000", "2.0000", "108", "130", "1:06:40", "some/base", "before is it?"):
        assert wanted in text, wanted
    for wanted in ("after is it?", "reference is it?", "41", "9.1 is it?", "medical.json", "2.13.0", "ab" * 32):
        assert wanted in text, wanted
    assert "kind_of_tomorrow" in text and "something_new" in text


def test_page_says_its_own_in_each_language(tmp_path: Path) -> None:
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
def test_page_takes_the_language_of_the_records(tmp_path: Path, text: str, language: str) -> None:
    folder = fill(tmp_path / "run", text=text)
    record = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    (folder.data / "train.jsonl").write_text((json.dumps(record) + "\n") * 9)
    assert page_of(folder, "auto") == page_of(folder, language)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_shows_data_as_text(tmp_path: Path, language: str) -> None:
    page = page_of(fill(tmp_path / "run", text=EVIL), language)
    assert "script" not in Page(page).tags
    assert "&lt;script&gt;" in page and "{{ 7*7 }}" in page and "\u202e" not in page


@pytest.mark.parametrize("kind", ["preference", "prompt"])
def test_language_is_told_from_rows_of_any_kind(tmp_path: Path, kind: str) -> None:
    folder = fill(tmp_path / "run")
    asked = [{"role": "user", "content": "这个药怎么吃？"}]
    row = {"messages": asked} if kind == "prompt" else {"prompt": asked, "chosen": asked, "rejected": asked}
    (folder.data / "train.jsonl").write_text((json.dumps(row) + "\n") * 3)
    assert 'lang="zh-Hans"' in page_of(folder, "auto")


SAID_INSTEAD = {
    "manifest.json": {"no_coverage", "no_alarms", "is_partial"},
    "eval.json": {"no_samples", "summary_no_gain"},
    "train_log.jsonl": {"no_curves"},
    "data/report.json": {"no_data"},
    "data/train.jsonl": set(),
    "experts_load.npz": {"no_experts"},
}


@pytest.mark.parametrize("missing", [[part] for part in PARTS] + [PARTS, PARTS[1:]])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_page_says_which_parts_are_missing_or_damaged(tmp_path: Path, missing: list[str], is_damaged: bool) -> None:
    folder = fill(tmp_path / "run")
    for name in missing:
        if is_damaged:
            (folder.path / name).write_text('{"half a fi')
        else:
            (folder.path / name).unlink()
    expected = set().union(*(SAID_INSTEAD[name] for name in missing))
    for language in ("en", "zh"):
        page = Page(page_of(folder, language))
        said = {key for key in set().union(*SAID_INSTEAD.values()) if TEXTS.say(key, language) in page.text}
        assert said == expected
        are_rows_known = not {"data/report.json", "data/train.jsonl"} & set(missing)
        assert ("108" in page.part("header")) == are_rows_known


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "stopped by alarm"])
def test_page_of_an_unfinished_run_says_how_to_go_on(tmp_path: Path, status: str) -> None:
    folder = fill(tmp_path / "run", status)
    told = json.loads(folder.eval_file.read_text())
    del told["after"], told["answers_after"]
    folder.eval_file.write_text(json.dumps(told))
    page = page_of(folder)
    assert TEXTS.say("is_partial", "en") in page and "--resume" in page
    assert TEXTS.say(f"status_{status}", "en") in page
    assert TEXTS.say("not_yet", "en") in page and TEXTS.say("summary_no_gain", "en") in page


def test_page_does_not_call_a_loss_on_training_records_a_gain_on_new_ones(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    folder.write_evaluation(on="8 of the training records, as none are held out")
    page = page_of(folder)
    assert TEXTS.say("headline_train", "en") in page and TEXTS.say("headline", "en") not in page


def test_page_of_a_dense_run_has_no_picture(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    (folder.path / "experts_load.npz").unlink()
    page = page_of(folder)
    assert "<img" not in page and TEXTS.say("no_experts", "en") in page


def test_page_is_replaced_when_it_is_written_again(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    first = page_of(folder)
    shutil.rmtree(folder.data)
    assert page_of(folder) != first


def test_page_of_an_alarm_names_it_and_says_what_to_try(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    for language in ("en", "zh"):
        said = Page(page_of(folder, language)).section("alarms")
        assert ALARMS.say("kind_loss_spike", language) in said and ALARMS.say("try_lower_rate", language) in said
        assert "kind_of_tomorrow" in said and "try_" not in said


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_of_an_alarm_of_an_earlier_release_says_what_to_try(tmp_path: Path, language: Any) -> None:
    folder = fill(tmp_path / "run")
    alarms = folder.manifest()["alarms"]
    del alarms[0]["advice"]
    folder.update(alarms=alarms)
    said = Page(page_of(folder, language)).section("alarms")
    assert all(ALARMS.say(f"try_{name}", language) in said for name in ("lower_rate", "raise_warmup"))


def test_page_leaves_the_folder_of_the_data_out(tmp_path: Path) -> None:
    header = Page(page_of(fill(tmp_path / "run"))).part("header")
    assert "medical.json" in header and "/data/" not in header
