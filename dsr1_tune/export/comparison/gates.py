"""What a model must have kept to be let through: a line for every gate that it missed."""

from __future__ import annotations

from dataclasses import replace

from dsr1_tune.config import Gates
from dsr1_tune.errors import ConfigError, TuneError
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.export.comparison.statistics import Estimate


class GatesMissed(TuneError):
    """A model that lost more than was allowed; not a mistake of the user's, and so another exit code."""

    exit_code = 1


def with_gates(found: Comparison, gates: Gates) -> Comparison:
    """The comparison, with the gates and those of them that were missed."""
    return replace(found, asked=gates.model_dump(), missed=missed_gates(found, gates))


def missed_gates(found: Comparison, gates: Gates) -> tuple[str, ...]:
    """A line for every gate that B missed. Raises ConfigError for a gate on what could not be measured."""
    lines = []
    if gates.max_loss_increase is not None:
        if found.domain is None:
            raise ConfigError(
                "gates.max_loss_increase: there are no domain rows to measure the loss on", hint="give some with --data"
            )
        lines += _at_most("domain loss", found.domain.increase, gates.max_loss_increase)
    if gates.min_agreement is not None:
        agreement = (found.domain or found.general).agreement
        if agreement is None:
            raise ConfigError(
                "gates.min_agreement: the models read the rows as other tokens, so they cannot agree on the next one",
                hint="leave the gate out; the losses are compared per byte of text",
            )
        if not agreement.value >= gates.min_agreement:
            lines.append(
                f"agreement is {agreement.value:.2%} (95 %: {agreement.low:.2%} to {agreement.high:.2%}), "
                f"at least {gates.min_agreement:.2%} was asked"
            )
    if gates.max_general_drop is not None:
        lines += _at_most("general loss", found.general.increase, gates.max_general_drop)
    return tuple(lines)


def _at_most(what: str, increase: Estimate, limit: float) -> list[str]:
    if increase.value <= limit:  # not so for NaN, which a broken model gives
        return []
    return [
        f"{what} rose by {increase.value:+.2%} (95 %: {increase.low:+.2%} to {increase.high:+.2%}), "
        f"at most {limit:.2%} was allowed"
    ]
