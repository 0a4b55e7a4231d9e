"""Terminals that are not UTF-8: what they cannot show is written as `\\u4e2d`, and what cannot be read is marked."""

from __future__ import annotations

import codecs
import sys

_ESCAPE, _JSON_ESCAPE = "dsr1-tune-escape", "dsr1-tune-json-escape"


def never_fail() -> None:
    """From now on no character makes printing, or reading from a pipe, fail."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, _ESCAPE), (sys.stderr, _ESCAPE)):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put its own
            stream.reconfigure(errors=errors)


def say_json(text: str) -> None:
    """Print JSON as it is, at once: it can be read whatever the terminal is.

    What cannot be shown is escaped in JSON's own way, where a character beyond U+FFFF is two escapes.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, _JSON_ESCAPE).decode(encoding), end="", flush=True)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = map(ord, error.object[error.start : error.end])
    return "".join(f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}" for code in characters), error.end


def _escaped_in_json(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2)), error.end


codecs.register_error(_ESCAPE, _escaped)
codecs.register_error(_JSON_ESCAPE, _escaped_in_json)
