"""The rules that come with the toolkit, and the settings of all; a new rule is a file in filters/ and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import create_model

from dsr1_tune.config import ConfigSection
from dsr1_tune.data.rules.filters.advertisement import ADVERTISEMENT
from dsr1_tune.data.rules.filters.blocked_word import BLOCKED_WORD
from dsr1_tune.data.rules.filters.boilerplate import BOILERPLATE
from dsr1_tune.data.rules.filters.encoding import ENCODING, REPLACEMENT_CHARACTER
from dsr1_tune.data.rules.filters.lengths import LENGTHS
from dsr1_tune.data.rules.filters.markup import HTML_MARKUP, TEMPLATE_PLACEHOLDER
from dsr1_tune.data.rules.filters.odd_characters import ODD_CHARACTERS
from dsr1_tune.data.rules.filters.placeholder_answer import PLACEHOLDER_ANSWER
from dsr1_tune.data.rules.filters.refusal import REFUSAL
from dsr1_tune.data.rules.filters.repetition import REPEATED_LINES, REPEATED_TEXT, REPEATED_TURN
from dsr1_tune.data.rules.filters.restated_question import ANSWER_REPEATS_QUESTION, ANSWER_RESTATES_QUESTION
from dsr1_tune.data.rules.filters.truncated_answer import TRUNCATED_ANSWER
from dsr1_tune.data.rules.filters.wrong_language import WRONG_LANGUAGE
from dsr1_tune.data.rules.rule import Rule

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        ENCODING,
        LENGTHS,
        PLACEHOLDER_ANSWER,
        REPLACEMENT_CHARACTER,
        REPEATED_TURN,
        HTML_MARKUP,
        ODD_CHARACTERS,
        ANSWER_REPEATS_QUESTION,
        REFUSAL,
        ANSWER_RESTATES_QUESTION,
        REPEATED_LINES,
        REPEATED_TEXT,
        WRONG_LANGUAGE,
        ADVERTISEMENT,
        BOILERPLATE,
        TRUNCATED_ANSWER,
        BLOCKED_WORD,
        TEMPLATE_PLACEHOLDER,
    )
}
"""Every rule by its name, in the order in which they run: those that repair text first, then the cheap ones."""

if TYPE_CHECKING:

    class Rules(ConfigSection):
        """The settings of every rule, by the rule's name."""

        def __getattr__(self, name: str) -> Any: ...
else:
    Rules = create_model(
        "Rules",
        __base__=ConfigSection,
        __module__=__name__,
        __doc__="The settings of every rule, by the rule's name.",
        **{name: (rule.settings, rule.settings()) for name, rule in RULES.items()},
    )
