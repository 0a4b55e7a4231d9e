"""compare.html in both languages, with data shown as text."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dsr1_tune.config import Gates
from dsr1_tune.export.comparison import page as compare_report
from dsr1_tune.export.comparison.gates import with_gates
from dsr1_tune.export.comparison.page import MAX_ANSWERS, show, write
from dsr1_tune.export.comparison.page import render as render_page
from dsr1_tune.export.comparison.result import AnswerPair, Answers, Comparison, Model, Score, SetResult, Style
from dsr1_tune.export.comparison.statistics import Estimate
from tests.report.conftest import Page

EVIL = "<script>alert(1)</script>\u202e {{ 7*7 }}"


def near(value: float) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01)


def pair(number: int, a: str = "six", b: str = "six", **scores: float) -> AnswerPair:
    return AnswerPair(f"what is {number}?", "seven", "span", a, b, {"f1": 0.0}, {"f1": scores.get("f1", 0.0)})


@pytest.fixture
def found() -> Comparison:
    """The base against a model that lost a little."""
    one = SetResult("held-out rows", 12, 3456, near(2.0), near(2.5), near(0.25), near(0.9), near(0.125), 3456)
    general = replace(one, name="general rows", increase=near(-0.05), agreement=None, divergence=None)
    style = Style(0.5, 0.75, 10.0, 20.5, 1, 0)
    answers = Answers(
        identical=near(0.5),
        similarity=near(0.75),
        scores=(Score("f1", 2, near(0.5), near(0.25), near(-0.25)),),
        style_a=style,
        style_b=replace(style, distinct_1=None, num_empty=2),
        rows=(pair(1), pair(2, b="seven", f1=1.0), pair(3, b="eight")),
    )
    return Comparison(
        a=Model("before", 2**30, 2**31, 100.0, 10.0),
        b=Model("after", 2**29, None, 150.0, None),
        domain=one,
        general=general,
        answers=answers,
    )


def text_of(found: Comparison, language: str = "en") -> str:
    return Page(render_page(found, language)).text  # type: ignore[arg-type]


def test_page_shows_every_number_with_its_interval(found: Comparison) -> None:
    text = text_of(found)
    for shown in (
        "+25.00\u202f% change of the loss from A to B",
        "A is before, B is after.",
        "Domain (12 rows, 3,456 tokens of answers: held-out rows)",
        "loss (nats per token) 2.0000 1.9900 … 2.0100 2.5000 2.4900 … 2.5100 +25.00% +24.00% … +26.00%",
        "perplexity 7.3891 12.182",
        "same next token 90.00% 89.00% … 91.00%",
        "KL(A‖B), nats per token 0.125 0.115 … 0.135",
        "F1 50.00% 49.00% … 51.00% 25.00% 24.00% … 26.00% -25.00% -26.00% … -24.00%",
        "distinct-1 50.0% –",
        "answers cut at the limit 1 1 empty answers 0 2",
        "weights in memory 1.00 GiB 512.00 MiB -50.0%",
        "weights on disk 2.00 GiB –",
        "tokens read a second 100.0 150.0 +50.0%",
        "tokens written a second 10.0 –",
    ):
        assert " ".join(shown.split()) in text, shown
    assert text.count("same next token") == 1  # other tokens do not agree


def test_page_shows_answers_that_differ_most_first(found: Comparison) -> None:
    text = text_of(found)
    places = [text.index(f"what is {number}?") for number in (2, 3, 1)]
    assert places == sorted(places)
    assert text.count("identical") == 2  # the measure, and the one pair that is
    assert "B · F1 1.00 seven" in text


def test_page_shows_no_more_answers_than_can_be_read(found: Comparison) -> None:
    assert found.answers is not None
    many = replace(found.answers, rows=tuple(pair(number) for number in range(MAX_ANSWERS + 5)))
    assert text_of(replace(found, answers=many)).count("what is") == MAX_ANSWERS


@pytest.mark.parametrize(
    ("asked", "missed", "said"),
    [
        (None, (), "no gates were set"),
        ({"max_loss_increase": None}, (), "no gates were set"),
        ({"max_loss_increase": 0.5}, (), "all gates passed"),
        ({"max_loss_increase": 0.02}, ("domain loss rose by +25.00%",), "gates missed domain loss rose by +25.00%"),
    ],
)
def test_page_says_whether_gates_were_passed(
    found: Comparison, asked: dict[str, float | None] | None, missed: tuple[str, ...], said: str
) -> None:
    page = Page(render_page(replace(found, asked=asked, missed=missed)))
    assert said in page.part("header")


def test_page_in_chinese_says_in_chinese_which_gates_were_missed(found: Comparison) -> None:
    gates = Gates(max_loss_increase="20%", min_agreement=0.95, max_general_drop=0.0)
    header = Page(render_page(with_gates(found, gates), "zh")).part("header")
    assert "未通过门槛 领域数据上的损失变化为 +25.00%（95 % 区间：+24.00% 至 +26.00%），最多允许 20.00%" in header
    assert "下一个 token 的一致率为 90.00%（95 % 区间：89.00% 至 91.00%），至少要求 95.00%" in header
    assert "通用数据" not in header and "rose" not in header


def test_page_without_domain_rows_or_answers_says_so(found: Comparison) -> None:
    text = text_of(replace(found, domain=None, answers=None))
    assert "-5.00\u202f% change of the loss on general rows from A to B".replace("\u202f", " ") in text
    assert "No answers were asked for." in text and "Domain" not in text and "How the answers read" not in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_shows_names_remarks_and_answers_as_text(found: Comparison, language: str) -> None:
    assert found.answers is not None and found.domain is not None
    rows = (replace(pair(1), question=EVIL, reference=EVIL, a=EVIL, b=EVIL),)
    page = render_page(
        replace(
            found,
            a=replace(found.a, name=EVIL),
            domain=replace(found.domain, name=EVIL),
            answers=replace(found.answers, rows=rows),
            remarks=(EVIL,),
            missed=(EVIL,),
        ),
        language,  # type: ignore[arg-type]
    )
    assert "script" not in Page(page).tags and page.count("&lt;script&gt;") == 9
    assert "\u202e" not in page.partition("</title>")[2] and "{{ 7*7 }}" in page


def test_page_is_written_beside_the_numbers_in_the_language_of_the_rows(found: Comparison, tmp_path: Path) -> None:
    assert found.answers is not None
    write(found, tmp_path / "en")
    assert json.loads((tmp_path / "en" / "compare.json").read_text()) == json.loads(json.dumps(found.as_json()))
    assert (tmp_path / "en" / "compare.html").read_text() == render_page(found, "en")
    rows = (replace(pair(1), question="发烧怎么办？", reference="多喝水"),)
    chinese = replace(found, answers=replace(found.answers, rows=rows))
    write(chinese, tmp_path / "zh")
    assert (tmp_path / "zh" / "compare.html").read_text() == render_page(chinese, "zh")
    assert "模型对比" in text_of(chinese, "zh")
    write(chinese, tmp_path / "set", "en")
    assert (tmp_path / "set" / "compare.html").read_text() == render_page(chinese, "en")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["compare.html", "compare.json"]


def test_table_on_the_terminal_has_the_numbers_of_the_page(found: Comparison) -> None:
    console = Console(file=io.StringIO(), width=140)
    show(replace(found, remarks=("[bold]a remark",), asked={"max_loss_increase": 0.5}), console)
    said = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert "A: before" in said and "note: [bold]a remark" in said and said[-1] == "all gates passed"
    assert "loss (nats per token) 2.0000 2.5000 +25.00% +24.00% … +26.00%" in said
    assert "weights on disk 2.00 GiB –" in said


def test_page_speaks_chinese_and_shows_data_as_text(trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    assert found.answers is not None
    rows = [
        replace(row, question="发烧怎么办？", reference="多喝水", a="<script>x</script>") for row in found.answers.rows
    ]
    page = compare_report.render(replace(found, answers=replace(found.answers, rows=tuple(rows))), "zh")
    assert "模型对比" in page and "&lt;script&gt;" in page and "<script" not in page
    assert compare_report._language(replace(found, answers=replace(found.answers, rows=tuple(rows)))) == "zh"
