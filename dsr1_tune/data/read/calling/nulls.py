"""Nulls that nobody wrote: a table gives every object the fields of all objects in its place, null where it has none.

In Parquet a null field may be one or may be meant, and is taken for one. A JSON file may have been saved from a table:
that is told from its turns, its schemas and its calls. In any other file a null is what it says.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from dsr1_tune.data.functions import SCHEMAS, described_in
from dsr1_tune.data.read.values import is_null, key_of
from dsr1_tune.data.record import Row, messages_of

_MAY_BE_NULL = ("default", "const", "example")
# Keywords of a schema with which values stand, no schemas.
_OF_VALUES = (*_MAY_BE_NULL, "examples", "enum")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")


@dataclass(frozen=True, slots=True)
class Filling:
    """Which of a file's objects a table has filled up with nulls.

    All of them `is_arrow`; else calls whose arguments have the names of one of `unions`: different functions share
    them, each with nulls where the other never has one.
    """

    is_arrow: bool = False
    unions: frozenset[frozenset[str]] = frozenset()

    @classmethod
    def learn(cls, rows: Iterable[Row]) -> Filling:
        """From the first rows of a file that is no table itself, read with all the nulls that may be meant."""
        calls = [call for row in rows for message in messages_of(row) for call in message.calls]
        alike: dict[frozenset[str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for call in calls:
            arguments = json.loads(call.arguments)
            alike[frozenset(arguments)][call.name].append(arguments)
        return cls(unions=frozenset(names for names, called in alike.items() if names and _is_union(called)))

    def fills(self, row: Mapping[str, Any]) -> bool:
        """Whether a table has filled up the objects of this row, as far as its turns tell."""
        return self.is_arrow or _has_uniform_turns(row)


def _is_union(called: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Whether of two functions each is only given what the other never is."""
    used = [
        frozenset(name for one in calls for name, value in one.items() if value is not None)
        for calls in called.values()
    ]
    return any(one - other and other - one for one, other in permutations(used, 2))


def _has_uniform_turns(row: Mapping[str, Any]) -> bool:
    """Whether all turns have the same fields, with values of the same types, some of which are null in some."""
    turns = [value for value in row.values() if _is_list_of_turns(value)]
    parts = [_joined(one, "content", "value") for one in turns]
    calls = [_joined(one, "tool_calls") for one in turns]
    verdicts = [_is_uniform(objects) for objects in (*turns, *parts, *calls)]
    return True in verdicts and False not in verdicts


def _is_list_of_turns(value: Any) -> bool:
    is_objects = isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    return is_objects and bool(key_of(value[0], "role", "from"))


def _joined(turns: Iterable[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    lists = (turn.get(name) for turn in turns for name in names)
    return [one for some in lists if isinstance(some, list) for one in some if isinstance(one, dict)]


def _is_uniform(objects: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether these are objects of a table; None where nothing tells."""
    if not objects:
        return None
    columns = [[one.get(name) for one in objects] for name in objects[0]]
    types = [{type(value) for value in column if not is_null(value)} for column in columns]
    if any(one.keys() != objects[0].keys() for one in objects) or any(len(kinds) > 1 for kinds in types):
        return False
    return any(kinds and any(map(is_null, column)) for kinds, column in zip(types, columns, strict=True)) or None


def without_nulls(value: Any) -> Any:
    """The value without an object's null fields, at any depth; a list's nulls stay."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if not is_null(one)}
    return [without_nulls(one) for one in value] if isinstance(value, (list, tuple)) else value


def tools_without_nulls(tools: Sequence[dict[str, Any]], is_filled: bool) -> list[dict[str, Any]]:
    """Tools without the nulls that say nothing; `default`, `const` and members of lists may be null by intent."""
    return [without_nulls(tool) if is_filled else _meant(tool) for tool in tools]


def have_stray_nulls(tools: Iterable[dict[str, Any]]) -> bool:
    """Whether nulls stand where no schema has one, as in the place of a property: a table has filled these tools up."""
    described = map(described_in, tools)
    return any(_has_stray_null(one[name]) for one in described for name in SCHEMAS if name in one)


def _has_stray_null(value: Any, are_names: bool = False) -> bool:
    """Whether a null stands where no schema has one; the keys are keywords, or the names of properties."""
    if isinstance(value, list):
        return any(map(_has_stray_null, value))
    if not isinstance(value, dict):
        return False
    return any(
        (is_null(one) and (are_names or name not in _MAY_BE_NULL))
        or ((are_names or name not in _OF_VALUES) and _has_stray_null(one, name in _NAMED_SCHEMAS and not are_names))
        for name, one in value.items()
    )


def _meant(value: Any, are_names: bool = False) -> Any:
    if isinstance(value, list):
        return list(map(_meant, value))
    if not isinstance(value, dict):
        return value
    return {
        name: one if name in _OF_VALUES and not are_names else _meant(one, name in _NAMED_SCHEMAS and not are_names)
        for name, one in value.items()
        if not is_null(one) or (name in _MAY_BE_NULL and not are_names)
    }
