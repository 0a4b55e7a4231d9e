"""report.html of the whole way."""

from __future__ import annotations

from pathlib import Path

from dsr1_tune.adapt.state import State


def test_page_links_what_is_there(whole: tuple[Path, str]) -> None:
    page = (whole[0] / "report.html").read_text()
    for link in ("plan.json", "data/report.html", "run/report.html", "model/compare.html", "model/README.md"):
        assert f'href="{link}"' in page and (whole[0] / link).is_file()
    assert "finished" in page and "<script" not in page and "certified" in page


def test_page_speaks_chinese(whole: tuple[Path, str]) -> None:
    from dsr1_tune.adapt.page import render

    page = render(whole[0], State(whole[0]).read(), "zh")
    assert "从数据到模型" in page and "量化" in page and "held-out" not in page
