"""`check-serve` on experts: in which form an engine wants those of a family that stores a layer's in one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsr1_tune.errors import ModelError
from dsr1_tune.export.engine_table import Engine, table
from dsr1_tune.models.artifact import Artifact
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import local_path
from dsr1_tune.models.weights.layout import stores_fused

_TAKE_FUSED = ("vllm",)
"""Engines that take an adapter whose experts are fused, of models that store theirs so."""


def problems(artifact: Artifact, engine: Engine) -> Iterator[str]:
    """transformers' own model has one tensor for the experts of a layer, and finds none of that name."""
    if not engine.is_own and artifact.form == "per-expert" and _stores_fused(artifact):
        yield (
            f"its experts are stored one by one, and {engine.title}, which looks for one tensor with those of a layer, "
            "would take random numbers in their place; it loads the model in 16 bits"
        )


def may_take_fused(artifact: Artifact, engine: Engine) -> bool:
    """Whether an engine that wants an adapter's experts one by one does not of this family."""
    return engine.name in _TAKE_FUSED and artifact.form == "peft-fused" and _stores_fused(artifact)


def not_known(artifact: Artifact, engine: Engine) -> Iterator[str]:
    """Whether an engine with code of its own reads such a family's experts in the form that they have here."""
    is_adapter, form = artifact.kind == "adapter", artifact.form
    looked_up = table()["architectures"].get(artifact.architecture, {}).get("one_by_one", ())
    is_usual = form == "dense" or (not is_adapter and (form != "per-expert" or engine.name in looked_up))
    if not engine.is_llama_cpp and not is_usual and _stores_fused(artifact):
        have = "the adapter's factors of experts are" if is_adapter else "its experts are stored"
        how = "one by one" if form == "per-expert" else "fused"
        yield (
            f"{have} {how}, and {artifact.architecture} stores those of a layer in one tensor; whether {engine.title} "
            "reads them so was not looked up"
        )


def _stores_fused(artifact: Artifact) -> bool:
    """Whether transformers stores all experts of a layer of such a model, or of an adapter's base, in one tensor."""
    is_made = artifact.kind == "adapter" or artifact.format != "none"  # 16 bits are as the family stores them
    if not is_made or (config := own_config(artifact)) is None:
        return False
    try:
        return stores_fused(meta_model(config.get_text_config(decoder=True)))
    except (ModelError, ValueError):  # of a family whose experts are not known
        return False


def own_config(artifact: Artifact) -> Any:
    """transformers' config of a model, or of an adapter's base; None where there is none that it can use."""
    from transformers import AutoConfig

    tree: Mapping[str, Any] = artifact.config
    try:
        if artifact.kind == "adapter":
            tree = ModelFolder(local_path(artifact.base), artifact.base).config_json
        return AutoConfig.for_model(**{name: value for name, value in tree.items() if name != "quantization_config"})
    except Exception:  # its values reach validators of many kinds, and what cannot be read is told of elsewhere
        return None
