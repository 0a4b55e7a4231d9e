"""The page is whole, needs nothing else, shows every number it is given, and shows data as text."""

from __future__ import annotations

import copy
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from dsr1_tune.data.clean.page import MAX_EXCERPT_CHARS, MAX_FINDINGS, TEMPLATE, render
from dsr1_tune.data.clean.texts import TEXTS
from dsr1_tune.data.rules.codes import MEANINGS

LANGUAGES = ("en", "zh")
LENGTHS = {"edges": [1, 10, 100, 1000], "counts": [2, 7, 1], "median": 40, "p95": 300, "max": 990}
EDGES = [0.0, 0.25, 0.5, 0.75, 1.0]
FACTS: dict[str, Any] = {
    "schema": 1,
    "version": "0.1.0",
    "num_rows": 12_345,
    "num_kept": 11_111,
    "num_merged": 1_000,
    "num_dropped": 234,
    "utilisation": 0.9,
    "stages": [
        {"stage": "read", "num_in": 12_345, "num_out": 12_340},
        {"stage": "rules", "num_in": 12_340, "num_out": 12_111},
        {"stage": "duplicates", "num_in": 12_111, "num_out": 11_111},
    ],
    "dropped": {"near_duplicate": 1_000, "refusal": 229, "json_malformed": 5},
    "noted": {"template_placeholder": 77},
    "mended": {"encoding": 66},
    "examples": {
        "refusal": [
            {
                "file": "a.json",
                "line": 230,
                "index": 17,
                "path": "$.output",
                "detail": "the answer refuses: 'I cannot'",
                "question": "Why?",
                "answer": "I cannot say.",
            }
        ]
    },
    "kinds": {"record": 11_000, "preference": 111},
    "files": [
        {
            "file": "a.json",
            "layout": "JSON",
            "encoding": "gb18030",
            "format": "Alpaca",
            "formats": {"Alpaca": 11_000, "ShareGPT": 345},
            "num_rows": 11_345,
            "num_kept": 10_900,
            "num_dropped": 445,
            "weight": 0.7,
            "is_damaged": False,
        },
        {"file": "b.csv", "layout": "CSV", "num_rows": 1_000, "num_kept": 211, "weight": 1.0, "is_damaged": True},
    ],
    "languages": {"zh": 8_000, "latin": 3_111},
    "lengths": {
        "unit": "tokens",
        "tokenizer": "some/model",
        "num_sampled": 2_000,
        "question": LENGTHS,
        "answer": LENGTHS,
        "conversation": LENGTHS,
    },
    "personal_data": {"action": "redact", "kinds": {"email": {"num_found": 44, "num_rows": 39}}},
    "duplicates": {
        "num_exact": 0,
        "num_near": 1_000,
        "num_contradictory": 3,
        "num_groups": 555,
        "largest": [{"group": 17, "num_rows": 41, "kept": "a.json:88", "text": "谢谢医生"}],
    },
    "contamination": {"files": ["eval.jsonl"], "num_rows": 23},
    "judge": {
        "num_dropped": 9,
        "scores": {
            "fit": {
                "zh": {
                    "num_scored": 900,
                    "num_unscored": 10_211,
                    "auc": 0.981,
                    "cut_off": 0.375,
                    "histogram": {"edges": EDGES, "true": [0, 1, 4, 5], "shuffled": [5, 4, 1, 0]},
                    "switched_off": None,
                },
                "en": {"num_scored": 100, "num_unscored": 0, "auc": 0.5, "switched_off": "no better than chance"},
            }
        },
    },
    "split": {"num_train": 10_000, "num_eval": 1_111, "strata": [{"name": "zh", "num_train": 7, "num_eval": 8}]},
    "settings": {"rules": "medical", "dedup": {"similarity": 0.8}},
    "seed": 42,
}
HOSTILE = (
    "</td><script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7*7 }} \u202egnp\u2066\x00\x1b[31m\u200b\ud800"
)


class Page(HTMLParser):
    """The page's elements, attributes and text; complains of tags that are not closed."""

    VOID = frozenset(["meta", "br", "rect", "line", "img", "link"])

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "br":
            self.text.append(" ")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("td", "th", "dt", "dd", "p", "li", "div", "b"):
            self.text.append(" ")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def section(self, html: str, name: str) -> str:
        """The text of one section."""
        found = re.search(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)
        assert found
        return " ".join("".join(Page(found[1]).text).split())


def section(html: str, name: str) -> str:
    return Page(html).section(html, name)


@pytest.mark.parametrize("language", LANGUAGES)
def test_it_needs_nothing_else(language):
    html = render(FACTS, language)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src", "action", "srcset")]
    assert {link for link in links if not link.startswith("#")} == {"duplicates.jsonl"}
    assert "url(" not in html and "@import" not in html and "http" not in html.replace("http-equiv", "")
    # Each link within the page leads somewhere.
    ids = {value for name, value in page.attributes if name == "id"}
    assert {link[1:] for link in links if link.startswith("#")} == ids
    assert html.startswith("<!doctype html>\n<html lang=") and html.encode("utf-8")
    assert "prefers-color-scheme: dark" in html and "@media print" in html and "width=device-width" in html


def test_it_says_what_became_of_the_rows():
    html = render(FACTS, "en")
    text = " ".join("".join(Page(html).text).split())
    assert "90.0 %" in text
    assert "11,111 of 12,345 rows are good; 1,000 repeat another row, 234 fell out" in text
    assert "12,345 read = 11,111 kept + 1,000 merged + 234 dropped" in text
    assert "Rules 12,340 −229 12,111" in section(html, "stages")
    assert "near_duplicate nearly the same conversation stands elsewhere 1,000 8.1" in section(html, "reasons")
    for shown in ("a.json:230", "$.output", "the answer refuses: 'I cannot'", "I cannot say.", "1 of 229 rows"):
        assert shown in section(html, "reasons")
    files = section(html, "files")
    assert "JSON, gb18030: Alpaca (11,000), ShareGPT (345) 11,345 10,900 96.1 % 0.7" in files
    assert "damaged: rows may be lost" in files and "no known format" in files
    assert "In tokens of some/model; a sample of 2,000 rows" in section(html, "lengths")
    assert "median 40 · 95 % below 300 · longest 990" in section(html, "lengths")
    assert "Chinese 8,000 72.0" in section(html, "languages")
    assert "Replaced by typed placeholders." in section(html, "personal") and "email 44 39" in section(html, "personal")
    assert "17 41 a.json:88 谢谢医生" in section(html, "duplicates")
    assert "23 rows held a row of these files" in section(html, "contamination")
    judge = section(html, "judge")
    assert "fit Chinese 900 10,211 0.981 0.375" in judge
    assert "fit English 100 0 0.500 switched off" in judge and "no better than chance" in judge
    assert "10,000 rows to train on, 1,111 held out" in section(html, "split") and "zh 7 8" in section(html, "split")
    assert "template_placeholder the text holds a placeholder such as {{name}} 77" in section(html, "noted")
    assert "encoding 66" in section(html, "mended")
    for shown in ("42", "rules medical", "dedup.similarity 0.8"):
        assert shown in section(html, "settings")
    assert "dsr1-tune 0.1.0" in text


def test_it_speaks_chinese():
    html = render(FACTS, "zh")
    assert '<html lang="zh-Hans">' in html
    assert "90.0%" in html
    assert "几乎相同的对话已在别处出现" in section(html, "reasons")
    # Nothing of ours is left in English, but names, codes and what the data says.
    english = {text["en"] for key, text in TEXTS.items() if "{" not in text["en"] and " " in text["en"]}
    assert [text for text in english if text in html] == []


def test_the_findings_name_what_matters():
    said = section(render(FACTS, "en"), "findings")
    assert "b.csv breaks off or is broken inside" in said
    assert "Of b.csv only 21.1 % is kept" in said and "Of a.json" not in said
    assert "a.json mixes several formats: Alpaca (11,000), ShareGPT (345)" in said
    assert "score fit was switched off for English: no better than chance" in said
    assert "3 rows give different short answers" in said
    assert "near_duplicate is the reason for 81.0 %" in said
    counted = {**FACTS, "personal_data": {**FACTS["personal_data"], "action": "count"}}
    assert "44 pieces of personal data were only counted" in section(render(counted), "findings")
    assert "personal data" not in said
    many = {"files": [{"file": f"{n}.json", "is_damaged": True, "num_rows": 1, "num_kept": 1} for n in range(99)]}
    assert section(render(many), "findings").count("breaks off") == MAX_FINDINGS
    assert "Nothing stands out." in section(render({"num_rows": 1, "num_kept": 1}), "findings")


def test_sums_that_are_wrong_are_said_aloud():
    assert "do not add up" not in render(FACTS)
    assert "do not add up" in render({**FACTS, "num_dropped": 233})


def test_bars_are_to_scale():
    html = render(FACTS)
    kept, merged, lost = re.findall(
        r'class="(\w+)" x="([\d.]+)" width="([\d.]+)"', html[html.index('class="bar tall"') :]
    )[:3]
    assert kept == ("kept", "0", "900.04") or kept == ("kept", "0.0", "900.04")
    assert (merged, lost) == (("merged", "900.04", "81.0"), ("lost", "981.04", "18.96"))
    # 2, 7 and 1 of a histogram's bins; the highest reaches the top.
    chart = html[html.index('<svg class="histogram"') :]
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"/>', chart)[:3]]
    assert heights == pytest.approx([200 / 7, 100, 100 / 7], abs=0.01)


def test_the_cut_off_stands_where_it_is():
    """0.375 lies halfway in the second of four bins, so at 375 of 1000."""
    (x,) = re.findall(r'class="cut" x1="([\d.]+)"', render(FACTS))
    assert float(x) == 375
    uneven = copy.deepcopy(FACTS)
    score = uneven["judge"]["scores"]["fit"]["zh"]
    score["histogram"]["edges"], score["cut_off"] = [0, 10, 20, 100, 1000], 550
    (x,) = re.findall(r'class="cut" x1="([\d.]+)"', render(uneven))
    assert float(x) == 875
    score["switched_off"] = "chance"
    assert 'class="cut"' not in render(uneven)


def test_a_histogram_that_is_cut_says_so():
    cut = {**FACTS, "lengths": {"unit": "characters", "answer": {**LENGTHS, "max": 5_000}}}
    assert ">1k+</span>" in render(cut)
    assert ">1k</span>" in render(FACTS) and "1k+" not in render(FACTS)


def test_shares_are_never_rounded_to_none_or_all():
    tiny = {
        **FACTS,
        "num_rows": 100_000,
        "num_kept": 99_999,
        "num_merged": 0,
        "num_dropped": 1,
        "dropped": {"refusal": 1},
    }
    html = render(tiny)
    assert "&gt; 99.9\u202f%" in html and "&lt; 0.1\u202f%" in html and "100.0" not in section(html, "reasons")


@pytest.mark.parametrize("language", LANGUAGES)
def test_data_is_shown_as_text(language):
    facts = _with_every_text(FACTS, HOSTILE)
    html = render(facts, language)
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "&lt;script&gt;" in html and "{{ 7*7 }}" in html
    text = "".join(page.text)
    hidden = re.findall(r"[\x00-\x08\x0b-\x1f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)
    assert hidden == []
    for mark in ("U+202E", "U+2066", "U+0000", "U+001B", "U+200B", "U+D800"):
        assert mark in text
    assert html.encode("utf-8")


def _with_every_text(value: Any, text: str) -> Any:
    """The same facts with `text` after every text and every name that comes from data."""
    keep = {"unit", "action", "stage"}
    if isinstance(value, dict):
        named = value.keys() & {
            "schema",
            "question",
            "num_rows",
            "action",
            "edges",
            "rules",
            "largest",
            "num_train",
            "unit",
        }
        named |= value.keys() & {"zh", "en", "num_scored", "num_in", "file", "files", "scores", "num_found", "name"}
        return {
            (key if named or key in MEANINGS else f"{key}{text}"): item if key in keep else _with_every_text(item, text)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_with_every_text(item, text) for item in value]
    return value + text if isinstance(value, str) else value


def test_joined_emoji_and_ideographic_blanks_are_no_attack():
    example = {"file": "a", "line": 1, "detail": "x", "question": "👩\u200d⚕️ 医生\u3000你好", "answer": "a\u200db"}
    html = render({"num_rows": 1, "dropped": {"refusal": 1}, "examples": {"refusal": [example]}})
    assert "👩\u200d⚕️ 医生\u3000你好" in html
    assert html.count("U+200D") == 1  # after an ASCII letter it only hides


def test_long_texts_are_cut_and_the_rest_counted():
    long = "字" * 1_500
    example = {"file": "a", "line": 1, "detail": long, "question": long, "answer": long, "path": long}
    html = render({"num_rows": 1, "dropped": {"refusal": 1}, "examples": {"refusal": [example] * 9}})
    assert html.count("字" * MAX_EXCERPT_CHARS) == 4 * 3  # three examples, whatever is given
    assert "字" * (MAX_EXCERPT_CHARS + 1) not in html
    assert "1,300 more characters" in html


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", [name for name in FACTS if name not in ("schema", "version")])
def test_what_is_not_there_is_left_out(name, language):
    for value in ({}, None):
        Page(
            render({**FACTS, name: value} if value is None else {k: v for k, v in FACTS.items() if k != name}, language)
        )


def test_absent_sections_say_so():
    html = render({}, "en")
    assert "No rows were read." in html
    for name, said in {
        "stages": "were not recorded",
        "reasons": "No row fell out",
        "lengths": "not measured",
        "personal": "not looked for",
        "duplicates": "not looked for",
        "contamination": "No evaluation files were given",
        "judge": "did not run",
        "split": "not split",
        "mended": "Nothing needed mending",
        "settings": "not recorded",
    }.items():
        assert said in section(html, name), name


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
def test_any_facts_may_be_missing(share):
    """Take values away, or make them null, at any depth."""
    draw = random.Random(7)
    for _ in range(8):
        Page(render(_thinned(FACTS, share, draw)))


def _thinned(value: Any, share: float, draw: random.Random) -> Any:
    if isinstance(value, dict):
        left = {key: item for key, item in value.items() if draw.random() > share / 2}
        return {key: None if draw.random() < share / 2 else _thinned(item, share, draw) for key, item in left.items()}
    if isinstance(value, list):
        return [_thinned(item, share, draw) for item in value if draw.random() > share / 2]
    return value


def test_every_text_is_in_both_languages_and_is_used():
    holes = {}
    for key, texts in TEXTS.items():
        assert texts.keys() == set(LANGUAGES) and all(texts.values()), key
        holes[key] = [set(re.findall(r"{(\w+)}", texts[language])) for language in LANGUAGES]
        assert holes[key][0] == holes[key][1], key
    source = TEMPLATE.read_text(encoding="utf-8") + TEMPLATE.with_name("report_html.py").read_text(encoding="utf-8")
    used = set(re.findall(r"""\b(?:t|text)\(['"](\w+)['"][,)]""", source))
    assert used <= TEXTS.keys()
    grouped = {key for key in TEXTS if key.startswith(("stage_", "language_", "personal_"))}
    listed = set(re.findall(r'"(\w+)"', source))
    assert TEXTS.keys() - grouped <= used | listed
