"""Settings of pairs that are given as text: NAME=VALUE,... or JSON."""

from __future__ import annotations

import json
from typing import Any


def json_or_text(given: Any) -> Any:
    """What a text says as JSON; else, as every other value, as it is given."""
    try:
        return json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given


def no_argument(value: Any, wrong: Any) -> str:
    """What to say where `wrong` is no argument's name; `a={"x": 1, "y": 2}` was parted at its comma by then."""
    words = [str(word) for pair in value.items() for word in pair] if isinstance(value, dict) else []
    if any(mark in word for word in words for mark in "{["):
        example = '{"reasoning": {"effort": "low", "steps": [1, 2]}}'
        return f"a value that has parts cannot be written as NAME=VALUE; write all arguments as JSON, such as {example}"
    said = wrong or value[wrong]
    example = 'reasoning_effort=low, or as JSON {"reasoning_effort": "low"}'
    return f"{said!r} gives no argument a value; write NAME=VALUE,... such as {example}"
