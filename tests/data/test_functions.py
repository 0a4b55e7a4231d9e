"""What the tools of a row say of their functions' arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsr1_tune.data.functions import Function, functions_of

CITY = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOSED = Function(frozenset({"city"}), frozenset({"city"}))
OPEN = Function(None, frozenset({"city"}))


@pytest.mark.parametrize(
    ("schema", "function"),
    [
        (CITY, CLOSED),
        ({**CITY, "additionalProperties": False}, CLOSED),
        ({**CITY, "additionalProperties": True}, OPEN),
        ({**CITY, "additionalProperties": {"type": "string"}}, OPEN),
        ({**CITY, "patternProperties": {"^x": {}}}, OPEN),
        ({**CITY, "anyOf": [{}]}, OPEN),
        ({"type": "object"}, Function()),
        ({"type": "object", "properties": {}}, Function(frozenset())),
        ({"type": "OBJECT", "properties": {"properties": {"type": "object"}}}, Function(frozenset({"properties"}))),
        ({"city": {"type": "string"}, "properties": {"type": "string", "description": "P"}}, Function()),
        (None, Function()),
        ([], Function()),
    ],
    ids=str,
)
def test_functions_of_say_what_may_be_given(schema: Any, function: Function) -> None:
    forms = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    forms += [{"name": "f", "parameters": schema}, {"name": "f", "input_schema": schema}]
    forms += [{"name": "f", "inputSchema": schema}]
    for form in forms:
        assert functions_of(json.dumps([form])) == functions_of(json.dumps(form)) == {"f": function}


@pytest.mark.parametrize("tools", ["", "no JSON", "3", "[1, null]", '[{"function": 1}]'])
def test_functions_of_what_is_no_list_of_functions(tools: str) -> None:
    assert functions_of(tools) == {}
