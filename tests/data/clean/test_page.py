"""The page is whole, needs nothing else, shows every number it is given, and shows data as text."""

from __future__ import annotations

import copy
import random
import re
from typing import Any

import pytest

from dsr1_tune.data.clean.page import MAX_EXCERPT_CHARS, MAX_FINDINGS, TEXTS, render
from dsr1_tune.data.rules.codes import MEANINGS, meaning
from tests.report.conftest import Page

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


def section(html: str, name: str) -> str:
    return Page(html).section(name)


@pytest.mark.parametrize("language", LANGUAGES)
def test_page_needs_nothing_else(language):
    html = render(FACTS, language)
    page = Page(html)
    assert [name for name, count in page.figures if not name.strip() or count < 1] == [] and len(page.figures) == 4
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src", "action", "srcset")]
    assert {link for link in links if not link.startswith("#")} == {"duplicates.jsonl"}
    assert "url(" not in html and "@import" not in html and "http" not in html.replace("http-equiv", "")
    # Each link within the page leads somewhere.
    ids = {value for name, value in page.attributes if name == "id"}
    assert {link[1:] for link in links if link.startswith("#")} == ids
    assert html.startswith("<!doctype html>\n<html lang=") and html.encode("utf-8")
    assert "prefers-color-scheme: dark" in html and "@media print" in html and "width=device-width" in html


def test_page_says_what_became_of_the_rows():
    html = render(FACTS, "en")
    text = Page(html).text
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


def test_page_speaks_chinese():
    html = render(FACTS, "zh")
    assert '<html lang="zh-Hans">' in html
    assert "90.0%" in html
    assert "几乎相同的对话已在别处出现" in section(html, "reasons")
    # Nothing of ours is left in English, but names, codes and what the data says.
    english = {text["en"] for text in TEXTS.texts.values() if "{" not in text["en"] and " " in text["en"]}
    assert [text for text in english if text in html] == []


def test_findings_name_what_matters():
    said = section(render(FACTS, "en"), "findings")
    assert "b.csv breaks off or is broken inside" in said
    assert "Of b.csv only 21.1 % is kept" in said and "Of a.json" not in said
    assert "a.json mixes several formats: Alpaca (11,000), ShareGPT (345)" in said
    assert "score fit was switched off for English: no better than chance" in said
    assert "3 rows give different short answers" in said
    assert "near_duplicate is the reason for 81.0 %" in said
    counted = {**FACTS, "personal_data": {**FACTS["personal_data"], "action": "count"}}
    assert "44 pieces of personal data, only counted" in section(render(counted), "findings")
    assert "personal data" not in said
    many = {"files": [{"file": f"{n}.json", "is_damaged": True, "num_rows": 1, "num_kept": 1} for n in range(99)]}
    assert section(render(many), "findings").count("breaks off") == MAX_FINDINGS
    assert "Nothing stands out." in section(render({"num_rows": 1, "num_kept": 1}), "findings")


def test_counts_that_do_not_add_up_are_reported():
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


def test_judge_cut_off_is_drawn_where_it_is():
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


def test_judge_histogram_without_numbers_is_named_without_them():
    facts = copy.deepcopy(FACTS)
    facts["judge"]["scores"]["fit"]["zh"] |= {"auc": None, "cut_off": None}
    labels = [label for label in Page(render(facts)).values("aria-label") if "AUC" in label]
    assert labels == ["fit: AUC –, cut-off –"]
    assert "fit: AUC 0.981, cut-off 0.375" in Page(render(FACTS)).values("aria-label")


def test_histogram_that_is_cut_says_so():
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
def test_page_shows_data_as_text(language):
    facts = _with_every_text(FACTS, HOSTILE)
    html = render(facts, language)
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "&lt;script&gt;" in html and "{{ 7*7 }}" in html
    text = page.text
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


def test_page_leaves_joined_emoji_and_ideographic_blanks():
    example = {"file": "a", "line": 1, "detail": "x", "question": "👩\u200d⚕️ 医生\u3000你好", "answer": "a\u200db"}
    html = render({"num_rows": 1, "dropped": {"refusal": 1}, "examples": {"refusal": [example]}})
    assert "👩\u200d⚕️ 医生\u3000你好" in html
    assert html.count("U+200D") == 1  # after an ASCII letter it only hides


def test_examples_are_cut_and_the_rest_counted():
    long = "字" * 1_500
    example = {"file": "a", "line": 1, "detail": long, "question": long, "answer": long, "path": long}
    html = render({"num_rows": 1, "dropped": {"refusal": 1}, "examples": {"refusal": [example] * 9}})
    assert html.count("字" * MAX_EXCERPT_CHARS) == 4 * 3  # three examples, whatever is given
    assert "字" * (MAX_EXCERPT_CHARS + 1) not in html
    assert "1,300 more characters" in html


SHOWN_IN = {
    "num_rows": {"header", "reasons"},
    "num_kept": {"header", "lengths"},
    "num_merged": {"header"},
    "num_dropped": {"header"},
    "utilisation": set(),
    "kinds": {"header"},
    "stages": {"stages"},
    "dropped": {"reasons", "findings"},
    "noted": {"noted"},
    "mended": {"mended"},
    "examples": {"reasons"},
    "files": {"files", "findings"},
    "languages": {"languages"},
    "lengths": {"lengths"},
    "personal_data": {"personal"},
    "duplicates": {"duplicates", "findings"},
    "contamination": {"contamination", "findings"},
    "judge": {"judge", "findings"},
    "split": {"split"},
    "settings": {"settings"},
    "seed": {"settings"},
}
SECTIONS = (
    *("findings", "stages", "reasons", "files", "lengths", "languages", "personal", "duplicates", "contamination"),
    *("judge", "split", "noted", "mended", "settings"),
)


def parts(html: str) -> dict[str, str]:
    """The page's parts, in their order: the header and every section."""
    page = Page(html)
    assert tuple(re.findall(r'<section id="(\w+)">', html)) == SECTIONS
    return {"header": page.part("header"), **{name: page.section(name) for name in SECTIONS}}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", [name for name in FACTS if name not in ("schema", "version")])
def test_page_without_one_fact_changes_only_what_shows_it(name, language):
    whole = parts(render(FACTS, language))
    for facts in ({**FACTS, name: None}, {key: value for key, value in FACTS.items() if key != name}):
        left = parts(render(facts, language))
        assert {part for part in whole if left[part] != whole[part]} == SHOWN_IN[name]


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
def test_page_shows_what_is_left_when_any_facts_are_missing(share):
    """Take values away, or make them null, at any depth: what is left is shown, and nothing else."""
    draw = random.Random(7)
    for _ in range(8):
        facts = _thinned(FACTS, share, draw)
        html = render(facts)
        shown = parts(html)
        assert "None" not in re.sub(r"None was found\.", "", " ".join(shown.values())) and "nan" not in html
        for name, place in {"dropped": "reasons", "noted": "noted", "mended": "mended"}.items():
            for code, number in (facts.get(name) or {}).items():
                assert f"{code} {meaning(code, 'en')} {number or 0:,}".replace("  ", " ") in shown[place]
        for stage in facts.get("stages") or ():
            assert f"{stage.get('num_in') or 0:,}" in shown["stages"]
            assert f"{stage.get('num_out') or 0:,}" in shown["stages"]
        for file in facts.get("files") or ():
            assert f"{file.get('num_rows') or 0:,} {file.get('num_kept') or 0:,}" in shown["files"]
            assert (file.get("file") or "") in shown["files"]
        kept = [(code, number) for code, number in (facts.get("languages") or {}).items() if number]
        assert all(f"{number:,}" in shown["languages"] for _, number in kept)
        lengths = facts.get("lengths") or {}
        drawn = sum(_is_drawn(lengths.get(name)) for name in ("question", "answer", "conversation"))
        assert shown["lengths"].count("median") == drawn
        absent = {name: said for name, (place, said) in ABSENT.items() if not facts.get(name)}
        assert all(said in shown[ABSENT[name][0]] for name, said in absent.items()), absent
        present = {name for name in ("contamination", "judge", "split", "duplicates") if facts.get(name)}
        assert not [name for name in present if ABSENT[name][1] in shown[ABSENT[name][0]]]


ABSENT = {
    "stages": ("stages", "were not recorded"),
    "dropped": ("reasons", "No row fell out"),
    "lengths": ("lengths", "not measured"),
    "personal_data": ("personal", "not looked for"),
    "duplicates": ("duplicates", "not looked for"),
    "contamination": ("contamination", "No evaluation files were given"),
    "judge": ("judge", "did not run"),
    "split": ("split", "not split"),
    "mended": ("mended", "Nothing needed mending"),
}
"""Where a fact is missed, and what is said in its place."""


def _is_drawn(lengths: Any) -> bool:
    counts, edges = (lengths or {}).get("counts") or (), (lengths or {}).get("edges") or ()
    return bool(counts) and len(edges) == len(counts) + 1


def _thinned(value: Any, share: float, draw: random.Random) -> Any:
    if isinstance(value, dict):
        left = {key: item for key, item in value.items() if draw.random() > share / 2}
        return {key: None if draw.random() < share / 2 else _thinned(item, share, draw) for key, item in left.items()}
    if isinstance(value, list):
        return [_thinned(item, share, draw) for item in value if draw.random() > share / 2]
    return value
