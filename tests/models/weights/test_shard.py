"""A process of several reads and holds its own experts alone, with the bits that one process has of them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.config import Base
from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export.quantize import run as quantize
from dsr1_tune.models import load
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.weights import checkpoint
from dsr1_tune.models.weights.shard import check_shared
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.expert_shard import ExpertParallel, shard_of
from dsr1_tune.moe.quantized_experts import audit_bits, memory_of
from tests import quantized_folders as packed
from tests.conftest import to_fp8
from tests.families import config_of, save_family

Save = Callable[..., Path]
FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "gpt_oss", "llama4"]
SHARES = [(0, 2), (1, 2), (0, 3), (2, 3)]  # 4 experts among 3 processes: 1, 1 and 2


@pytest.fixture
def save(tmp_path: Path, tiny_tokenizer: Any) -> Save:
    return lambda family, **changes: save_family(tmp_path / family, tiny_tokenizer, family, **changes)


def loaded(folder: Path, share: tuple[int, int] | None = None, quantized: bool = False) -> Any:
    located = load.locate(Base(model=str(folder), dtype="float32"))
    parallel = ExpertParallel(*share) if share else None
    return load.load_located(located, "float32", quantized=quantized, expert_parallel=parallel).model


def check_share(part: Any, whole: Any) -> None:
    """The part's experts are the whole's of those numbers, to the bit, and all else is the same."""
    blocks = find_experts(part)
    assert blocks and [block.num_experts for block in blocks] == [block.num_experts for block in find_experts(whole)]
    shards = {}
    for block in blocks:
        shard = shard_of(block.module)
        assert shard and block.module.num_experts == block.module.down_proj.shape[0] == len(shard.mine)
        shards[block.name] = shard
    want, got = whole.state_dict(), part.state_dict()
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        if shard := shards.get(name.rpartition(".")[0]):
            each = len(tensor) // shard.num_experts  # bitsandbytes quantizes gate and up apart
            tensor = tensor[shard.mine.start * each : shard.mine.stop * each]
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_share_has_the_bits_of_the_whole(save: Save, family: str, quantized: bool) -> None:
    folder = save(family)
    whole = loaded(folder, quantized=quantized)
    for share in SHARES:
        part = loaded(folder, share, quantized)
        assert type(part) is type(whole)
        check_share(part, whole)
        if quantized:
            assert {line.part: line.share for line in audit_bits(part)}["routed_experts"] > 0.98  # all but biases


# --- what others have quantized, and we ------------------------------------------------------------------------------


def in_block_fp8(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        weights[name], weights[f"{name}_scale_inv"] = to_fp8(weights[name], 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tree = json.loads((folder / "config.json").read_text())
    tree["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(tree))


def in_our_nf4(folder: Path) -> None:
    model = loaded(folder, quantized=True)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)


def written(to: str) -> Callable[[Path], None]:
    def convert(folder: Path) -> None:
        made = quantize(folder, folder.with_name("made"), Quantize(to=to))
        shutil.rmtree(folder)
        made.rename(folder)

    return convert


def in_gptq(folder: Path) -> None:
    packed.requantize(folder, packed.gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True})


FORMATS: list[tuple[str, Callable[[Path], object], bool]] = [
    ("deepseek_v3", in_block_fp8, False),
    ("deepseek_v3", in_block_fp8, True),
    *((family, in_our_nf4, True) for family in FAMILIES),
    ("qwen3_moe", written("nf4"), False),
    ("gpt_oss", written("nf4"), False),
    ("qwen3_moe", written("int8"), False),
    ("deepseek_v3", written("w4a16"), False),
    ("gpt_oss", written("w4a16"), False),  # experts are stored one by one there, which transformers stores together
    ("qwen3_moe", in_gptq, True),
    ("gpt_oss", packed.as_published_gpt_oss, False),
    ("gpt_oss", packed.as_published_gpt_oss, True),
    ("deepseek_v4", packed.as_published_deepseek_v4, False),
]


@pytest.mark.parametrize(("family", "convert", "quantized"), FORMATS)
def test_a_share_of_what_is_stored_in_fewer_bits(
    save: Save, family: str, convert: Callable[[Path], object], quantized: bool
) -> None:
    folder = save(family)
    convert(folder)
    whole = loaded(folder, quantized=quantized)
    for share in ((0, 3), (2, 3)):
        check_share(loaded(folder, share, quantized), whole)


# --- what is read and held -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_of_others_are_neither_read_nor_held(save: Save, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(family)
    read: list[int] = []
    threads: set[int] = set()
    usual = checkpoint.read_stored

    def counted(spec: checkpoint.Spec, stored: checkpoint.Stored) -> Tensor:
        read.append(stored.end - stored.begin)
        threads.add(threading.get_ident())
        return usual(spec, stored)

    monkeypatch.setattr(checkpoint, "read_stored", counted)
    part, whole = loaded(folder, (2, 3)), loaded(folder)
    assert sum(read) == sum(tensor.nbytes for tensor in part.state_dict().values())
    assert threads == {threading.get_ident()}  # others would read ahead, and hold what is not needed yet
    experts = {block.name for block in find_experts(whole)}
    of_experts = sum(t.nbytes for name, t in whole.state_dict().items() if name.rpartition(".")[0] in experts)
    assert memory_of(part) == memory_of(whole) - of_experts // 2


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_model_whose_experts_cannot_be_shared_out(save: Save) -> None:
    with pytest.raises(ModelError, match="llama: is a dense model") as caught:
        loaded(save("llama"), (0, 2))
    assert "parallel.strategy=ddp" in caught.value.hint
    with pytest.raises(ModelError, match="4 experts, which cannot be shared out among 5 processes") as caught:
        loaded(save("qwen3_moe"), (0, 5))
    assert "4 processes or fewer" in caught.value.hint
    model = meta_model(config_of("qwen3_moe"))
    model.model.layers[0].mlp.experts.has_post_expert_norm = True
    with pytest.raises(ModelError, match=r"qwen3_moe: its experts .* in a way in which they cannot be shared out"):
        check_shared(model, ExpertParallel(0, 2))


def test_an_expert_that_is_missing(save: Save) -> None:
    folder = save("qwen3_moe")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.experts.3.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    loaded(folder, (0, 2))
    with pytest.raises(ModelError, match="cannot be loaded"):
        loaded(folder, (1, 2))
