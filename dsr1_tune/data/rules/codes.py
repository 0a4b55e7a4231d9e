"""Every code that a Drop can carry, gathered from the rules and from codes.yaml; scripts may rely on them.

The codes of a rule stand with the rule in filters/; those of reading, of duplicates and of other steps in codes.yaml.
"""

from __future__ import annotations

from pathlib import Path

from dsr1_tune.data.phrase_table import load_yaml
from dsr1_tune.data.rules.registry import RULES
from dsr1_tune.data.rules.rule import Meaning, Rule
from dsr1_tune.errors import ConfigError
from dsr1_tune.report.catalogue import Language

_FILE = Path(__file__).with_name("codes.yaml")
MEANINGS: dict[str, Meaning] = {code: Meaning(**texts) for code, texts in load_yaml(_FILE).items()} | {
    code: meaning for rule in RULES.values() for code, meaning in rule.codes.items()
}
"""The meanings of every code; `register` adds those of rules from outside the package."""
_SHIPPED = frozenset(MEANINGS)


def meaning(code: str, language: Language = "en") -> str:
    """What a code means; "" for one that nobody has explained."""
    found = MEANINGS.get(code)
    return getattr(found, language) if found else ""


def register(rule: Rule) -> None:
    """Make the codes of a rule from outside the package known to reports. Raises ConfigError where one is taken."""
    taken = sorted(_SHIPPED.intersection(rule.codes))
    if taken:
        raise ConfigError(f"the rule {rule.name} uses {', '.join(taken)}, a code of the toolkit's own", "rename it")
    MEANINGS.update(rule.codes)
