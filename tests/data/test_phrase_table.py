"""Tables of phrases: texts, lists of alternatives, pieces and references."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import dsr1_tune.data
from dsr1_tune.data.phrase_table import PhraseTable, load_yaml

TABLE = """
words: ['yes', 'no', 是]
animal: [cat, dog]
tail: s?
plain: <<animal>><<tail>>
choices:
  - <<animal>> food
  - - bird
    - ' seed'
  - fish|frog
any_case: [(?i)fish, bird seed]
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "module.yaml").write_text(TABLE, encoding="utf-8")
    return PhraseTable(str(tmp_path / "module.py"))


def test_phrase_table_gives_entries_as_they_are(table):
    assert table["words"] == ["yes", "no", "是"]
    with pytest.raises(KeyError):
        table["other"]


def test_phrase_table_joins_alternatives_and_follows_references(table):
    assert table.text("animal") == "cat|dog"
    assert table.text("plain") == "(?:cat|dog)s?"
    assert table.text("choices") == "(?:cat|dog) food|bird seed|fish|frog"


def test_phrase_table_compiles_patterns(table):
    assert table.plain.fullmatch("dogs") and not table.plain.fullmatch("dogs food")
    assert table.any_case.fullmatch("BIRD SEED")
    assert table.plain is table.plain
    with pytest.raises(AttributeError):
        table.other.match("")


def texts_in(entry):
    return [text for part in entry for text in texts_in(part)] if isinstance(entry, list) else [entry]


def test_phrase_table_files_hold_texts_alone():
    """A bare yes, no or 404 would be read as something else than a text."""
    folder = Path(dsr1_tune.data.__file__).parent
    files = [*folder.glob("rules/filters/*.yaml"), *folder.glob("privacy/*.yaml")]
    assert len(files) > 9
    for file in files:
        assert file.with_suffix(".py").exists(), file
        for name, entry in load_yaml(file).items():
            texts = [text for words in entry.values() for text in words] if isinstance(entry, dict) else texts_in(entry)
            assert texts and all(isinstance(text, str) for text in texts), (file.name, name)


def test_phrase_table_has_every_pattern_that_modules_ask_for():
    """Patterns are compiled when they are first asked for: here all are."""
    package = Path(dsr1_tune.data.__file__).parent
    num_asked = 0
    for file in sorted(package.rglob("*.py")):
        place = ".".join(file.relative_to(package).with_suffix("").parts)
        for table, name in re.findall(r"(?<!\w)(_?TABLE)\.(\w+)", file.read_text(encoding="utf-8")):
            module = importlib.import_module(f"dsr1_tune.data.{place}")
            found = getattr(getattr(module, table), name)
            assert isinstance(found, re.Pattern) or name in ("text", "filled"), (file.name, name)
            num_asked += isinstance(found, re.Pattern)
    assert num_asked > 100
