"""How good a reward model is on pairs: how often it is right, by how much, and whether its certainty can be trusted."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dsr1_tune.atomic import atomic_write
from dsr1_tune.text.amount import amount

EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Where the bins of the calibration begin and end: how sure the model is, from a guess to certain."""
DIGITS = 5


@dataclass(frozen=True)
class Bin:
    """The pairs of which the model was about as sure."""

    begin: float
    end: float
    num_pairs: int
    sure: float
    """The mean probability that it gave the answer that it preferred."""
    right: float
    """The share of pairs where that was the chosen one."""


@dataclass(frozen=True)
class Bucket:
    """The pairs whose rows say the same of what their answers differ in."""

    num_pairs: int
    accuracy: float


@dataclass(frozen=True)
class PairScores:
    """What a reward model makes of pairs. A margin is the chosen answer's score minus the rejected one's."""

    loss: float
    """Mean of -log sigmoid(margin)."""
    accuracy: float
    """Share of pairs with a margin above 0; those of exactly 0 count half."""
    margin: float
    """Mean margin."""
    calibration_error: float
    """Expected calibration error: how far, on average over pairs, sigmoid(|margin|) is from the share that is right."""
    length_only: float
    """Share of pairs whose chosen answer has more tokens; as many count half."""
    num_pairs: int
    mean_chosen: float
    mean_rejected: float
    bins: tuple[Bin, ...]
    differs: dict[str, Bucket]
    """By what the rows say in a field "differs", where they do."""
    margins: tuple[float, ...]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PairScores:
        """The inverse of `as_json`."""
        return TypeAdapter(cls).validate_python(value)

    def as_json(self) -> dict[str, Any]:
        """For eval.json."""
        return asdict(self)

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.1%}, mean margin {self.margin:+.3f}, loss {self.loss:.4f}"


def compare(
    chosen: Sequence[float],
    rejected: Sequence[float],
    lengths: Sequence[tuple[int, int]],
    differs: Sequence[str | None],
    tie: float = 0.0,
) -> PairScores:
    """The scores of pairs, compared; `lengths` are the answers' (chosen, rejected), margins below `tie` count as 0."""
    margins = [one - other for one, other in zip(chosen, rejected, strict=True)]
    rights = [_right(margin if abs(margin) >= tie else 0.0) for margin in margins]
    bins = _bins(margins, rights)
    num_pairs = len(margins)
    return PairScores(
        loss=_mean([math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0) for margin in margins]),
        accuracy=_mean(rights),
        margin=_mean(margins),
        calibration_error=sum(one.num_pairs * abs(one.sure - one.right) for one in bins) / num_pairs,
        length_only=_mean([_right(longer - shorter) for longer, shorter in lengths]),
        num_pairs=num_pairs,
        mean_chosen=_mean(chosen),
        mean_rejected=_mean(rejected),
        bins=bins,
        differs=_buckets(differs, rights),
        margins=tuple(round(margin, DIGITS) for margin in margins),
    )


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _bins(margins: Sequence[float], rights: Sequence[float]) -> tuple[Bin, ...]:
    """Pairs by how sure the model was, which either way round is the same; empty bins are left out."""
    sures = [1 / (1 + math.exp(-abs(margin))) for margin in margins]
    found = []
    for begin, end in pairwise(EDGES):
        inside = [n for n, sure in enumerate(sures) if begin <= sure < end or (end == EDGES[-1] and sure == end)]
        if inside:
            sure, right = _mean([sures[n] for n in inside]), _mean([rights[n] for n in inside])
            found.append(Bin(begin, end, len(inside), sure, right))
    return tuple(found)


def _buckets(differs: Sequence[str | None], rights: Sequence[float]) -> dict[str, Bucket]:
    found: dict[str, list[float]] = defaultdict(list)
    for name, right in zip(differs, rights, strict=True):
        if name is not None:
            found[name].append(right)
    return {name: Bucket(len(values), _mean(values)) for name, values in sorted(found.items())}


# --- the picture ------------------------------------------------------------------------------------------------------

_DPI = 110
_BLUE, _GREY = "#2b6cb0", "0.45"


def plot(scores: PairScores, file: Path) -> None:
    """calibration.png: how sure the model was against how often it was right, and the margins of all pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_reliability(left, scores)
    _draw_margins(right, scores)
    with atomic_write(file, binary=True) as out:
        figure.savefig(out, format="png")


def _draw_reliability(place: Any, scores: PairScores) -> None:
    place.plot([0.5, 1], [0.5, 1], linestyle="--", color=_GREY, linewidth=1, label="as sure as it is right")
    for one in scores.bins:
        low, high = wilson(one.right, one.num_pairs)
        place.plot([one.sure, one.sure], [low, high], color=_BLUE, alpha=0.35, linewidth=3, solid_capstyle="butt")
        offset, side = (7, "left") if one.sure < 0.93 else (-7, "right")
        beside = {"xytext": (offset, 6), "textcoords": "offset points", "ha": side}
        place.annotate(f"{one.num_pairs:,}", (one.sure, one.right), fontsize=9, **beside)
    sures, rights = [one.sure for one in scores.bins], [one.right for one in scores.bins]
    place.plot(sures, rights, marker="o", color=_BLUE, label="pairs (their number; bars: 95 %)")
    place.set(xlim=(0.48, 1.02), ylim=(-0.03, 1.06))
    place.set(xlabel="how sure the model is: sigmoid(|margin|)", ylabel="share of pairs where it is right")
    place.set_title(f"Calibration (error {scores.calibration_error:.3f})", loc="left", fontsize=11)
    place.legend(loc="lower right", fontsize=9, frameon=False)
    place.grid(alpha=0.25)


def _draw_margins(place: Any, scores: PairScores) -> None:
    reach = max(max(map(abs, scores.margins)), 1e-3) * 1.02
    num_bins = 2 * min(15, max(5, round(math.sqrt(scores.num_pairs))))
    edges = [reach * (2 * number / num_bins - 1) for number in range(num_bins + 1)]
    for is_right, colour, label in ((False, "#c05621", "wrong"), (True, _BLUE, "right")):
        shown = [margin for margin in scores.margins if (margin >= 0) == is_right]
        place.hist(shown, bins=edges, color=colour, label=label, edgecolor="white")
    place.yaxis.get_major_locator().set_params(integer=True)
    place.axvline(0, color=_GREY, linewidth=1)
    place.axvline(scores.margin, color="black", linewidth=1, linestyle=":", label=f"mean {scores.margin:+.2f}")
    place.set(xlabel="margin: score of the chosen answer - score of the rejected one", ylabel="pairs")
    shares = f"{scores.accuracy:.1%} right; the longer answer would be {scores.length_only:.1%}"
    place.set_title(f"{amount(scores.num_pairs, 'pair')}: {shares}", loc="left", fontsize=11)
    place.legend(fontsize=9, frameon=False)


def wilson(share: float, number: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `number` draws (Wilson 1927)."""
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, middle - half), min(1.0, middle + half)
