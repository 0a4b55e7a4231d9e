"""Rows and the general pack's Checker, for the tests of the rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dsr1_tune.data.record import Message, Place, Record
from dsr1_tune.data.rules.checker import Checker
from dsr1_tune.data.rules.packs import load_pack


@pytest.fixture
def record() -> Callable[..., Record]:
    """record(question, answer) is a row of one turn."""

    def record_(question: str = "Q", answer: str = "A", index: int = 0, tools: str = "") -> Record:
        messages = (Message("user", question, "$.input"), Message("assistant", answer, "$.output"))
        return Record(messages, Place("a.json", index + 1, index), tools)

    return record_


@pytest.fixture
def conversation() -> Callable[..., Record]:
    """conversation("Q", "A", "Q", "A") is a row of several turns."""

    def conversation_(*contents: str, tools: str = "", roles: tuple[str, ...] = ("user", "assistant")) -> Record:
        said = [Message(roles[i % len(roles)], text, f"$.messages[{i}].content") for i, text in enumerate(contents)]
        return Record(tuple(said), Place("a", 1, 0), tools)

    return conversation_


@pytest.fixture(scope="session")
def general() -> Checker:
    """The Checker of the general pack."""
    return Checker(load_pack("general"))
