"""Every catalogue of texts: whole in both languages, and of exactly the keys that are said."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

import dsr1_tune
from dsr1_tune.report import html
from dsr1_tune.report.catalogue import Catalogue

PACKAGE = Path(dsr1_tune.__file__).parent
FILES = sorted([*PACKAGE.rglob("*texts.yaml"), PACKAGE / "runs" / "watch" / "alarms.yaml"])
HAN = re.compile(r"[\u4e00-\u9fff]")
NAME = r"""["'](\w+)["']"""
SAID = re.compile(rf"\b(?:t|missing|text|say|TEXTS\.text|TEXTS\.say)\({NAME}[,)]|html\.text\(\w+, \w+, {NAME}")
GROUP = re.compile(rf"\bnamed\({NAME},|[\"'](\w+_)[\"'] ~ |f[\"'](\w+_)\{{")
"""How a key that is put together begins: named("stage", ...), "state_" ~ row.state, f"told_{{name}}"."""

catalogues = pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())


def sources(file: Path) -> str:
    """The code and the templates that say a catalogue's texts: they stand beside it."""
    beside = [one for one in file.parent.iterdir() if one.suffix in (".py", ".j2")]
    texts = [one.read_text(encoding="utf-8") for one in beside]
    return "".join(text for one, text in zip(beside, texts, strict=True) if one.suffix == ".j2" or "TEXTS" in text)


def test_catalogues_are_found() -> None:
    stages = {file.parent.relative_to(PACKAGE).as_posix() for file in FILES}
    assert stages == {"adapt", "data/clean", "export", "export/comparison", "report", "runs/report", "runs/watch"}


@catalogues
def test_catalogue_has_every_text_in_both_languages_with_the_same_placeholders(file: Path) -> None:
    for key, texts in Catalogue(file).texts.items():
        assert isinstance(key, str) and set(texts) == {"en", "zh"}, key
        assert all(isinstance(text, str) and text.strip() for text in texts.values()), key
        english, chinese = (
            sorted(name for _, name, _, _ in Formatter().parse(text) if name) for text in texts.values()
        )
        assert english == chinese, key
        assert not HAN.search(texts["en"]), key


@catalogues
def test_catalogue_has_the_keys_that_are_said_and_no_others(file: Path) -> None:
    keys, source = set(Catalogue(file).texts), sources(file)
    said = {first or second for first, second in SAID.findall(source)}
    groups = {next(filter(None, found)).removesuffix("_") + "_" for found in GROUP.findall(source)}
    quoted = set(re.findall(NAME, source))
    if (charts := file.with_name("curves.yaml")).exists():
        drawn = set(re.findall(r"\b(?:chart|line)_\w+", charts.read_text(encoding="utf-8")))
        said, quoted = said | drawn, quoted | drawn
    assert said <= keys | {group.removesuffix("_") for group in groups}
    assert {key for key in keys if key not in quoted and not key.startswith(tuple(groups))} == set()


def test_catalogue_key_may_stand_once() -> None:
    for file in FILES:
        keys = re.findall(r"^(\S.*?): ?(?:\{|$)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(keys) == len(set(keys)) == len(Catalogue(file).texts), file


def test_catalogue_says_a_text_with_its_values(tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    file.write_text(
        'rows: {en: "{rows} rows", zh: "{rows} 行"}\nstage_read: {en: "Read", zh: "读取"}\n', encoding="utf-8"
    )
    texts = Catalogue.beside(str(tmp_path / "page.py"))
    assert texts == Catalogue(file)
    assert texts.say("rows", "en", rows=3) == "3 rows" and texts.say("rows", "zh", rows=3) == "3 行"
    assert texts.text("rows", "en") == "{rows} rows"
    with pytest.raises(KeyError, match="rows"):
        texts.say("rows", "en")


def test_catalogue_lets_words_agree_with_their_number(tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    file.write_text('rows: {en: "of {all:row|rows} {bad:is|are} bad", zh: "{all} 行中 {bad} 行"}\n', encoding="utf-8")
    texts = Catalogue(file)
    assert texts.say("rows", "en", all="1", bad=1) == "of 1 row 1 is bad"
    assert texts.say("rows", "en", all="1,001", bad=0) == "of 1,001 rows 0 are bad"
    assert texts.say("rows", "zh", all=1, bad=1) == "1 行中 1 行"
    assert str(html.text(texts, "en", "rows", all="1", bad="<b>")) == "of 1 row &lt;b&gt; are bad"


def test_catalogue_names_the_file_and_the_key_that_it_does_not_have(tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    file.write_text('rows: {en: "rows", zh: "行"}\n', encoding="utf-8")
    with pytest.raises(KeyError, match=r"texts\.yaml has no text 'columns'"):
        Catalogue(file).say("columns", "en")


def test_catalogue_names_what_it_knows_and_leaves_other_names_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    file.write_text('stage_read: {en: "Read", zh: "读取"}\n', encoding="utf-8")
    texts = Catalogue(file)
    assert [texts.named("stage", name, "zh") for name in ("read", "of tomorrow {0}")] == ["读取", "of tomorrow {0}"]


def test_catalogue_reads_its_file_once_and_not_before_it_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    texts = Catalogue(file)
    file.write_text('one: {en: "1", zh: "一"}\n', encoding="utf-8")
    assert texts.say("one", "en") == "1"
    file.unlink()
    assert Catalogue(file).say("one", "zh") == "一"
