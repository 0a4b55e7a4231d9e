"""compare.html in both languages, with data shown as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dsr1_tune.export.comparison import page as compare_report
from dsr1_tune.export.comparison.result import Comparison


def test_page_speaks_chinese_and_shows_data_as_text(trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    assert found.answers is not None
    rows = [
        replace(row, question="发烧怎么办？", reference="多喝水", a="<script>x</script>") for row in found.answers.rows
    ]
    page = compare_report.render(replace(found, answers=replace(found.answers, rows=tuple(rows))), "zh")
    assert "模型对比" in page and "&lt;script&gt;" in page and "<script" not in page
    assert compare_report._language(replace(found, answers=replace(found.answers, rows=tuple(rows)))) == "zh"
