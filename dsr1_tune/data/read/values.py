"""A field's value → the text or the list that is meant; or Unusable, with the exact place and the fix."""

from __future__ import annotations

from numbers import Number
from typing import Any

import orjson

from dsr1_tune.data.record import Drop
from dsr1_tune.text.composed import composed

MAX_FIELD_CHARS = 1_000_000
# Beyond this a float has lost digits, or was never finite.
MAX_EXACT = 1e15


class Unusable(Exception):
    """Carries the Drop from the depth of a row to the Interpreter."""

    def __init__(self, code: str, detail: str, fix: str, path: str = "$") -> None:
        super().__init__(code)
        self.drop = Drop(code, detail, fix, path)


def text_of(value: Any, path: str) -> str:
    """The value as text; a number, a list of one text and a list of text parts are taken for what they mean."""
    if isinstance(value, str):
        return sound_text(value, path)
    if is_null(value):
        raise Unusable("null_value", "is null", "write the text, or remove the row", path)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Number):
        if isinstance(value, float) and abs(value) >= MAX_EXACT:
            raise Unusable("wrong_type", f"{value} is a number too large to be exact", "put it in quotes", path)
        return str(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return sound_text(value[0], f"{path}[0]")
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        return "".join(_part(part, f"{path}[{number}]") for number, part in enumerate(value))
    raise Unusable("wrong_type", f"{kind_of(value)} where text is needed", "write one text, in quotes", path)


def _part(part: dict[str, Any], path: str) -> str:
    """`{"type": "text", "text": ...}`, or `value` in place of the second `text`."""
    key = key_of(part, "text", "value")
    if part["type"] != "text" or not key:
        raise Unusable("wrong_type", f"a part of type {short(part['type'])}", "only text can be learned from", path)
    return text_of(part[key], f"{path}.{key}")


def is_sound(text: str) -> bool:
    """Whether this is a text that can be written and learned: no lone surrogates, no NUL, no megabytes."""
    if len(text) > MAX_FIELD_CHARS or "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sound_text(text: str, path: str) -> str:
    """The text itself, if it is one; else what is wrong with it."""
    if is_sound(text):
        return text
    if len(text) > MAX_FIELD_CHARS:
        detail = f"{len(text):,} characters in one field, more than {MAX_FIELD_CHARS:,}"
        raise Unusable("too_large", detail, "split it; was a whole file put into one field?", path)
    if "\0" in text:
        raise Unusable("bad_encoding", f"a NUL (character {text.index(chr(0)) + 1})", "remove it", path)
    start = next(number for number, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    odd = ord(text[start])
    # The reader turns a byte that does not decode into the second range.
    what = f"the byte 0x{odd - 0xDC00:02X}" if 0xDC80 <= odd <= 0xDCFF else f"half a character, U+{odd:04X},"
    fix = "save the file as UTF-8, or mend the text there"
    raise Unusable("bad_encoding", f"{what} is no text (character {start + 1})", fix, path)


def as_list(value: Any, path: str) -> list[Any]:
    """A list, or the JSON text of one, as CSV files hold it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise Unusable("wrong_type", f"text that is not JSON: {error}", "write a JSON list", path) from None
    if is_null(value):
        raise Unusable("null_value", "is null", "write the turns there, or remove the row", path)
    if not isinstance(value, list):
        raise Unusable("wrong_type", f"{kind_of(value)} where a list is needed", "write a list", path)
    return value


def as_json(value: Any, path: str) -> str:
    """The value as JSON text."""
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError as error:
        raise Unusable("bad_encoding", f"cannot be written as JSON: {error}", "mend the text there", path) from None


def key_of(row: dict[str, Any], *names: str) -> str:
    """The first of these names that the row has, or ""."""
    return next((name for name in names if name in row), "")


def is_null(value: Any) -> bool:
    """None, or the NaN that tables put where nothing is."""
    return value is None or (isinstance(value, float) and value != value)


def plain_name(column: str) -> str:
    """A column's name without what makes no difference: blanks around it, case, and how its accents are stored."""
    return composed(column.strip()).lower()


def path_to(column: str) -> str:
    """The JSON path of a column."""
    return f"$.{column}" if column.isidentifier() else f"$[{column!r}]"


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    words = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else f"{words.get(type(value), type(value).__name__)} ({short(value)})"


def short(value: Any) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except RecursionError:
        text = "..."
    return text if len(text) <= 40 else text[:37] + "..."
