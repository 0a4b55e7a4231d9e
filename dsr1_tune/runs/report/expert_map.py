"""Pictures of which experts are used: layers down, experts across, readable from 2 × 4 to 60 × 256."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dsr1_tune.atomic import atomic_write
from dsr1_tune.moe.monitor import Routing
from dsr1_tune.runs.watch.expert_tables import ExpertTables

Array = npt.NDArray[np.float64]

_FEW = 16
"""So many experts, and the maps stand side by side; with few layers too, the numbers stand in the cells."""
_NUMBERED_CELLS = 128
_DPI = 110
_LEFT, _RIGHT, _ABOVE, _BELOW, _FOOT, _BAR = 0.6, 1.05, 0.4, 0.55, 0.25, 0.14
"""Inches around a map, below all of them, and of the scale at its side."""


def heat_map(routing: Routing, file: Path, title: str) -> None:
    """One map of each expert's load, as a multiple of an even share."""
    _draw([_load_panel(title, routing)], routing.layers, file)


def before_and_after(tables: ExpertTables, file: Path) -> bool:
    """Three maps: before, after, and the difference; returns False and draws nothing if either is missing."""
    before, after = tables.before, tables.after
    if before is None or after is None or not before.layers or before.load_LE.shape != after.load_LE.shape:
        return False
    top = max(_top(_relative(before)), _top(_relative(after)))
    panels = [
        _load_panel("before training", before, top),
        _load_panel("after training", after, top),
        _Panel("difference: after − before", _relative(after) - _relative(before), is_difference=True),
    ]
    _draw(panels, before.layers, file)
    return True


@dataclass(frozen=True)
class _Panel:
    title: str
    values_LE: Array
    top: float = 0.0
    is_difference: bool = False


def _load_panel(title: str, routing: Routing, top: float | None = None) -> _Panel:
    values_LE = _relative(routing)
    return _Panel(title, values_LE, _top(values_LE) if top is None else top)


def _relative(routing: Routing) -> Array:
    """Each expert's load over an even share: 1 is even."""
    relative: Array = (routing.share_LE * routing.num_experts).numpy()
    return relative


def _top(values_LE: Array) -> float:
    """Where the colours end: a single crowded expert must not make all the others look alike."""
    return float(max(np.quantile(values_LE, 0.995), 2.0))


def _draw(panels: Sequence[_Panel], layers: tuple[str, ...], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_layers, num_experts = panels[0].values_LE.shape
    is_narrow = num_experts <= _FEW
    height = min(max(0.32 * num_layers, 1.1), 7.0) if is_narrow else min(max(0.085 * num_layers, 1.1), 9.0)
    width = min(max(0.6 * num_experts, 2.6), 6.0) if is_narrow else 14.0
    rows, columns = (1, len(panels)) if is_narrow else (len(panels), 1)
    across, down = width + _LEFT + _RIGHT, height + _ABOVE + _BELOW
    size = (columns * across, rows * down + _FOOT)
    figure = Figure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)

    def box(number: int, left: float, width: float) -> Any:
        """A place in the panel of this number, `left` inches into it."""
        x = number % columns * across + left
        y = size[1] - (number // columns + 1) * down + _BELOW
        return figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1]))

    for number, panel in enumerate(panels):
        bar = box(number, _LEFT + width + _BAR, _BAR)
        _draw_panel(figure, box(number, _LEFT, width), bar, panel, layers)
    figure.text(0.5, 0.1 / size[1], "grey: no token went there", fontsize=8, color="0.35", ha="center")
    with atomic_write(file, binary=True) as out:
        figure.savefig(out, format="png")


def _draw_panel(figure: Any, place: Any, scale: Any, panel: _Panel, layers: tuple[str, ...]) -> None:
    from matplotlib import colormaps

    values_LE = panel.values_LE
    if panel.is_difference:
        reach = max(float(np.quantile(np.abs(values_LE), 0.995)), 0.05)
        image = place.imshow(values_LE, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        label = "change, in even shares"
    else:
        colours = colormaps["viridis"].with_extremes(bad="0.8")
        shown = np.ma.masked_equal(values_LE, 0.0)
        image = place.imshow(shown, cmap=colours, vmin=0.0, vmax=panel.top, aspect="auto", interpolation="nearest")
        label = "load, 1 = even share"
    place.set_title(panel.title, fontsize=11, loc="left")
    place.set_xlabel("expert", fontsize=9)
    place.set_ylabel("layer", fontsize=9)
    _tick(place, layers, values_LE.shape[1])
    bar = figure.colorbar(image, cax=scale, extend="max" if not panel.is_difference else "neither")
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if values_LE.size <= _NUMBERED_CELLS and values_LE.shape[1] <= _FEW:
        _number_cells(place, image, values_LE, panel.is_difference)


def _tick(place: Any, layers: tuple[str, ...], num_experts: int) -> None:
    """Whole numbers, few enough to be read."""
    every = max(1, -(-len(layers) // 20))
    # Of model.layers.3.mlp.experts 3; its place where there is none.
    names = [next(filter(str.isdigit, name.split(".")), str(number)) for number, name in enumerate(layers)]
    place.set_yticks(list(range(0, len(layers), every)), names[::every], fontsize=8)
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if num_experts <= 32 * step)
    experts = list(range(0, num_experts, step))
    place.set_xticks(experts, [str(expert) for expert in experts], fontsize=8)


def _number_cells(place: Any, image: Any, values_LE: Array, is_difference: bool) -> None:
    for (layer, expert), value in np.ndenumerate(values_LE):
        red, green, blue, _ = image.cmap(image.norm(value)) if value or is_difference else (0.8, 0.8, 0.8, 1.0)
        is_dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = f"{value:+.2f}" if is_difference else f"{value:.2f}"
        place.text(expert, layer, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
