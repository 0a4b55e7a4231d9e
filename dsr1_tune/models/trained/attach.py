"""What runs leave, loaded for use: a base with its adapter or its trained experts on it, or a whole model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import Loaded, load
from dsr1_tune.models.ref import Adapter, Experts, ModelRef, RewardModel, Run, manifest_in
from dsr1_tune.models.trained.experts import attach_experts
from dsr1_tune.models.weights.index import gist
from dsr1_tune.moe.expert_lora import use_grouped_products
from dsr1_tune.moe.shared_factors import sharing_factors

_RIGHT_BASE = "give an adapter together with the base that it was trained on"


def load_with_adapter(
    path: str | Path | None,
    progress: Callable[[str], None] | None = None,
    check: Callable[[Any], None] | None = None,
) -> Loaded:
    """For using a model: a run folder, a PEFT adapter folder, a folder of trained experts, or any base.

    `check` is given the tokenizer before any weights are read. Raises ModelError as `locate` and `load_located` do, and
    for an adapter or experts that do not fit their base.
    """
    ref = ModelRef.resolve(path)
    if isinstance(ref, RewardModel):
        ref.refuse()
    if isinstance(ref, (Adapter, Experts)):
        quantized = isinstance(ref, Adapter) and was_quantized(ref.path)
        loaded = load(ref.base, progress, quantized, check)
        attach = attach_adapter if isinstance(ref, Adapter) else attach_experts
        return replace(loaded, model=attach(loaded, ref.path), name=f"{path} over {loaded.name}")
    model = ref.model if isinstance(ref, Run) and ref.model else path
    return load(Base(model=None if model is None else str(model)), progress, check=check)


def attach_adapter(loaded: Loaded, adapter: Path) -> Any:
    """The loaded model with the adapter on it; every weight of the adapter must have found its place."""
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(
            f"{adapter}: has no {file.name}", hint="copy the adapter again; pickled weights are not opened"
        )
    try:
        with safe_open(file, framework="pt") as weights:
            in_file = set(weights.keys())
        with warnings.catch_warnings(), sharing_factors():  # of missing weights, which are refused below
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # of ranks of single groups, which it does not ignore
            # Read on the CPU: of experts that are shared out the file holds all.
            model = PeftModel.from_pretrained(loaded.model, str(adapter), torch_device="cpu")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{adapter}: does not go onto {loaded.name}: {gist(error)}", hint=_RIGHT_BASE) from error
    # PEFT only warns of weights that the file lacks, and says nothing of those that the model has no place for.
    if astray := sorted(in_file ^ set(get_peft_model_state_dict(model))):
        raise ModelError(
            f"{adapter}: does not go onto {loaded.name}: {len(astray)} weights do not match, such as {astray[0]}",
            hint=_RIGHT_BASE,
        )
    use_grouped_products(model)
    return model.eval()


def was_quantized(adapter: Path) -> bool:
    """Whether an adapter was trained over a base in 4 bits, as its run's manifest says."""
    manifest = manifest_in(adapter.parent)
    config = manifest.get("config")
    return manifest.get("command") == "qlora" or (isinstance(config, dict) and config.get("method") == "qlora")
