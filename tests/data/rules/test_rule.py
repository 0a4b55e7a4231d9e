"""What every rule's settings have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsr1_tune.data.rules.rule import RuleSettings


@pytest.mark.parametrize(
    ("given", "action"), [("warn", "warn"), (False, "off"), ({"action": "drop"}, "drop"), ({}, "drop")]
)
def test_rule_settings_read_a_bare_action(given, action):
    settings = RuleSettings.model_validate(given)
    assert settings.action == action
    assert settings.is_idle == (action == "off")


def test_rule_settings_refuse_other_actions():
    with pytest.raises(ValueError, match="'drop', 'warn' or 'off'"):
        RuleSettings.model_validate("sometimes")


def test_rule_settings_resolve_nothing_by_themselves():
    problems: list[str] = []
    assert RuleSettings.resolve({"action": "warn"}, Path(), problems) == {"action": "warn"} and problems == []
