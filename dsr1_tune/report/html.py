"""Rendering of pages: templates with their texts and style, numbers for people, and data escaped as text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsr1_tune.report.catalogue import Catalogue, Language

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

MAX_NAME_CHARS = 300
_FOLDER = Path(__file__).parent
_TEXTS = Catalogue.beside(__file__)


def render(template: Path, texts: Catalogue, language: Language, /, **values: Any) -> str:
    """A page from its template.

    In an HTML template no value is anything but text, unless it is Markup; a value that is not given is an error.
    Templates have `t(key, ...)` and `named(group, name)` for the catalogue's texts, `lang`, `style`, and the filters
    `number`, `share`, `shown`, `label` and `duration`.
    """
    return _template(template, texts, language).render(**values)


@lru_cache
def _template(template: Path, texts: Catalogue, language: Language) -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    is_html = template.name.endswith(".html.j2")
    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not is_html,
    )
    environment.filters |= {
        "number": number,
        "share": partial(share, language),
        "shown": partial(shown, language),
        "label": label,
        "duration": duration,
    }
    environment.globals |= {
        "t": partial(text, texts, language) if is_html else lambda key, **values: texts.say(key, language, **values),
        "named": partial(texts.named, language=language),
        "lang": "zh-Hans" if language == "zh" else "en",
        "style": Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
    }
    return environment.get_template(template.name)


def text(texts: Catalogue, language: Language, key: str, /, **values: Any) -> Markup:
    """A text of a catalogue with values in it; they are escaped unless they are Markup."""
    from markupsafe import escape

    return escape(texts.agreeing(key, language, values)).format(**values)


def as_text(value: Any) -> str:
    """A value as a reader expects it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(as_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def leaves(
    tree: Mapping[str, Any], prefix: str = "", told: Callable[[Any], Any] = as_text
) -> Iterator[tuple[str, Any]]:
    """Nested settings as (dotted name, value)."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.", told)
        else:
            yield f"{prefix}{name}", told(value)


def number(value: Any) -> str:
    """12345 → 12,345; None → –."""
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) and not value.is_integer() else f"{int(value):,}"


def share(language: Language, value: float) -> str:
    """0.9134 → 91.3 %; what is there is never shown as nothing, and what is not whole never as all."""
    percent = value * 100
    space = "" if language == "zh" else "\u202f"
    if 0 < percent < 0.1:
        return f"< 0.1{space}%"
    if 99.9 < percent < 100:
        return f"> 99.9{space}%"
    return f"{percent:.1f}{space}%"


def duration(seconds: Any) -> str:
    """75.3 → 1:15; 4000 → 1:06:40; 3.21 → 3.2 s; what is no number → –."""
    if not isinstance(seconds, (int, float)):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown(language: Language, value: Any, limit: int = MAX_NAME_CHARS) -> Markup:
    """A text from the data: cut, escaped, visible, and unable to change the direction of the text beside it."""
    from markupsafe import Markup

    whole = value if isinstance(value, str) else as_text(value)
    cut = whole[:limit]
    rest = Markup("")
    if len(cut) < len(whole):
        rest = Markup(' <span class="more">{}</span>').format(
            text(_TEXTS, language, "more", more=number(len(whole) - limit))
        )
    return Markup('<bdi dir="auto">{}</bdi>').format(Markup("").join(_visible(cut))) + rest


def _visible(text: str) -> Iterator[str]:
    """The text escaped, with a mark in place of every character that hides, or that turns its neighbours round."""
    from markupsafe import Markup, escape

    start = 0
    for position, character in enumerate(text):
        if _is_hidden(character, text[position - 1] if position else ""):
            yield escape(text[start:position])
            yield Markup('<span class="hidden">U+{}</span>').format(f"{ord(character):04X}")
            start = position + 1
    yield escape(text[start:])


def label(text: str) -> str:
    """A name as an attribute holds it, where there is no place for marks."""
    return "".join("\ufffd" if _is_hidden(character, "") else character for character in text[:MAX_NAME_CHARS])


def _is_hidden(character: str, before: str) -> bool:
    if character.isprintable() or character in "\n\t\u3000\u00a0":
        return False
    if character in "\u200c\u200d":  # they join emoji and Persian letters; after ASCII they only hide
        return not before or before.isascii()
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
