"""Line charts of a report: numbers by step become points on a canvas of 1000 × 260, with a few ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

WIDTH, HEIGHT = 1000, 260
_MAX_POINTS = 400
_NUM_TICKS = 4
# In at least so many points, what reaches so many times as high as all but 0.5 % of them is a spike.
_FEW_POINTS = 20
_SPIKE = 4

Points = Sequence[tuple[float, float]]
"""(step, value)."""


@dataclass(frozen=True)
class Line:
    """One curve; `look` is the style of its stroke, or dots."""

    name: str
    look: str
    points: Points


def chart(name: str, lines: Sequence[Line], is_log: bool = False, from_zero: bool = False) -> dict[str, Any] | None:
    """What the template draws; None if there is nothing to be drawn."""
    finite = [Line(line.name, line.look, _drawable(line.points, is_log)) for line in lines]
    finite = [line for line in finite if line.points]
    if not finite:
        return None
    steps = [step for line in finite for step, _ in line.points]
    values = sorted(value for line in finite for _, value in line.points)
    low, high = values[0], _highest(values)
    low = 0.0 if from_zero and not is_log else low
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (low if low == 0.0 and from_zero else low - margin), high + margin
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(step: float, value: float) -> tuple[float, float]:
        height = (min(max(value, low), high) - low) / (high - low)
        return round((step - first) / (last - first) * WIDTH, 1), round((1 - height) * HEIGHT, 1)

    return {
        "name": name,
        "lines": [
            {"name": line.name, "look": line.look, "places": [place(*point) for point in line.points]}
            for line in finite
        ],
        "x_ticks": [{"x": (s - first) / (last - first), "label": f"{s:g}"} for s in _whole_ticks(first, last)],
        "y_ticks": [
            {"y": 1 - (value - low) / (high - low), "label": f"{10**value:.1g}" if is_log else f"{value:g}"}
            for value in (_decades(low, high) if is_log else _ticks(low, high))
        ],
    }


def _highest(values: Sequence[float]) -> float:
    """The highest of sorted values, unless it is a spike of a few points that would press all others flat."""
    usual = max(values[int(0.995 * (len(values) - 1))], values[len(values) // 2])
    is_spike = len(values) >= _FEW_POINTS and values[-1] - values[0] > _SPIKE * (usual - values[0])
    return usual if is_spike else values[-1]


def smoothed(points: Points) -> Points:
    """The running median over a twentieth of the curve, which single bad batches do not move."""
    reach = max(1, len(points) // 40)
    finite = [point for point in points if math.isfinite(point[1])]
    return [
        (step, median(value for _, value in finite[max(0, number - reach) : number + reach + 1]))
        for number, (step, _) in enumerate(finite)
    ]


def _drawable(points: Points, is_log: bool) -> list[tuple[float, float]]:
    """Finite points, few enough to be drawn, as logarithms for a logarithmic chart."""
    usable = [(s, math.log10(v) if is_log else v) for s, v in points if math.isfinite(v) and (v > 0 or not is_log)]
    size = -(-len(usable) // _MAX_POINTS)
    if size <= 1:
        return usable
    lots = [usable[start : start + size] for start in range(0, len(usable), size)]
    return [(lot[len(lot) // 2][0], fmean(value for _, value in lot)) for lot in lots]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends."""
    rough = (high - low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Logarithms of powers of ten between the ends, and of 3 times those where there are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    every = max(1, len(powers) // 5)
    ticks = [float(power) for power in powers if power % every == 0]
    if high - low < 2:
        ticks += [power + math.log10(3) for power in powers]
    return sorted(tick for tick in ticks if low <= tick <= high)


def _whole_ticks(low: float, high: float) -> list[float]:
    return [tick for tick in _ticks(low, high) if tick == int(tick)]
