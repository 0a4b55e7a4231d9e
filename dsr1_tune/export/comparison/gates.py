"""What a model must have kept to be let through: a line for every gate that it missed."""

from __future__ import annotations

from dataclasses import asdict, replace

from dsr1_tune.config import Gates
from dsr1_tune.errors import ConfigError, TuneError
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.report.catalogue import Catalogue, Language

TEXTS = Catalogue.beside(__file__)


class GatesMissed(TuneError):
    """A model that lost more than was allowed; not a mistake of the user's, and so another exit code."""

    exit_code = 1


def with_gates(found: Comparison, gates: Gates) -> Comparison:
    """The comparison, with the gates and those of them that were missed."""
    return replace(found, asked=gates.model_dump(), missed=missed_gates(found, gates))


def missed_gates(found: Comparison, gates: Gates, language: Language = "en") -> tuple[str, ...]:
    """A line for every gate that B missed. Raises ConfigError for a gate on what could not be measured."""
    missed = []
    if gates.max_loss_increase is not None:
        if found.domain is None:
            raise ConfigError(
                "gates.max_loss_increase: there are no domain rows to measure the loss on", hint="give some with --data"
            )
        if not found.domain.increase.value <= gates.max_loss_increase:  # NaN, from a broken model, misses every gate
            missed.append(("missed_domain", "+.2%", found.domain.increase, gates.max_loss_increase))
    if gates.min_agreement is not None:
        agreement = (found.domain or found.general).agreement
        if agreement is None:
            raise ConfigError(
                "gates.min_agreement: the models read the rows as other tokens, so they cannot agree on the next one",
                hint="leave the gate out; the losses are compared per byte of text",
            )
        if not agreement.value >= gates.min_agreement:
            missed.append(("missed_agreement", ".2%", agreement, gates.min_agreement))
    if gates.max_general_drop is not None and not found.general.increase.value <= gates.max_general_drop:
        missed.append(("missed_general", "+.2%", found.general.increase, gates.max_general_drop))
    return tuple(
        TEXTS.say(
            key,
            language,
            limit=f"{limit:.2%}",
            **{name: f"{number:{form}}" for name, number in asdict(measured).items()},
        )
        for key, form, measured, limit in missed
    )
