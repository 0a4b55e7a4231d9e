"""Tables of phrases: texts, lists of alternatives, pieces and references."""

from __future__ import annotations

import re

import pytest

from dsr1_tune.data.phrase_table import PhraseTable

TABLE = """
words: [yes, 'no', 是]
animal: [cat, dog]
tail: s?
plain: <<animal>><<tail>>
choices:
  - <<animal>> food
  - - bird
    - ' seed'
  - fish|frog
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
    assert table.pattern("plain").fullmatch("dogs") and not table.pattern("plain").fullmatch("dogs food")
    assert table.pattern("choices", re.I).fullmatch("BIRD SEED")
