"""The functions that a row's assistant may call, in any form → JSON text; and whether the row's nulls are meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dsr1_tune.data.call_text import value_of
from dsr1_tune.data.functions import SCHEMAS, functions_of
from dsr1_tune.data.read.calling.nulls import Filling, have_stray_nulls, tools_without_nulls, without_nulls
from dsr1_tune.data.read.values import Unusable, as_json, is_null, key_of, kind_of, sound_text

# Where a function's name stands: everyone's field, ToolBench's, others', Qwen-Agent's.
_NAMES = ("name", "api_name", "function_name", "tool_name", "name_for_model")
# What holds a list of functions: MCP's result, Gemini's tool.
_WRAPPERS = ("tools", "functions", "function_declarations", "functionDeclarations")
_MAX_DEPTH = 4
_FIX = 'write a list of functions: [{"name": ..., "parameters": {...}}]'


@dataclass(frozen=True)
class Tools:
    """What a row says of the functions that may be called: the JSON text of a list of them, "" for none.

    `row` and `filling` tell whether the nulls in its calls and results are meant, and so does `has_strays`: that a
    table has filled up the functions themselves. In a row that `is_worse`, an answer that nobody should learn, a call
    that cannot be read is kept as text.
    """

    text: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    filling: Filling = field(default_factory=Filling)
    has_strays: bool = False
    is_worse: bool = False

    @cached_property
    def is_filled(self) -> bool:
        """Whether a table has filled up the row's objects with nulls."""
        return self.filling.fills(self.row)

    def given(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a call really gives the function `name`: a null is what it says unless a table has put it there.

        It stays where the function requires the argument.
        """
        function = functions_of(self.text).get(name)
        requires, takes = (function.requires, function.takes) if function else (frozenset[str](), None)
        if self.is_filled or frozenset(arguments) in self.filling.unions:
            return {
                name: without_nulls(value)
                for name, value in arguments.items()
                if not is_null(value) or name in requires
            }
        known = arguments.keys() if takes is None or not self.has_strays else takes | requires
        return {name: value for name, value in arguments.items() if not is_null(value) or name in known}

    def result(self, value: Any) -> Any:
        """What a function really returned."""
        return without_nulls(value) if self.is_filled else value


def read_tools(value: Any, path: str, row: Mapping[str, Any], filling: Filling) -> Tools:
    """A list of functions, one function, functions by their names, or the text of any of them.

    OpenAI's form, a bare one, Anthropic's, MCP's and Gemini's are read. Raises Unusable where one of them says neither
    a name nor a type.
    """
    tools = Tools("", row, filling)
    if is_null(value) or not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null", "None")):
        return tools
    said = _from_text(sound_text(value, path), path) if isinstance(value, str) else value
    if not isinstance(said, (dict, list)):
        raise Unusable("wrong_type", f"{kind_of(said)}, not a list of functions", _FIX, path)
    functions = [_function(tool, at) for tool, at in _one_by_one(said, path)]
    if not functions:
        return tools
    has_strays = not isinstance(value, str) and have_stray_nulls(functions)
    if not isinstance(value, str):
        functions = tools_without_nulls(functions, has_strays or tools.is_filled)
    elif functions == said:
        return Tools(value, row, filling)
    return Tools(as_json(functions, path), row, filling, has_strays)


def _one_by_one(said: Any, path: str, depth: int = 0) -> Iterator[tuple[Any, str]]:
    """Each of the tools, with its path: out of lists, what wraps a list of them, and maps by their names."""
    if isinstance(said, str):
        said = _from_text(said, path)
    if isinstance(said, list) and depth < _MAX_DEPTH:
        for number, tool in enumerate(said):
            yield from _one_by_one(tool, f"{path}[{number}]", depth + 1)
        return
    key = key_of(said, *_WRAPPERS) if isinstance(said, dict) and not _names(said) else ""
    if key and isinstance(said[key], list):
        yield from _one_by_one(said[key], f"{path}.{key}", depth + 1)
    elif _is_by_name(said):
        for name, function in said.items():
            yield {"name": name, **function}, f"{path}.{name}"
    else:
        yield said, path


def _names(tool: Mapping[str, Any]) -> str:
    """The field that says the name, or ""."""
    return next((key for key in _NAMES if isinstance(tool.get(key), str) and tool[key].strip()), "")


def _is_by_name(said: Any) -> bool:
    """Whether this is `{"seek": {"description": ..., "parameters": ...}}`."""
    if not isinstance(said, dict) or _names(said) or "type" in said or "function" in said:
        return False
    return bool(said) and all(isinstance(one, dict) and key_of(one, "description", *SCHEMAS) for one in said.values())


def _function(tool: Any, path: str) -> dict[str, Any]:
    """A function that has a name, with its schema as an object where that is the text of one; or what has a type."""
    if not isinstance(tool, dict):
        raise Unusable("wrong_type", f"{kind_of(tool)}, not a function", _FIX, path)
    if isinstance(tool.get("function"), str) and tool["function"].strip():
        beside = {key: value for key, value in tool.items() if key not in ("type", "function")}
        tool = {"type": "function", "function": {"name": tool["function"], **beside}}
    is_inner = not is_null(tool.get("function"))
    function, at = (tool["function"], f"{path}.function") if is_inner else (tool, path)
    if not isinstance(function, dict):
        raise Unusable("wrong_type", f"{kind_of(function)}, not a function", _FIX, at)
    named = _names(function)
    if not named:
        kind = tool.get("type")
        if isinstance(kind, str) and kind.strip() and kind != "function":
            # A tool of the server's own: {"type": "web_search"}.
            return tool
        raise Unusable("wrong_type", "a function without a name", 'name it: {"name": "the function", ...}', at)
    function = {
        "name" if key == named else key: _schema(value) if key in SCHEMAS else value
        for key, value in function.items()
        if key == named or key != "name"
    }
    return {**tool, "function": function} if is_inner else function


def _schema(value: Any) -> Any:
    """The schema that a text holds; what is no schema stays as it is, and says nothing."""
    if not isinstance(value, str):
        return value
    try:
        schema = value_of(value)
    except ValueError:
        return value
    return schema if isinstance(schema, dict) else value


def _from_text(text: str, path: str) -> Any:
    try:
        return value_of(text)
    except ValueError as error:
        raise Unusable("wrong_type", f"{kind_of(text)}, which is no JSON: {error}", _FIX, path) from None
