"""Tiny GGUF files, and what llama.cpp makes of them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from dsr1_tune.config import Base
from dsr1_tune.config.export import Quantize
from dsr1_tune.export import quantize
from dsr1_tune.export.gguf import write
from dsr1_tune.models.llama_cpp.client import LlamaCpp
from dsr1_tune.models.load import load
from dsr1_tune.models.ref import Gguf, ModelRef
from tests.conftest import save_tiny


def quantized(source: Path, out: Path, kind: str, **settings: Any) -> tuple[Path, str]:
    """The .gguf file that the command writes, and what it said."""
    said = io.StringIO()
    config = Quantize(to="gguf", gguf=kind, **settings)  # type: ignore[arg-type]
    folder = quantize.run(source, out, config, Console(file=said, width=200))
    found = ModelRef.resolve(folder)
    assert isinstance(found, Gguf)
    return found.file, said.getvalue()


def divergence(model: Any, file: Path, num_tokens: int = 64) -> float:
    """Mean KL of llama.cpp's next-token distributions from those of a transformers model, over random tokens."""
    ids_NT = torch.randint(2, 258, (4, num_tokens), generator=torch.Generator().manual_seed(1))
    with LlamaCpp(file) as engine, torch.no_grad():
        theirs_NTV = torch.stack([engine.logprobs(ids.tolist()) for ids in ids_NT])
        ours_NTV = model(ids_NT).logits.float().log_softmax(-1)
    return float((ours_NTV.exp() * (ours_NTV - theirs_NTV)).sum(-1).mean())


def in_bf16(folder: Path) -> Any:
    """The model with its weights rounded to bfloat16, as the file has them, that computes in float32."""
    return load(Base(model=str(folder), dtype="bfloat16")).model.float()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny Qwen3-MoE with sizes that K-quants divide, where the routed experts' down projection is too narrow."""
    sizes = {"hidden_size": 256, "moe_intermediate_size": 96, "head_dim": 32, "num_hidden_layers": 3}
    sizes["norm_topk_prob"] = True
    return save_tiny(tmp_path_factory.mktemp("gguf") / "qwen", tiny_tokenizer, "qwen3_moe", **sizes)


@pytest.fixture(scope="session")
def in_16(folder: Path, converter: None) -> tuple[Path, str]:
    return quantized(folder, folder.with_name("bf16"), "bf16")


@pytest.fixture(scope="session")
def in_q4(folder: Path, in_16: tuple[Path, str]) -> tuple[Path, str]:
    """Made of the same 16-bit file, which is not converted again."""

    def converted(source: Any, place: Path, kind: str, narrator: Any) -> Path:
        return Path(shutil.copyfile(in_16[0], place / "converted.gguf"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "convert", converted)
        return quantized(folder, folder.with_name("q4"), "q4_k_m")


YARN = {
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def add_further_layer(folder: Path) -> None:
    """A multi-token-prediction layer as DeepSeek stores it: a copy of the last layer and a few tensors more."""
    weights = load_file(folder / "model.safetensors")
    last = {name: weight for name, weight in weights.items() if ".layers.1." in name}
    further = {name.replace(".1.", ".2.", 1): weight.clone() for name, weight in last.items()}
    extra = {"eh_proj.weight": torch.randn(64, 128), "enorm.weight": torch.ones(64), "hnorm.weight": torch.ones(64)}
    further |= {f"model.layers.2.{name}": weight for name, weight in extra.items()}
    save_file(weights | further, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
