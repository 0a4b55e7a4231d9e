"""The functions that a row's tools describe: their names, the arguments that they take and those that they require."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SCHEMAS = ("parameters", "input_schema", "inputSchema")
"""Where a function's schema stands: OpenAI's name, Anthropic's, MCP's."""
_SAID_ELSEWHERE = ("patternProperties", "$ref", "allOf", "anyOf", "oneOf", "if")


@dataclass(frozen=True, slots=True)
class Function:
    """One of them; `takes` is None where nothing says which arguments there are, or further ones are allowed."""

    takes: frozenset[str] | None = None
    requires: frozenset[str] = frozenset()


@lru_cache(maxsize=512)
def functions_of(tools: str) -> Mapping[str, Function]:
    """The functions by their names, from the JSON text of a row's tools; none of what is no list of functions."""
    try:
        listed = json.loads(tools) if tools else []
    except ValueError:
        return {}
    described = [described_in(tool) for tool in (listed if isinstance(listed, list) else [listed])]
    return {str(one["name"]): _function(one) for one in described if one.get("name")}


def described_in(tool: Any) -> dict[str, Any]:
    """What describes the function: `{"function": {...}}` holds it, else the tool is it; {} for what is no object."""
    if not isinstance(tool, dict):
        return {}
    function = tool if tool.get("function") is None else tool["function"]
    return function if isinstance(function, dict) else {}


def _function(described: Mapping[str, Any]) -> Function:
    schema: Any = next((described[name] for name in SCHEMAS if isinstance(described.get(name), dict)), {})
    if not _is_schema(schema):
        return Function()
    properties, required = schema.get("properties"), schema.get("required")
    is_open = schema.get("additionalProperties") not in (None, False) or any(name in schema for name in _SAID_ELSEWHERE)
    takes = frozenset(map(str, properties)) if isinstance(properties, dict) and not is_open else None
    return Function(takes, frozenset(map(str, required)) if isinstance(required, list) else frozenset())


def _is_schema(schema: Mapping[str, Any]) -> bool:
    """Whether this is a schema, and not a bare map of arguments of which one is called `properties`."""
    kind, properties = schema.get("type"), schema.get("properties")
    if isinstance(kind, str) and kind.lower() == "object":
        return True
    return not isinstance(properties, dict) or all(isinstance(one, (dict, bool)) for one in properties.values())
