"""As much of Go's text/template as a Modelfile needs, to tell what Ollama will make of one.

Actions: if, else if, else, end, range with an index, variables; fields, texts, numbers; and, eq, len, not, or, slice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|:=|[(),]|[^\s(),]+)')
_SPACE = " \t\r\n"


class GoTemplateError(ValueError):
    """What this reader does not know; Go might."""


def render(template: str, data: Mapping[str, Any]) -> str:
    """What the template makes of `data`. Raises GoTemplateError."""
    body, rest = _block(list(_parts(template)), 0)
    if rest is not None:
        raise GoTemplateError("an end without a beginning")
    return "".join(_run(body, data, {"$": data}))


def _parts(template: str) -> Iterator[str | list[str]]:
    """Texts, and the words of each action; `{{- ` and ` -}}` take the white space beside them."""
    place, is_trimmed = 0, False
    for found in _ACTION.finditer(template):
        text = template[place : found.start()]
        text = text.lstrip(_SPACE) if is_trimmed else text
        yield text.rstrip(_SPACE) if found[1] else text
        yield _TOKEN.findall(found[2])
        place, is_trimmed = found.end(), bool(found[3])
    yield template[place:].lstrip(_SPACE) if is_trimmed else template[place:]


@dataclass
class _If:
    branches: list[tuple[list[str] | None, list[Any]]] = field(default_factory=list)


@dataclass
class _Range:
    names: list[str]
    over: list[str]
    body: list[Any]


def _block(parts: list[Any], depth: int) -> tuple[list[Any], list[str] | None]:
    """Take parts from the front up to the action that closes this block, which is returned with them."""
    body: list[Any] = []
    while parts:
        part = parts.pop(0)
        if isinstance(part, str) or not part or part[0] not in ("if", "range", "else", "end"):
            body.append(part)
        elif part[0] in ("else", "end"):
            return body, part
        elif part[0] == "if":
            body.append(_conditions(parts, part[1:], depth + 1))
        else:
            names, over = _declared(part[1:])
            inner, _ = _block(parts, depth + 1)
            body.append(_Range(names, over, inner))
    if depth:
        raise GoTemplateError("a block without an end")
    return body, None


def _conditions(parts: list[Any], condition: list[str] | None, depth: int) -> _If:
    found = _If()
    while True:
        body, closing = _block(parts, depth)
        found.branches.append((condition, body))
        if closing is None or closing[0] == "end":
            return found
        condition = closing[2:] if closing[1:2] == ["if"] else None


def _declared(words: list[str]) -> tuple[list[str], list[str]]:
    """`$i, $m := .Messages` → ([$i, $m], [.Messages])."""
    if ":=" not in words:
        return [], words
    place = words.index(":=")
    return [word for word in words[:place] if word != ","], words[place + 1 :]


def _run(body: Sequence[Any], dot: Any, names: dict[str, Any]) -> Iterator[str]:
    for part in body:
        if isinstance(part, str):
            yield part
        elif isinstance(part, _If):
            for condition, inner in part.branches:
                if condition is None or _is_true(_value(condition, dot, names)):
                    yield from _run(inner, dot, dict(names))
                    break
        elif isinstance(part, _Range):
            for index, item in enumerate(_value(part.over, dot, names)):
                pair = (item,) if len(part.names) == 1 else (index, item)
                yield from _run(part.body, item, names | dict(zip(part.names, pair, strict=False)))
        elif ":=" in part:
            (name,), words = _declared(part)
            names[name] = _value(words, dot, names)
        else:
            yield str(_value(part, dot, names))


def _is_true(value: Any) -> bool:
    return bool(value)


def _value(words: Sequence[str], dot: Any, names: Mapping[str, Any]) -> Any:
    """The value of `eq .Role "user"` and the like."""
    values, rest = _operands(list(words), dot, names)
    if rest:
        raise GoTemplateError(f"{' '.join(words)}: cannot be read")
    return values


def _operands(words: list[str], dot: Any, names: Mapping[str, Any]) -> tuple[Any, list[str]]:
    if not words:
        raise GoTemplateError("an empty action")
    first = words.pop(0)
    if first not in _FUNCTIONS:
        value = _operand(first, words, dot, names)
        return value, words
    arguments = []
    while words and words[0] != ")":
        arguments.append(_operand(words.pop(0), words, dot, names))
    return _FUNCTIONS[first](*arguments), words


def _operand(word: str, words: list[str], dot: Any, names: Mapping[str, Any]) -> Any:
    if word == "(":
        value, rest = _operands(words, dot, names)
        if not rest or rest.pop(0) != ")":
            raise GoTemplateError("a parenthesis without its end")
        return value
    if word.startswith(('"', "`")):
        return (
            word[1:-1].replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\") if word[0] == '"' else word[1:-1]
        )
    if word.lstrip("-").isdigit():
        return int(word)
    start, *fields = word.split(".")
    if start and start not in names:
        raise GoTemplateError(f"{word}: is not known")
    value = names[start] if start else dot
    for name in filter(None, fields):
        if name not in value:
            raise GoTemplateError(f"{word}: there is no {name}")
        value = value[name]
    return value


_FUNCTIONS: dict[str, Any] = {
    "eq": lambda first, *others: any(first == other for other in others),
    "len": len,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "slice": lambda value, start=0, end=None: value[start:end],
}


def as_ollama(turns: list[dict[str, str]]) -> dict[str, Any]:
    """What Ollama hands to a template: every message, and the system messages together once more."""
    messages = [{"Role": turn["role"], "Content": turn["content"]} for turn in turns]
    return {"System": "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system"), "Messages": messages}
