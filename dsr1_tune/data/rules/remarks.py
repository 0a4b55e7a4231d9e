"""Remarks on single rows that are kept: calls that cannot be read or do not fit the tools, and nothing to learn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from dsr1_tune.data.call_text import begins_with_broken_call
from dsr1_tune.data.functions import Function, functions_of
from dsr1_tune.data.record import Drop, Record, Row, ToolCall
from dsr1_tune.data.rules.text_features import exemplary, quoted

MAX_NAMED = 5


def remarks_on_calls(row: Row) -> tuple[Drop, ...]:
    """The first call of a function that the row's tools do not have, and the first with other arguments than it takes.

    A worse answer may call what it likes.
    """
    calling = [message for message in exemplary(row) if message.calls] if row.tools else []
    functions = functions_of(row.tools) if calling else {}
    if not functions:
        return ()
    found: dict[str, Drop] = {}
    for message in calling:
        for call in message.calls:
            function = functions.get(call.name)
            if function is None:
                detail = f"calls {call.name!r}; the row's tools are {_listed(functions)}"
                fix = "add it to the tools, or mend the call"
                found.setdefault("unknown_function", Drop("unknown_function", detail, fix, message.path))
            elif problems := "; ".join(_misfits(call, function)):
                fix = "mend the call, or the function's schema"
                detail = f"{call.name!r} is called {problems}"
                found.setdefault("unfit_arguments", Drop("unfit_arguments", detail, fix, message.path))
    return tuple(found.values())


def _misfits(call: ToolCall, function: Function) -> Iterator[str]:
    given = json.loads(call.arguments).keys()
    if function.takes is not None and (others := given - function.takes):
        takes = _listed(function.takes) if function.takes else "none"
        yield f"with {_listed(others)}, where its arguments are {takes}"
    if lacking := function.requires - given:
        yield f"without {_listed(lacking)}, which it requires"


def _listed(names: Iterable[str]) -> str:
    some = sorted(names)
    return ", ".join(map(repr, some[:MAX_NAMED])) + (", ..." if len(some) > MAX_NAMED else "")


def remarks_on_unread_calls(row: Row) -> tuple[Drop, ...]:
    """The first answer to be learned that begins with a call in tags that cannot be read, and so is learned as text."""
    for message in exemplary(row):
        if message.role == "assistant" and message.is_learned and begins_with_broken_call(message.content):
            detail = f"{quoted(message.content)} begins with a call that cannot be read, and is learned as text"
            return (Drop("unread_call", detail, "mend the call, if it should be one", message.path),)
    return ()


def remarks_on_masks(row: Row) -> tuple[Drop, ...]:
    """Whether the author lets none of a record's answers be learned: training on answers then drops it."""
    answers = [message for message in row.messages if message.role == "assistant"] if isinstance(row, Record) else []
    if not answers or any(message.is_learned for message in answers):
        return ()
    detail = "its author lets none of its answers be learned (weight, loss, train or masked)"
    return (Drop("nothing_to_learn", detail, "leave it out, or let one be learned", answers[-1].path),)
