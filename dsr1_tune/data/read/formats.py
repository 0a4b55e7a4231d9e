"""The formats of rows, told by their column names: which hold the question, the answer and the rest, as a Shape."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from dsr1_tune.data.phrase_table import load_yaml
from dsr1_tune.data.read.ground_truth import RESULTS
from dsr1_tune.data.read.values import plain_name
from dsr1_tune.data.record import Drop
from dsr1_tune.errors import ConfigError

Names = tuple[tuple[str, str], ...]
"""Other column names as (ours, the file's) pairs: what --map says, in a form that can be hashed."""

OUR_NAMES = (
    "question", "answer", "system", "history", "messages", "prompt", "chosen", "rejected", "label", "ground_truth"
)  # fmt: skip

_NAMES: dict[str, Any] = load_yaml(Path(__file__).with_suffix(".yaml"))


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns of a row hold what; a question may be spread over several.

    `result` is what a prompt's answers are checked against; `label` says whether the answer is good, for sure or only
    if its content says so; `scores` are those of a preference's two answers.
    """

    name: str
    question: tuple[str, ...] = ()
    answer: str = ""
    turns: str = ""
    chosen: str = ""
    rejected: str = ""
    system: str = ""
    history: str = ""
    tools: str = ""
    result: str = ""
    label: str = ""
    sure_label: bool = False
    scores: tuple[str, ...] = ()

    @property
    def is_prompt(self) -> bool:
        """Whether nothing in the columns can be an answer."""
        return not (self.answer or self.turns or self.chosen)


def parse_mapping(texts: Sequence[str]) -> dict[str, str]:
    """`["question=title,answer=reply"]` → {"question": "title", "answer": "reply"}. Raises ConfigError."""
    mapping: dict[str, str] = {}
    for pair in ",".join(texts).split(","):
        ours, equals, column = (part.strip() for part in pair.partition("="))
        if not pair.strip():
            continue
        if not equals or not column:
            raise ConfigError(f"--map {pair}: not of the form name=column", hint="--map question=title,answer=reply")
        mapping[ours] = column
    return mapping


def check_mapping(mapping: Mapping[str, str] | None) -> Names:
    """A mapping as Names; ConfigError where it uses a name that is not one of ours."""
    for ours, column in (mapping or {}).items():
        if ours not in OUR_NAMES:
            near = difflib.get_close_matches(ours, OUR_NAMES, n=1)
            known = f"did you mean {near[0]}={column}? " if near else ""
            raise ConfigError(
                f"--map {ours}={column}: there is no name {ours!r}",
                hint=f"{known}our name comes first; the names are {', '.join(OUR_NAMES)}",
            )
    return tuple((mapping or {}).items())


@lru_cache(maxsize=4096)
def shape_of(columns: tuple[str, ...], names: Names = ()) -> Shape | Drop:
    """The shape that fits these columns, or why none does."""
    finder = _Columns(columns, dict(names))
    shape = Shape(
        "",
        system=finder.first("system", _NAMES["systems"]),
        history=finder.first("history", ("history",)),
        tools=finder.first("", ("tools", "functions")),
    )
    chosen, rejected = finder.pair()
    turns = finder.first("messages", _NAMES["turns"])
    question = finder.question()
    answer = finder.one_of("answer", _NAMES["answers"])
    if chosen and rejected:
        scores = finder.both_of([(form.format("chosen"), form.format("rejected")) for form in _NAMES["scores"]])
        shape = replace(shape, name="preference", chosen=chosen, rejected=rejected, scores=scores)
        if isinstance(question, Drop) and not turns:
            return question
        # Where both are there, the turns are often the prompt with the chosen answer.
        asked = question if isinstance(question, tuple) else ()
        return replace(shape, question=asked, turns="" if asked else turns)
    label = finder.first("label", _NAMES["labels"])
    if label:
        is_sure = finder.maps("label") or label.strip().lower() in _NAMES["sure_labels"]
        shape = replace(shape, label=label, sure_label=is_sure)
    result = finder.first("ground_truth", RESULTS)
    main_questions, main_answers = _NAMES["questions"][0], _NAMES["answers"][0]
    if turns and not finder.maps("question", "prompt", "answer"):
        name = "ShareGPT" if turns.lower().startswith("conversation") else "messages"
        said = answer if label and isinstance(answer, str) else ""
        result = result or finder.first("", main_answers)
        return replace(shape, name=name, turns=turns, answer=said, result=result)
    if isinstance(question, Drop):
        return question
    if question and finder.maps("ground_truth"):
        return replace(shape, name="prompt", question=question, result=result)
    if isinstance(answer, Drop):
        return answer
    if question and answer:
        name = "Alpaca" if question[0].lower() in ("instruction", "instruct") else "question-answer"
        return replace(shape, name=name, question=question, answer=answer)
    if question and (finder.maps("question", "prompt") or question[0].strip().lower() in main_questions):
        return replace(shape, name="prompt", question=question, result=result)
    return finder.nothing_fits(bool(question), answer or chosen or rejected)


def unlabelled(shape: Shape) -> Shape:
    """The shape of rows whose label is none, or is not there."""
    return replace(shape, label="", sure_label=False, answer="" if shape.turns else shape.answer)


class _Columns:
    """A row's columns, found by any of their usual names whatever the case, a mapping's names first."""

    def __init__(self, columns: tuple[str, ...], mapping: dict[str, str]) -> None:
        self.columns = columns
        self.mapping = mapping
        self.by_name = {plain_name(column): column for column in reversed(columns)}

    def maps(self, *ours: str) -> bool:
        """Whether the mapping gives one of these names a column that is there."""
        return any(name in self.mapping and self._mapped(self.mapping[name]) for name in ours)

    def first(self, ours: str, names: Sequence[str]) -> str:
        """The first of these columns that is there, or ""."""
        if self.maps(ours):
            return self._mapped(self.mapping[ours])[0]
        return next(iter(self._there(names)), "")

    def pair(self) -> tuple[str, str]:
        """The columns of the better and the worse answer; "" for one that is not there."""
        found = self.first("chosen", ("chosen",)), self.first("rejected", ("rejected",))
        if all(found) or self.maps("chosen", "rejected"):
            return found
        good, bad = self.both_of(_NAMES["pairs"]) or found
        return good, bad

    def both_of(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """The first pair of columns of which both are there."""
        return tuple(next((found for pair in pairs if len(found := self._there(pair)) == 2), ()))

    def one_of(self, ours: str, groups: Sequence[Sequence[str]]) -> str | Drop:
        """The one column of the first group that is there, "" for none."""
        if self.maps(ours):
            return self.first(ours, ())
        for group in groups:
            found = self._there(group)
            if len(found) > 1:
                which = " or ".join(map(shown, found))
                choice = f"choose with --map {ours}={shown(found[0])}"
                return Drop("ambiguous_fields", f"the {ours} could be {which}", choice)
            if found:
                return found[0]
        return ""

    def question(self) -> tuple[str, ...] | Drop:
        """The columns which together are the question, in the order in which they are read."""
        if mapped := next(filter(self.maps, ("question", "prompt")), ""):
            return self._mapped(self.mapping[mapped])
        forum = self._there(_NAMES["forum"])
        if len(forum) > 1 and not self._there((*_NAMES["questions"][0], *_NAMES["questions"][1])):
            # A headline and what was written below it.
            return tuple(forum)
        main = self.one_of("question", _NAMES["questions"])
        if isinstance(main, Drop) or not main:
            return main if isinstance(main, Drop) else ()
        return (main, *(column for column in self._there(_NAMES["contexts"]) if column != main))

    def nothing_fits(self, has_question: bool, found: str) -> Drop:
        """Why these columns are no row to learn from."""
        if not self.columns:
            return Drop("unknown_fields", "the object has no fields", 'a row needs {"input": ..., "output": ...}')
        if found and found.lower() in ("chosen", "rejected"):
            other = "rejected" if found.lower() == "chosen" else "chosen"
            return Drop("missing_field", f"has {found} but no {other}", f"add {other}", f"$.{other}")
        names = listed(self.columns)
        if found:
            return Drop("missing_field", f"has {names}, but no question", "add it, or name it: --map question=NAME")
        if has_question:
            return Drop("missing_field", f"has {names}, but no answer", "add it, or name it: --map answer=NAME")
        return Drop("unknown_fields", f"its fields are {names}", "name them: --map question=NAME,answer=NAME")

    def _there(self, names: Sequence[str]) -> list[str]:
        return [self.by_name[name] for name in names if name in self.by_name]

    def _mapped(self, said: str) -> tuple[str, ...]:
        """`title` → the column title; `title+ask` → both, unless a column is named just so."""
        if found := self._exact(said):
            return (found,)
        parts = tuple(map(self._exact, said.split("+")))
        return parts if all(parts) else ()

    def _exact(self, name: str) -> str:
        return name if name in self.columns else self.by_name.get(plain_name(name), "")


def listed(names: Collection[str], limit: int = 8) -> str:
    """Some names as a message shows them, the first ones of many."""
    some = [shown(name) for name in islice(names, limit)]
    return ", ".join(some) + (", ..." if len(names) > len(some) else "")


def shown(name: str) -> str:
    """A name as a message shows it: short, and without what no terminal can write."""
    short = name if len(name) <= 40 else f"{name[:37]}..."
    return short.encode("utf-8", "backslashreplace").decode()


def unseen(names: Names, columns: Collection[str]) -> list[tuple[str, str]]:
    """The (ours, column) pairs whose column, or one of its `+` parts, no row has."""
    known = {plain_name(column) for column in columns}

    def is_known(said: str) -> bool:
        return plain_name(said) in known

    return [(ours, said) for ours, said in names if not is_known(said) and not all(map(is_known, said.split("+")))]
