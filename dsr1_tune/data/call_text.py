"""Calls of functions that are written in a text: JSON or Python's notation, bare, in tags or fences, behind words."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

OPEN = "<tool_call>"
_NAMES = r"(?:tool_?calls?|function_?calls?)"
_TAG = re.compile(rf"(?:<{_NAMES}>\s*)+")
_CLOSE = re.compile(rf"(?:\s*</{_NAMES}>)+")
_NEXT = re.compile(r"[\s,;]*(?=[{\[])")
# Where Python's notation may end; only a parser of Python could tell.
_END = re.compile(rf"</{_NAMES}>|```|\Z")
_LINE_END = re.compile(r"\n")
_BRACE = re.compile(r"[{\[]")
# An object or a tag among the words around calls: one more call, which is broken.
_LEFT = re.compile(rf"[{{\[]\s*[\"'{{\[]|<{_NAMES}>")
_EMPTY_FENCE = re.compile(r"```\w*\s*```")
# Glaive's calls: the arguments are JSON text between single quotes.
_QUOTED = re.compile(r"""\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
_BROKEN = re.compile(rf"{OPEN}\s*\{{")
_END_OF_TEXT = "<|endoftext|>"
_MAX_TRIES = 32
# Line breaks in texts, which JSON wants escaped, are read.
_JSON = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Said:
    """What a text says: one value or a list, and the words around; `is_plain` if each tag holds one JSON object."""

    value: Any
    words: str = ""
    is_plain: bool = False


def value_of(text: str) -> Any:
    """What the text says as JSON, or as Python's notation of a dict or a list; raises ValueError."""
    text = text.strip()
    try:
        value, end = _JSON.raw_decode(text)
        if end == len(text):
            return value
        fault = ValueError(f"further text follows it (character {end + 1})")
    except (ValueError, RecursionError) as error:
        fault = ValueError(str(error))
    try:
        return _python(text)
    except ValueError:
        raise fault from None


def calls_in(text: str) -> Said:
    """The calls of a text that should be one; raises ValueError where it holds none, or a broken one beside others."""
    text = text.strip().removesuffix(_END_OF_TEXT).rstrip()
    try:
        return Said(value_of(text))
    except ValueError as error:
        fault = error
    for reading in (calls_in_tags, _calls_among_words):
        try:
            return reading(text)
        except ValueError:
            continue
    raise fault


def calls_in_tags(text: str) -> Said:
    """The calls in <tool_call> or the like; raises ValueError where there are none, or one cannot be read."""
    values: list[Any] = []
    words: list[str] = []
    at, is_plain = 0, True
    while opened := _TAG.search(text, at):
        words.append(text[at : opened.start()])
        at = opened.end()
        inner: list[Any] = []
        while not inner or _BRACE.match(text, at):
            value, at, is_json = _value_at(text, at)
            inner.append(value)
            following = _NEXT.match(text, at)
            at = following.end() if following else at
        closed = _CLOSE.match(text, at)
        is_plain = is_plain and closed is not None and is_json and len(inner) == 1 and isinstance(inner[0], dict)
        at = closed.end() if closed else at
        values += _flat(inner)
    if not values:
        raise ValueError("no call in tags")
    return Said(values, _joined([*words, text[at:]]), is_plain)


def _calls_among_words(text: str) -> Said:
    """Bare calls, one or several, with words around them."""
    values: list[Any] = []
    words: list[str] = []
    at = 0
    for brace in islice(_BRACE.finditer(text), _MAX_TRIES):
        if brace.start() < at:
            continue
        try:
            value, end, _ = _value_at(text, brace.start())
        except ValueError:
            continue
        if (found := _flat([value])) and all(map(is_call, found)):
            words.append(text[at : brace.start()])
            values, at = values + found, end
    said = _joined([*words, text[at:]])
    if not values or _LEFT.search(said):
        raise ValueError("no call, or a broken one")
    return Said(values, said)


def is_call(value: Any) -> bool:
    """Whether this is an object that names a function."""
    function = value.get("function") if isinstance(value, dict) else None
    named = function if isinstance(function, dict) else value
    name = named.get("name") if isinstance(named, dict) else None
    return isinstance(name, str) and bool(name.strip())


def from_first_tag(text: str) -> str:
    """An answer that begins with a call in <tool_call>, without the thought before it; "" for any other."""
    if OPEN not in text:
        return ""
    thought = _THOUGHT.match(text)
    said = text[thought.end() :] if thought else text.lstrip()
    return said if said.startswith(OPEN) else ""


def begins_with_broken_call(text: str) -> bool:
    """Whether an answer, perhaps behind a thought, begins with a call in tags and what is in them cannot be read."""
    said = from_first_tag(text)
    if not _BROKEN.match(said):
        return False
    try:
        return not all(map(is_call, calls_in_tags(said).value))
    except ValueError:
        return True


def _value_at(text: str, at: int) -> tuple[Any, int, bool]:
    """The value that begins there, where it ends, and whether it is JSON; raises ValueError."""
    try:
        return *_JSON.raw_decode(text, at), True
    except (ValueError, RecursionError) as error:
        fault = str(error)
    if _BRACE.match(text, at):
        for end in _ends(text, at):
            try:
                return _python(text[at:end]), end, False
            except ValueError:
                continue
    raise ValueError(fault)


def _ends(text: str, at: int) -> Iterator[int]:
    yield from (found.start() for found in islice(_END.finditer(text, at), _MAX_TRIES))
    yield from (found.start() for found in islice(_LINE_END.finditer(text, at), _MAX_TRIES))


def _python(text: str) -> Any:
    """A dict or a list in Python's notation, of what JSON has, too; raises ValueError."""
    text = text.strip()
    if text[:1] not in ("{", "["):
        raise ValueError("no dict and no list")
    quoted = _QUOTED.fullmatch(text)
    if quoted and _is_json(quoted[2]):
        return {"name": quoted[1], "arguments": quoted[2]}
    try:
        with warnings.catch_warnings():
            # Of escapes that Python does not know.
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
        if _is_plain(value):
            # Dicts with commas between them are a tuple.
            return list(value) if isinstance(value, tuple) else value
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from None
    raise ValueError("it holds what JSON has not")


def _is_json(text: str) -> bool:
    try:
        _JSON.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(one) for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))


def _flat(values: list[Any]) -> list[Any]:
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _joined(pieces: list[str]) -> str:
    """The words between calls, without what separates calls and the fences around them."""
    words = [word for piece in pieces if (word := piece.strip()) and word not in (",", ";")]
    return _EMPTY_FENCE.sub("", "\n".join(words)).strip()
