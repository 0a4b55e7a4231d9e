"""The functions that a row's assistant may call, in any form → JSON text; and whether the row's nulls are meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dsr1_tune.data.functions import SCHEMAS, functions_of
from dsr1_tune.data.read.calling.nulls import Filling, tools_without_nulls, without_nulls
from dsr1_tune.data.read.values import Unusable, as_json, is_null, kind_of, sound_text

_FIX = 'write a list of functions: [{"name": ..., "parameters": {...}}]'


@dataclass(frozen=True)
class Tools:
    """What a row says of the functions that may be called: the JSON text of a list of them, "" for none.

    `row` and `filling` tell whether the nulls in its calls and results are meant.
    """

    text: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    filling: Filling = field(default_factory=Filling)

    @cached_property
    def is_filled(self) -> bool:
        """Whether a table has filled up the row's objects with nulls."""
        return self.filling.fills(self.row)

    def given(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a call really gives the function `name`: a null is what it says unless a table has put it there.

        It stays where the function requires the argument, and goes where the function has no such argument.
        """
        function = functions_of(self.text).get(name)
        requires, takes = (function.requires, function.takes) if function else (frozenset[str](), None)
        if self.is_filled or frozenset(arguments) in self.filling.unions:
            return {
                name: without_nulls(value)
                for name, value in arguments.items()
                if not is_null(value) or name in requires
            }
        known = arguments.keys() if takes is None else takes | requires
        return {name: value for name, value in arguments.items() if not is_null(value) or name in known}

    def result(self, value: Any) -> Any:
        """What a function really returned."""
        return without_nulls(value) if self.is_filled else value


def read_tools(value: Any, path: str, row: Mapping[str, Any], filling: Filling) -> Tools:
    """A list of functions, one function, or the JSON text of either: OpenAI's, bare or Anthropic's form.

    Raises Unusable where one of them has no name.
    """
    tools = Tools("", row, filling)
    if is_null(value) or not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null")):
        return tools
    said = _from_text(sound_text(value, path), path) if isinstance(value, str) else value
    listed = [said] if isinstance(said, dict) else said
    if not isinstance(listed, list):
        raise Unusable("wrong_type", f"{kind_of(said)}, not a list of functions", _FIX, path)
    functions = [
        _function(tool, path if said is not listed else f"{path}[{number}]") for number, tool in enumerate(listed)
    ]
    if not isinstance(value, str):
        functions = tools_without_nulls(functions, tools.is_filled)
    elif functions == said:
        return Tools(value, row, filling)
    return Tools(as_json(functions, path), row, filling)


def _function(tool: Any, path: str) -> dict[str, Any]:
    """A function that has a name; with its schema as an object, where that is text."""
    if isinstance(tool, str):
        tool = _from_text(tool, path)
    if not isinstance(tool, dict):
        raise Unusable("wrong_type", f"{kind_of(tool)}, not a function", _FIX, path)
    is_inner = not is_null(tool.get("function"))
    function, at = (tool["function"], f"{path}.function") if is_inner else (tool, path)
    if not isinstance(function, dict):
        raise Unusable("wrong_type", f"{kind_of(function)}, not a function", _FIX, at)
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise Unusable("wrong_type", "a function without a name", 'name it: {"name": "the function", ...}', at)
    schemas = {key: _schema(function[key], f"{at}.{key}") for key in SCHEMAS if function.get(key)}
    function = {**function, **schemas}
    return {**tool, "function": function} if is_inner else function


def _schema(value: Any, path: str) -> dict[str, Any]:
    schema = _from_text(value, path) if isinstance(value, str) else value
    if isinstance(schema, dict):
        return schema
    fix = 'write a schema: {"type": "object", "properties": {...}}'
    raise Unusable("wrong_type", f"{kind_of(value)}, not what a function takes", fix, path)


def _from_text(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable("wrong_type", f"{kind_of(text)}, which is no JSON: {error}", _FIX, path) from None
