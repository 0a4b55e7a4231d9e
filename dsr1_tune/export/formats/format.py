"""What a quantization format is: everything that `quantize`, `export`, `compare` and `check-serve` need to know of one.

Nothing heavy is imported here or at the top of a format's file, so that `check-serve` can look formats up quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsr1_tune.config.export import Quantize

if TYPE_CHECKING:
    from dsr1_tune.export.weights.accounting import Quantized
    from dsr1_tune.export.weights.source import Source
    from dsr1_tune.runs.console import Narrator

Write = Callable[["Source", Path, Quantize, "Narrator"], "Quantized"]
"""write(source, folder, settings, narrator) writes weights, config.json and sidecars into the empty `folder`."""


@dataclass(frozen=True)
class Format:
    """A way of storing weights in fewer bits. Built-in ones are listed in registry.py; docs/export.md says how others
    are added from outside the package."""

    name: str
    """As `--to` takes it."""
    bits: float
    """Bits a weight of a large matrix, scales included."""
    write: Write
    """Raises ModelError for a model that the format cannot take."""
    next_step: str
    """What to do with the result; `{folder}` stands for where it is."""
    is_stored_as: Callable[[Mapping[str, Any]], bool] = lambda stored: False
    """Whether a config.json's `quantization_config` means this format."""
    loads_in: frozenset[str] = frozenset()
    """The serving engines that load it, as `check-serve --engine` names them."""
    refused_by: Mapping[str, str] = field(default_factory=dict)
    """Why other engines do not, by engine, where there is more to say than that they do not read it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The settings of `quantize` that only this format heeds, each with another that it needs, such as `method=gptq`,
    or with an empty text."""
    variant: Callable[[Quantize], str] = lambda settings: ""
    """What tells the results of different settings apart, such as `q4_k_m`; empty for the usual one."""
    gentler: Callable[[Quantize], tuple[str, ...]] = lambda settings: ()
    """Flags of formats that lose less, the likeliest first."""
    keeps: Callable[[Quantize], bool] = lambda settings: False
    """Whether these settings leave the matrices in 16 bits."""
    takes_every_model: bool = False
    """Whether it also takes a model that has none of the matrices that are to be quantized."""

    def label(self, settings: Quantize) -> str:
        """For people and as the end of a folder's name: nf4, w4a16, w4a16-gptq, gguf-q4_k_m."""
        return "-".join(filter(None, (self.name, self.variant(settings))))
