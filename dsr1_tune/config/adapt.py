"""Settings of `plan` and `adapt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field

from dsr1_tune.config.clean import Dedup, Judge, Privacy
from dsr1_tune.config.export import Compare, Gates, Merge, Quantize
from dsr1_tune.config.sections import Adapter
from dsr1_tune.config.training import Esft, EsftRun, FullRun, Train, TuneRun

Run = TypeVar("Run", bound=TuneRun)
Way = Literal["auto", "lora", "qlora", "full", "esft"]


def _gib(value: Any) -> Any:
    """`24GiB`, `24 GB`, `24g` and `24` as what they are in GiB."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower().replace(" ", "")
    unit = next((ending for ending in _UNITS if text.endswith(ending)), "")
    number = text.removesuffix(unit)
    if not number.replace(".", "", 1).isdigit():
        raise ValueError("is no size; write for example 24GiB")
    return float(number) * _UNITS.get(unit, 1.0)


_UNITS = {"gib": 1.0, "gb": 1e9 / 2**30, "mib": 1 / 1024, "mb": 1e6 / 2**30, "tib": 1024.0, "g": 1.0}


Gib = Annotated[float, BeforeValidator(_gib), Field(gt=0)]


class PlanRun(TuneRun):
    """Everything `dsr1-tune plan` needs to know; a training run's YAML can be given as it is."""

    adapter: Adapter = Adapter()
    train: Train = Train()
    esft: Esft = Esft()
    memory: Gib | None = None
    """GiB of each GPU, or with device=cpu for each process; on a machine without a GPU one is planned for. Without it
    what this machine has free."""
    host_memory: Gib | None = None
    """GiB of the machine's main memory beside its GPUs, for all processes together; not looked at without it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it would be trained: cuda plans for GPUs that need not be here; auto is this machine's, and of a machine
    without a GPU cuda if `memory` is given."""


def as_run(config: PlanRun, kind: type[Run], **sections: Any) -> Run:
    """The run of that kind that a plan is about, with some `sections` otherwise.

    What the plan says for other methods is left out: which weights full trains, an adapter for esft's weights. Raises
    ValidationError for settings that the method refuses.
    """
    tree = config.model_dump(include=set(kind.model_fields)) | sections
    if issubclass(kind, EsftRun):
        adapter = tree.pop("adapter")
        if config.esft.method == "lora":
            tree["adapter"] = adapter | {"groups": ("routed_experts",)}
    if not issubclass(kind, FullRun):
        tree.pop("train", None)
    tree.pop("method", None)  # adapt's, which alignment has another of
    return kind.model_validate(tree)


class AdaptRun(PlanRun):
    """Everything `dsr1-tune adapt` needs to know."""

    renamed: ClassVar[Mapping[str, str]] = {"quantise": "quantize"}

    method: Way = "auto"
    """How to train; auto takes what fits."""
    privacy: Privacy = Privacy()
    dedup: Dedup = Dedup()
    judge: Judge = Judge()
    merge: Merge = Merge()
    quantize: Quantize = Quantize()
    compare: Compare = Compare()
    gates: Gates = Gates(max_loss_increase=0.02, min_agreement=0.95)
    """What the quantized model must keep of the merged one; null turns a gate off."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of report.html, compare.html and the card; auto takes the data's."""
    out: Path | None = None
    """The folder of all that is made; without it adapted/<data file>."""
