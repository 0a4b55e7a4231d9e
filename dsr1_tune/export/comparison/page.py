"""A comparison as a table in the terminal, as compare.json and as compare.html, one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsr1_tune import __version__
from dsr1_tune.atomic import atomic_write
from dsr1_tune.config import Gates
from dsr1_tune.export.comparison.gates import missed_gates
from dsr1_tune.export.comparison.result import AnswerPair, Comparison, SetResult
from dsr1_tune.export.comparison.statistics import Estimate, perplexity
from dsr1_tune.report import html
from dsr1_tune.report.catalogue import Catalogue, Language
from dsr1_tune.text.words import is_chinese

JSON_NAME, HTML_NAME = "compare.json", "compare.html"
TEMPLATE = Path(__file__).with_name("page.html.j2")
TEXTS = Catalogue.beside(__file__)
MAX_ANSWERS = 100
MAX_ANSWER_CHARS = 2000

Line = tuple[str, str, str, str]
"""The key of a measure's name, what A has, what B has, and the change."""


def show(found: Comparison, console: Console) -> None:
    """The tables, the remarks, and that the gates are passed if they are."""
    console.print(escape(f"\nA: {found.a.name}\nB: {found.b.name}"), highlight=False, soft_wrap=True)
    for title, lines in _sections(found, "en"):
        console.print(f"\n[bold]{escape(title)}[/bold]", highlight=False, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", width=23)
        for name in ("A", "B", "change"):
            table.add_column(name, justify="right", no_wrap=True, min_width=8)
        table.add_column("95 %", no_wrap=True)
        for key, a, b, change in lines:
            # The intervals of A's and B's own numbers are in compare.json and on the page.
            number, _, interval = change.partition(" (")
            table.add_row(
                TEXTS.say(key, "en"), a.partition(" (")[0], b.partition(" (")[0], number, interval.rstrip(")")
            )
        console.print(table, highlight=False)
    for remark in found.remarks:
        console.print(escape(f"note: {remark}"), highlight=False, soft_wrap=True)
    if found.has_gates and not found.missed:
        console.print("all gates passed", highlight=False)


def _sections(found: Comparison, language: Language) -> Iterator[tuple[str, list[Line]]]:
    """The table's parts, each under its title."""
    for key, one in (("domain_set", found.domain), ("general_set", found.general)):
        if one is not None:
            numbers = {"rows": f"{one.num_rows:,}", "tokens": f"{one.num_tokens:,}", "name": one.name}
            title = f"{TEXTS.say(key, language)} ({TEXTS.say('rows_of', language, **numbers)})"
            yield title, list(_losses(one))
    if (answers := found.answers) is not None:
        yield (
            f"{TEXTS.say('scores', language)} ({TEXTS.say('answered', language, rows=f'{len(answers.rows):,}')})",
            [
                *(
                    (f"score_{one.name}", _share(one.a), _share(one.b), _share(one.difference, "+"))
                    for one in answers.scores
                ),
                ("identical", "", "", _share(answers.identical)),
                ("similarity", "", "", _share(answers.similarity)),
            ],
        )
        yield TEXTS.say("style", language), list(_style(found))
    yield TEXTS.say("cost", language), list(_cost(found))


def _losses(one: SetResult) -> Iterator[Line]:
    yield "loss_per_token", _number(one.loss_a), _number(one.loss_b), _share(one.increase, "+")
    a, b = (f"{perplexity(loss.value):,.5g}" for loss in (one.loss_a, one.loss_b))
    yield "perplexity", a, b, ""
    if one.agreement is not None:
        yield "agreement", "", "", _share(one.agreement)
    if one.divergence is not None:
        yield "divergence", "", "", _number(one.divergence, ".3g")


def _style(found: Comparison) -> Iterator[Line]:
    assert found.answers is not None
    a, b = found.answers.style_a, found.answers.style_b
    for name, form in (("distinct_1", ".1%"), ("distinct_2", ".1%"), ("mean_words", ",.1f"), ("mean_tokens", ",.1f")):
        yield name, _shown(getattr(a, name), form), _shown(getattr(b, name), form), ""
    for name in ("num_cut", "num_empty"):
        yield name, f"{getattr(a, name):,}", f"{getattr(b, name):,}", ""


def _cost(found: Comparison) -> Iterator[Line]:
    a, b = found.a, found.b
    yield "num_bytes", _bytes(a.num_bytes), _bytes(b.num_bytes), _change(a.num_bytes, b.num_bytes)
    yield "stored_bytes", _bytes(a.stored_bytes), _bytes(b.stored_bytes), _change(a.stored_bytes, b.stored_bytes)
    for name in ("reads_per_second", "writes_per_second"):
        fast_a, fast_b = getattr(a, name), getattr(b, name)
        yield name, _shown(fast_a, ",.1f"), _shown(fast_b, ",.1f"), _change(fast_a, fast_b)


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _change(a: float | None, b: float | None) -> str:
    return f"{b / a - 1:+.1%}" if a and b else ""


def _number(one: Estimate, form: str = ".4f") -> str:
    return f"{one.value:{form}} ({one.low:{form}} … {one.high:{form}})"


def _share(one: Estimate, sign: Literal["", "+"] = "") -> str:
    return f"{one.value:{sign}.2%} ({one.low:{sign}.2%} … {one.high:{sign}.2%})"


def _bytes(number: int | None) -> str:
    if number is None:
        return "–"
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 else f"{number / 2**20:,.2f} MiB"


# --- files -----------------------------------------------------------------------------------------------------------


def write(found: Comparison, folder: Path, language: Literal["auto", "en", "zh"] = "auto") -> Path:
    """Leave compare.json and compare.html in `folder`, which is made."""
    with atomic_write(folder / JSON_NAME) as file:
        json.dump(found.as_json(), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    with atomic_write(folder / HTML_NAME) as file:
        file.write(render(found, _language(found) if language == "auto" else language))
    return folder


def _language(found: Comparison) -> Language:
    """The language that most questions and answers are in."""
    rows = found.answers.rows if found.answers else ()
    votes = sum(1 if is_chinese(row.question + row.reference) else -1 for row in rows)
    return "zh" if votes > 0 else "en"


def render(found: Comparison, language: Language = "en") -> str:
    """The page: no script, no outside font or image, everything that comes from data or models escaped."""
    headline = found.domain or found.general
    rows = found.answers.rows if found.answers else ()
    missed = found.missed
    if language != "en" and missed and found.asked:  # compare.json has the lines in English
        missed = missed_gates(found, Gates.model_construct(None, **found.asked), language)
    return html.render(
        TEMPLATE,
        TEXTS,
        language,
        a=found.a.name,
        b=found.b.name,
        increase=headline.increase.value,
        headline="headline" if found.domain else "headline_general",
        has_gates=found.has_gates,
        missed=missed,
        remarks=found.remarks,
        sections=list(_sections(found, language)),
        pairs=sorted(rows, key=_likeness)[:MAX_ANSWERS],
        max_answer_chars=MAX_ANSWER_CHARS,
        version=__version__,
    )


def _likeness(pair: AnswerPair) -> float:
    """What answers are sorted by: the ones whose scores differ most, then those that differ at all."""
    gap = sum(abs(pair.scores_a[name] - pair.scores_b[name]) for name in pair.scores_a)
    return -gap if pair.a != pair.b else 1.0
