"""The registry: every rule once, in its order, with the settings that packs use."""

from __future__ import annotations

import importlib
import pickle
import pkgutil

import pytest

from dsr1_tune.data.rules import filters
from dsr1_tune.data.rules.registry import RULES, Rules
from dsr1_tune.data.rules.rule import Rule, RuleSettings


def test_registry_lists_every_rule_of_the_folder():
    modules = [
        importlib.import_module(f"{filters.__name__}.{found.name}") for found in pkgutil.iter_modules(filters.__path__)
    ]
    defined = {id(value) for module in modules for value in vars(module).values() if isinstance(value, Rule)}
    assert defined == {id(rule) for rule in RULES.values()}


def test_registry_runs_repairs_first_and_remarks_last():
    assert next(iter(RULES)) == "encoding"
    assert list(RULES)[-1] == "template_placeholder"


def test_rules_are_the_settings_of_every_rule():
    assert list(Rules.model_fields) == list(RULES)
    assert all(type(getattr(Rules(), name)) is rule.settings for name, rule in RULES.items())
    assert pickle.loads(pickle.dumps(Rules(lengths={"max_chars": 9}))).lengths.max_chars == 9
    with pytest.raises(ValueError, match="no_such_rule"):
        Rules(no_such_rule="off")


@pytest.mark.parametrize("name", RULES)
def test_rule_keeps_a_plain_row(name, record):
    row = record("Why is exercise good?", "It strengthens the heart and improves sleep.")
    rule = RULES[name]
    assert issubclass(rule.settings, RuleSettings) and rule.settings.__doc__
    assert rule.check(row, rule.settings()) is row
