"""`compare`: two models on the same rows, before and after training, merging or quantizing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from dsr1_tune.config import Compare, Gates
from dsr1_tune.errors import ConfigError
from dsr1_tune.export.comparison import page
from dsr1_tune.export.comparison.backends import Name, check_present, name_of, open_scorer, stored_bytes
from dsr1_tune.export.comparison.gates import with_gates
from dsr1_tune.export.comparison.measure import Distributions, Measured, measure
from dsr1_tune.export.comparison.result import Comparison, compared
from dsr1_tune.export.comparison.rows import Rows, choose_rows
from dsr1_tune.runs.console import Narrator, quiet_libraries


def run(
    a: Name,
    b: Name,
    compare: Compare,
    gates: Gates,
    out: Path | None = None,
    console: Console | None = None,
    names: tuple[str, str] | None = None,
    language: Literal["auto", "en", "zh"] = "auto",
) -> Comparison:
    """Measure A, then B, on the same rows: a table, and compare.json and compare.html in `out`.

    One model is in memory at a time; `names` are what they are called where their own say little. Raises ConfigError,
    DataError or ModelError for what cannot be compared; a missed gate is no error here, it stands in `missed`.
    """
    narrator = Narrator(console or Console())
    quiet_libraries()
    for model in (a, b):
        check_present(model)
    rows = choose_rows((a, b), compare)
    _check_gates(gates, rows)
    name_a, name_b = names or (name_of(a), name_of(b))
    with Distributions() as kept:
        first = _measured(a, b, name_a, rows, compare, kept, narrator)
        kept.is_full = True
        second = _measured(b, a, name_b, rows, compare, kept, narrator)
    found = compared(first, second, (stored_bytes(a), stored_bytes(b)), rows, compare.seed)
    found = with_gates(found, gates)
    page.show(found, narrator.console)
    if out is not None:
        narrator.say(f"compare.json and compare.html are in {page.write(found, out, language)}")
    return found


def _check_gates(gates: Gates, rows: Rows) -> None:
    """Refuse, before any model is loaded, a gate on what there are no rows for."""
    if gates.max_loss_increase is not None and rows.domain is None:
        raise ConfigError(
            "gates.max_loss_increase: there are no domain rows to measure the loss on, as neither model came from a "
            "run that is still there",
            hint="give some: --data eval.jsonl",
        )


def _measured(
    model: Name, other: Name, name: str, rows: Rows, compare: Compare, kept: Distributions, narrator: Narrator
) -> Measured:
    narrator.stage(f"Measuring {name}")
    num_rows = len(rows.general.records) + len(rows.asked) + (len(rows.domain.records) if rows.domain else 0)
    with (
        open_scorer(model, other, narrator.say) as scorer,
        narrator.counting("rows scored and answered", num_rows) as counting,
    ):
        return measure(scorer, name, rows, compare, kept, counting)
