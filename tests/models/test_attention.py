"""What computes attention is what was asked for on every way of loading, and what cannot be had is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import attention
from dsr1_tune.models.load import load
from tests.conftest import TinyModel, to_fp8

IDS = torch.randint(2, 258, (2, 24), generator=torch.Generator().manual_seed(0))


def loss_of(folder: Path, chosen: str, is_quantized: bool = False) -> float:
    model = load(Base(model=str(folder), attention=chosen), quantized=is_quantized).model
    assert model.config._attn_implementation == chosen
    assert model.model.layers[0].self_attn.config._attn_implementation == chosen
    with torch.no_grad():
        return float(model(input_ids=IDS, labels=IDS).loss)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_sdpa_and_eager_attention_are_the_same(tiny_base: Path, is_quantized: bool) -> None:
    sdpa, eager = (loss_of(tiny_base, chosen, is_quantized) for chosen in ("sdpa", "eager"))
    assert eager == pytest.approx(sdpa, abs=1e-2 if is_quantized else 1e-5)  # in 4 bits the rest is bfloat16


def test_attention_is_chosen_for_a_block_fp8_base(tiny_model: TinyModel) -> None:
    form = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    folder = tiny_model("deepseek_v3", quantization_config=form)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in [name for name, weight in weights.items() if "experts" in name and weight.dim() == 2]:
        weights[name], weights[f"{name}_scale_inv"] = to_fp8(weights[name], 32)
    save_file(weights, file, {"format": "pt"})
    sdpa, eager = (loss_of(folder, chosen) for chosen in ("sdpa", "eager"))
    assert eager == pytest.approx(sdpa, abs=1e-5)


@pytest.mark.parametrize("chosen", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_is_refused_without_gpu_package_and_16_bits(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    def refused(said: str, hint: str, dtype: str = "bfloat16") -> None:
        with pytest.raises(ModelError, match=said) as caught:
            load(Base(model=str(tiny_base), attention=chosen, dtype=dtype))
        assert hint in caught.value.hint

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("needs a GPU, and there is none", "base.attention=auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    refused("Tesla V100 is not one", "base.attention=auto")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    refused("a package that is missing: flash-attn", "--no-build-isolation")
    package, _, *rest = attention._FLASH[chosen]
    monkeypatch.setitem(attention._FLASH, chosen, (package, lambda: True, *rest))
    refused("computes in 16 bits", "base.attention=auto", "float32")


def test_attention_that_an_architecture_lacks_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match="gpt_oss has no attention by sdpa"):
        load(Base(model=str(tiny_model("gpt_oss")), attention="sdpa"))


@pytest.mark.parametrize("chosen", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_that_transformers_would_replace_by_a_kernel_from_the_hub_is_refused(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setattr(attention, "_check_flash", lambda *given: None)
    with pytest.raises(ModelError, match=f"gpt_oss has no attention by {chosen}"):
        load(Base(model=str(tiny_model("gpt_oss")), attention=chosen))
