"""Every code has one meaning in each language, and a rule's codes come from the rule."""

from __future__ import annotations

import re

import pytest

from dsr1_tune.data.rules.codes import MEANINGS, meaning, register
from dsr1_tune.data.rules.registry import RULES
from dsr1_tune.data.rules.rule import Meaning, Rule
from dsr1_tune.errors import ConfigError


def test_codes_have_a_meaning_in_both_languages():
    assert [code for code, texts in MEANINGS.items() if not re.search(r"[\u4e00-\u9fff]", texts.zh)] == []
    assert [code for code, texts in MEANINGS.items() if not re.match("[a-z]", texts.en)] == []


def test_codes_of_rules_come_from_the_rules():
    of_rules = [code for rule in RULES.values() for code in rule.codes]
    assert len(of_rules) == len(set(of_rules)) == 21
    assert all(MEANINGS[code] == rule.codes[code] for rule in RULES.values() for code in rule.codes)


def test_meaning_of_a_code_in_each_language():
    assert meaning("blocked_word") == meaning("blocked_word", "en") == "the row holds a word of your list"
    assert meaning("blocked_word", "zh") == "含有屏蔽词表中的词"
    assert meaning("too_long") == "the conversation has more tokens than max_tokens"
    assert meaning("nobody_explained_it", "zh") == ""


def test_register_refuses_a_code_of_the_toolkit():
    rule = Rule("mine", lambda row, settings: row, {"too_long": Meaning("mine", "我的")})
    with pytest.raises(ConfigError, match="the rule mine uses too_long"):
        register(rule)
    assert MEANINGS["too_long"].en == "the conversation has more tokens than max_tokens"
