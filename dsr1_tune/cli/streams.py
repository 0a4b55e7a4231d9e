"""Terminals that are not UTF-8: what they cannot show is written as `\\u4e2d`, and what cannot be read is marked."""

from __future__ import annotations

import codecs
import sys

_ESCAPE = "dsr1-tune-escape"


def never_fail() -> None:
    """From now on no character makes printing, or reading from a pipe, fail.

    Characters beyond U+FFFF become two escapes, as in JSON: what --json prints can be read whatever the terminal is.
    """
    codecs.register_error(_ESCAPE, _escaped)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, _ESCAPE), (sys.stderr, _ESCAPE)):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put its own
            stream.reconfigure(errors=errors)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2)), error.end
