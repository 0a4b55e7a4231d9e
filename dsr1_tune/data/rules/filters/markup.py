"""The rules about markup: tags of a web page, and template placeholders such as {{name}}."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Action, Meaning, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import ends, quoted, view
from dsr1_tune.text.amount import amount

_TABLE = PhraseTable(__file__)


class HtmlMarkup(RuleSettings):
    """Answers with the markup of a web page, where nobody asked for HTML."""

    max_tags: Annotated[int, Field(ge=0)] = 1
    """So many tags and entities such as &nbsp; are let pass."""


class TemplatePlaceholder(RuleSettings):
    """Text with placeholders such as {{name}}: kept, but said."""

    action: Action = "warn"
    """warn keeps the row with a remark; templates are often meant."""


def html_markup(row: Row, settings: HtmlMarkup) -> Row | Drop:
    """Drop an answer with the markup of a web page, unless the conversation is about markup or code."""
    seen = view(row)
    for text in seen.answers:
        if b"<" not in text.signs and b"&" not in text.signs:
            continue
        found = _TABLE.tag.findall(_TABLE.code_span.sub(" ", ends(text.content)))
        if len(found) > settings.max_tags and not _TABLE.about_markup.search(seen.asked):
            shown = ", ".join(dict.fromkeys(found))
            fix = "take the text out of its markup, or raise html_markup.max_tags"
            detail = f"{amount(len(found), 'tag')} of a web page: {quoted(shown)}"
            return Drop("html_markup", detail, fix, text.message.path)
    return row


def template_placeholder(row: Row, settings: TemplatePlaceholder) -> Row | Drop:
    """Say that a text holds a placeholder such as {{name}}, which may be meant to be filled in."""
    for text in view(row).texts:
        if b"{" in text.signs and b"{{" in text.data and text.message.role != "tool":
            names = list(dict.fromkeys(_TABLE.placeholder.findall(text.content)))
            if names:
                detail = f"holds {', '.join(names[:5])}"
                fix = "fill it in, or leave it where it is meant"
                return Drop("template_placeholder", detail, fix, text.message.path)
    return row


HTML_MARKUP = Rule(
    "html_markup", html_markup, Meaning("the text holds the markup of a web page", "文本含有网页标记"), HtmlMarkup
)
TEMPLATE_PLACEHOLDER = Rule(
    "template_placeholder",
    template_placeholder,
    Meaning("the text holds a placeholder such as {{name}}", "文本含有 {{name}} 一类的占位符"),
    TemplatePlaceholder,
    reads_questions=True,
)
