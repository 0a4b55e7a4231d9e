"""Linear layers whose weight is read past them: what stands in their place, an adapter or 4 bits, is not seen there.

State-space layers hand `self.out_proj.weight` to a fused kernel, or multiply by `self.dt_proj.weight` themselves. Which
way is taken depends on the device and on what is installed, so the classes' source tells, not a run of them.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any, cast

from torch import nn

_READ = re.compile(r"\bself\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|ndim|size))")


def read_past(model: nn.Module) -> set[str]:
    """The full names of the linear layers whose weight the module that holds them may read by itself."""
    return {
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        for child in _reads(cast(Any, type(module)))
        if isinstance(getattr(module, child, None), nn.Linear)
    }


@cache
def _reads(kind: Any) -> frozenset[str]:
    """The attributes of which a class of modules reads `weight`; none for torch's own, and where there is no source."""
    found: set[str] = set()
    for one in kind.__mro__:
        if one.__module__.startswith("transformers.models"):
            try:
                found |= set(_READ.findall(inspect.getsource(one)))
            except (OSError, TypeError):
                continue
    return frozenset(found)
