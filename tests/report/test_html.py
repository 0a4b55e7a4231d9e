"""Numbers as people read them, and data that is shown as text and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from dsr1_tune.report import html
from dsr1_tune.report.catalogue import Catalogue, Language
from tests.report.conftest import Page

TEXTS = """title: {en: "Rows & more", zh: "数据"}
rows: {en: "{rows} rows of {file}", zh: "{file} 的 {rows} 行"}
stage_read: {en: "Read", zh: "读取"}
"""


@pytest.fixture
def texts(tmp_path: Path) -> Catalogue:
    file = tmp_path / "texts.yaml"
    file.write_text(TEXTS, encoding="utf-8")
    return Catalogue(file)


def rendered(
    texts: Catalogue, source: str, language: Language = "en", name: str = "page.html.j2", **values: Any
) -> str:
    """A template beside the texts, rendered."""
    template = texts.file.with_name(name)
    template.write_text(source, encoding="utf-8")
    return html.render(template, texts, language, **values)


# --- pages -----------------------------------------------------------------------------------------------------------


def test_render_makes_a_whole_page_with_the_shared_head_and_style(texts: Catalogue) -> None:
    source = (
        '{% include "head.html.j2" %}\n\n<title>{{ t("title") }}</title>\n<style>\n{{ style }}</style>\n</head>\n'
        "<body>\n</body>\n</html>\n"
    )
    page = rendered(texts, source)
    assert page.startswith('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n')
    assert "\n<title>Rows &amp; more</title>\n<style>\n:root {" in page and page.endswith("</html>")
    assert "default-src 'none'; style-src 'unsafe-inline'\"" in page and "&gt;" not in page
    assert Page(page).text == "Rows & more"
    with_images = html.render(Path(html.__file__).with_name("head.html.j2"), texts, "zh", has_images=True)
    assert "'unsafe-inline'; img-src data:\"" in with_images and '<html lang="zh-Hans">' in with_images


def test_render_escapes_values_unless_they_are_markup(texts: Catalogue) -> None:
    source = '{{ value }}|{{ t("rows", rows=3, file=value) }}|{{ t("rows", rows=3, file=safe) }}'
    page = rendered(texts, source, value="<b>{{ 7*7 }}", safe=Markup("<i>"))
    assert page == "&lt;b&gt;{{ 7*7 }}|3 rows of &lt;b&gt;{{ 7*7 }}|3 rows of <i>"


def test_render_of_markdown_escapes_nothing_and_keeps_the_last_line_end(texts: Catalogue) -> None:
    page = rendered(texts, '# {{ t("title") }}: {{ value }}\n', name="card.md.j2", value="<b>")
    assert page == "# Rows & more: <b>\n"


def test_render_speaks_each_language(texts: Catalogue) -> None:
    source = '{{ lang }} {{ t("title") }} {{ named("stage", "read") }} {{ named("stage", "new") }} {{ 0.5|share }}'
    assert rendered(texts, source) == "en Rows &amp; more Read new 50.0\u202f%"
    assert html.render(texts.file.with_name("page.html.j2"), texts, "zh") == "zh-Hans 数据 读取 new 50.0%"


def test_render_refuses_a_value_that_is_not_given_and_a_text_that_is_not_there(texts: Catalogue) -> None:
    with pytest.raises(UndefinedError, match="'value' is undefined"):
        rendered(texts, "{{ value }}")
    with pytest.raises(KeyError, match="has no text 'nothing'"):
        rendered(texts, '{{ t("nothing") }}', name="other.html.j2")


def test_text_escapes_itself_and_its_values(texts: Catalogue) -> None:
    said = html.text(texts, "zh", "rows", rows="<3>", file=html.shown("zh", "a&b"))
    assert isinstance(said, Markup) and said == '<bdi dir="auto">a&amp;b</bdi> 的 &lt;3&gt; 行'


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [(12345, "12,345"), (None, "–"), (0, "0"), (2.0, "2"), (1234.5678, "1,235"), (0.12345, "0.1235"), (-7, "-7")],
)
def test_number(value: Any, said: str) -> None:
    assert html.number(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.9134, "91.3\u202f%"),
        (0, "0.0\u202f%"),
        (1, "100.0\u202f%"),
        (0.0004, "< 0.1\u202f%"),
        (0.001, "0.1\u202f%"),
        (0.9995, "> 99.9\u202f%"),
        (1.5, "150.0\u202f%"),
    ],
)
def test_share_is_never_rounded_to_none_or_all(value: float, said: str) -> None:
    assert html.share("en", value) == said
    assert html.share("zh", value) == said.replace("\u202f", "")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.21, "3.2 s"), (75.3, "1:15"), (59.99, "60.0 s"), (4000, "1:06:40"), (3600, "1:00:00"), (None, "–"), ("x", "–")],
)
def test_duration(seconds: Any, said: str) -> None:
    assert html.duration(seconds) == said


def test_leaves_are_dotted_names() -> None:
    tree = {"a": {"b": 1, "c": {"d": True}}, "e": [1, None, "x"], "f": {}, "g": None}
    assert list(html.leaves(tree)) == [("a.b", "1"), ("a.c.d", "true"), ("e", "1, , x"), ("f", "{}"), ("g", "")]


# --- data ------------------------------------------------------------------------------------------------------------


def test_shown_escapes_and_isolates() -> None:
    assert html.shown("en", "<b>&\"'") == '<bdi dir="auto">&lt;b&gt;&amp;&#34;&#39;</bdi>'
    assert html.shown("en", ["a", 1, False]) == '<bdi dir="auto">a, 1, false</bdi>'


@pytest.mark.parametrize("code", [0x202E, 0x2066, 0x0, 0x1B, 0x200B, 0xFEFF, 0xD800, 0x2028, 0xE000])
def test_shown_marks_characters_that_hide_or_turn_others_round(code: int) -> None:
    assert html.shown("en", f"a{chr(code)}b") == (f'<bdi dir="auto">a<span class="hidden">U+{code:04X}</span>b</bdi>')
    assert html.label(f"a{chr(code)}b") == "a\ufffdb"


@pytest.mark.parametrize("text", ["a\tb\nc", "医生\u3000你好", "10\u00a0mg", "👩\u200d⚕️", "می\u200cخواهم"])
def test_shown_leaves_blanks_and_joined_letters(text: str) -> None:
    assert html.shown("en", text) == f'<bdi dir="auto">{text}</bdi>'


def test_shown_marks_a_joiner_after_ascii_or_at_the_start() -> None:
    assert html.shown("en", "\u200da\u200db").count("U+200D") == 2


@pytest.mark.parametrize(("language", "rest"), [("en", "… 1,200 more characters"), ("zh", "…… 另有 1,200 字符")])
def test_shown_cuts_and_counts_the_rest(language: Language, rest: str) -> None:
    cut = html.shown(language, "字" * 1500, limit=300)
    assert cut == f'<bdi dir="auto">{"字" * 300}</bdi> <span class="more">{rest}</span>'
    assert html.shown(language, "字" * 300, limit=300) == f'<bdi dir="auto">{"字" * 300}</bdi>'


def test_label_is_cut() -> None:
    assert html.label("x" * 1000) == "x" * html.MAX_NAME_CHARS
