"""report.html of the whole way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.adapt.page import render, write_report
from dsr1_tune.adapt.state import STAGES, State
from tests.report.conftest import Page

EVIL = "<script>alert(1)</script>\u202e {{ 7*7 }}"
DONE: dict[str, dict[str, Any]] = {
    "plan": {"method": "lora", "needed": 2**29, "memory": 2**33, "base": "some/base"},
    "clean": {"num_rows": 1234, "num_kept": 1200, "num_merged": 30, "num_dropped": 4, "languages": {"en": 1200}},
    "train": {"loss_before": 2.5, "loss_after": 2.25, "num_steps": 60},
    "merge": {"bytes": 1_234_500_000},
    "quantize": {"to": "nf4", "bytes": 400_000_000},
    "compare": {"increase": 0.0123, "agreement": 0.875, "missed": []},
    "card": {"file": "README.md"},
}


def told(up_to: int = len(STAGES), **changes: dict[str, Any]) -> dict[str, Any]:
    """adapt.json after the first stages."""
    stages = {name: {"status": "done", "seconds": 1234.56, **DONE[name], **changes.get(name, {})} for name in STAGES}
    config = {"data": {"files": ["/data/medical.json"]}, "quantize": {"to": "nf4"}, "schedule": {"epochs": 2}}
    return {
        "version": "0.1.0",
        "config": config,
        "data_sha256": {"/data/medical.json": "ab" * 32},
        "stages": {name: stages[name] for name in STAGES[:up_to]},
    }


def test_page_tells_what_came_of_every_stage(tmp_path: Path) -> None:
    text = Page(render(tmp_path, told(), "en")).text
    for said in (
        "finished some/base was adapted to medical.json with lora and written as nf4.",
        f"Talk to it with: dsr1-tune chat {tmp_path / 'model'}",
        "Plan done 1,234.6 lora: 0.50 GiB of 8.00",
        "Clean done 1,234.6 1,200 of 1,234 rows kept, 30 merged with copies, 4 dropped",
        "Train done 1,234.6 held-out loss 2.5000 → 2.2500 in 60 steps",
        "Merge done 1,234.6 1,234.5 MB, certified",
        "Quantize done 1,234.6 nf4, 400.0 MB",
        "Compare done 1,234.6 loss +1.23%, the same next token at 87.50% of the places",
        "Card done 1,234.6 written",
        "schedule.epochs 2",
        "ab" * 32,
        "dsr1-tune 0.1.0",
    ):
        assert said in text, said


def test_page_says_in_chinese_what_came_of_the_stages(tmp_path: Path) -> None:
    text = Page(render(tmp_path, told(), "zh")).text
    assert "从数据到模型 已完成 以 lora 方法将 some/base 适配到 medical.json" in text
    assert "1,234 行中保留 1,200 行" in text and "held-out" not in text


def test_page_of_an_unfinished_way_says_how_to_go_on(tmp_path: Path) -> None:
    known = told(up_to=2)
    known["stages"]["train"] = {"status": "interrupted", "seconds": 3.0}
    text = Page(render(tmp_path, known, "en")).text
    assert "not finished some/base was adapted to medical.json" in text
    assert f"Go on with: dsr1-tune adapt --out {tmp_path}" in text
    assert "Train interrupted 3.0 Merge waiting" in text
    assert "The way from medical.json to a model." in Page(render(tmp_path, told(up_to=0), "en")).text


def test_page_of_a_missed_gate_says_which_and_not_to_talk_to_the_model(tmp_path: Path) -> None:
    missed = {"status": "missed", "missed": [f"domain loss rose by +3.00% {EVIL}"]}
    page = render(tmp_path, told(compare=missed), "en")
    text = Page(page).text
    assert "a gate was missed" in text and "What was missed domain loss rose by +3.00%" in text
    assert "Compare gate missed" in text and "dsr1-tune chat" not in text and "<script" not in page


def test_page_links_only_the_files_that_are_there(tmp_path: Path) -> None:
    for name in ("plan.json", "data/report.html", "model/compare.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert Page(render(tmp_path, told(), "en")).fetched == ["plan.json", "data/report.html", "model/compare.html"]


def test_page_without_quantizing_names_the_merged_model(tmp_path: Path) -> None:
    known = told()
    known["config"]["quantize"]["to"] = "none"
    assert f"dsr1-tune chat {tmp_path / 'merged'}" in Page(render(tmp_path, known, "en")).text


@pytest.mark.parametrize("name", STAGES)
def test_page_of_a_stage_that_lacks_its_numbers_leaves_them_out(tmp_path: Path, name: str) -> None:
    known = told()
    known["stages"][name] = {"status": "done"}
    text = Page(render(tmp_path, known, "en")).text
    assert f"{name.capitalize()} done" in text and "None" not in text


def test_page_shows_settings_and_names_as_text(tmp_path: Path) -> None:
    known = told(plan={"base": EVIL, "method": EVIL})
    known["config"] |= {"note": EVIL, "data": {"files": [EVIL]}}
    page = render(tmp_path, known, "zh")
    assert "script" not in Page(page).tags and page.count("&lt;script&gt;") >= 4 and "{{ 7*7 }}" in page


@pytest.mark.parametrize(
    ("languages", "language", "lang"),
    [
        ({"zh": 9, "en": 1}, "auto", "zh-Hans"),
        ({"en": 9, "zh": 1}, "auto", "en"),
        ({"zh": 9}, "en", "en"),
        ({}, "zh", "zh-Hans"),
    ],
)
def test_page_is_written_in_the_language_of_most_rows(
    tmp_path: Path, languages: dict[str, int], language: Any, lang: str
) -> None:
    state = State(tmp_path)
    state.write(**{key: value for key, value in told(clean={"languages": languages}).items() if key != "version"})
    file = write_report(state, language)
    assert file == tmp_path / "report.html" and f'<html lang="{lang}">' in file.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapt.json", "report.html"]


def test_page_links_what_is_there(whole: tuple[Path, str]) -> None:
    page = (whole[0] / "report.html").read_text()
    for link in ("plan.json", "data/report.html", "run/report.html", "model/compare.html", "model/README.md"):
        assert f'href="{link}"' in page and (whole[0] / link).is_file()
    assert "finished" in page and "<script" not in page and "certified" in page


def test_page_speaks_chinese(whole: tuple[Path, str]) -> None:
    from dsr1_tune.adapt.page import render

    page = render(whole[0], State(whole[0]).read(), "zh")
    assert "从数据到模型" in page and "量化" in page and "held-out" not in page
