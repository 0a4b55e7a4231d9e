"""Logits in pieces are the model's own, whatever a family does behind its last states, and whole ones never exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsr1_tune.config import Base
from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.models import head
from dsr1_tune.models.head import logits_in_pieces
from dsr1_tune.models.load import load
from dsr1_tune.runs.evaluate import token_losses
from dsr1_tune.runs.trainer.fused_head import as_trl_reads_it, check_fused_head
from tests.conftest import TinyModel
from tests.families import names, save_family

# A scale, a divisor, a soft cap, a divisor of the states, an indexer, and none of them.
OF_ALL_KINDS = ("cohere2_moe", "granitemoe", "gemma4_text", "inkling_text", "deepseek_v32", "gpt_oss")
PLACES = torch.tensor([1, 2, 3, 5, 8, 13, 14, 15, 16, 18])


def family(folder: Path, tokenizer: Any, name: str, **changes: Any) -> Any:
    return load(Base(model=str(save_family(folder / name, tokenizer, name, **changes)))).model


def two_rows(length: int = 13) -> dict[str, Tensor]:
    ids = torch.randint(2, 258, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, 9:], mask[1, 9:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def check_pieces(model: Any) -> None:
    inputs = two_rows()
    whole_BTV = model(**inputs, use_cache=False).logits
    pieces = list(logits_in_pieces(model, PLACES, size=4, **inputs))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    want = whole_BTV.flatten(0, 1)[PLACES]
    torch.testing.assert_close(torch.cat(pieces), want, rtol=0, atol=2e-6 * float(want.abs().max()))
    assert torch.equal(model(**inputs, use_cache=False).logits, whole_BTV), "the model is left as it was"


@torch.no_grad()
def check_loss(model: Any) -> None:
    inputs = two_rows()
    wanted_BT = torch.where(inputs["attention_mask"].roll(-1, 1) * inputs["attention_mask"] == 0, IGNORED, 7)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(*inputs.values(), strict=True)]
    whole_BTV = model(**inputs, use_cache=False).logits.float()
    want = cross_entropy(whole_BTV.flatten(0, 1), wanted_BT.flatten(), reduction="none")
    got = token_losses(model, rows, wanted_BT, 1)
    torch.testing.assert_close(got, want[wanted_BT.flatten() != IGNORED], rtol=1e-6, atol=1e-5)
    assert float(got.mean()) == pytest.approx(float(want.sum() / len(got)), rel=1e-6)


@pytest.mark.parametrize("name", OF_ALL_KINDS)
def test_pieces_are_the_familys_own_logits(tmp_path: Path, tiny_tokenizer: Any, name: str) -> None:
    scaled = {"cohere2_moe": {"logit_scale": 0.3}, "granitemoe": {"logits_scaling": 4.0}}
    scaled |= {"gemma4_text": {"final_logit_softcapping": 2.0}}
    model = family(tmp_path, tiny_tokenizer, name, **scaled.get(name, {}))
    check_pieces(model)
    check_loss(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_pieces_and_trls_head_are_those_of_every_family(tmp_path: Path, tiny_tokenizer: Any, name: str) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model = family(tmp_path, tiny_tokenizer, name)
    check_pieces(model)
    check_loss(model)
    with as_trl_reads_it(model.config):
        add_fused_lm_head(model)
    check_fused_head(model)


def test_pieces_are_those_of_a_model_with_an_adapter(tiny_base: Path) -> None:
    model = load(Base(model=str(tiny_base))).model
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["o_proj", "lm_head"], init_lora_weights=False))
    check_pieces(adapted.eval())


def test_the_trunk_runs_once_and_the_head_as_often_as_asked(tiny_base: Path) -> None:
    model = load(Base(model=str(tiny_base))).model
    layers, heads = list[int](), list[int]()
    model.model.layers[0].register_forward_hook(lambda *_: layers.append(1))
    model.lm_head.register_forward_pre_hook(lambda _, args: heads.append(args[0].shape[1]))
    assert len(list(logits_in_pieces(model, PLACES, size=4, at_least=5, **two_rows()))) == 3
    assert (len(layers), heads) == (1, [4, 4, 2, 1, 1])
    assert list(logits_in_pieces(model, PLACES[:0], size=4, at_least=2, **two_rows())) == []
    assert len(layers) == 2 and len(heads) == 7


class Largest(TorchDispatchMode):
    """The most numbers that any floating-point tensor has which is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self.numbers = max([self.numbers, *made])
        return out


def test_no_tensor_is_larger_than_a_piece(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(Base(model=str(tiny_model("qwen3_moe", vocab_size=4096)))).model
    monkeypatch.setattr(head, "PIECE_NUMBERS", 100 * 4096)  # embeddings have 64 * 4096
    row = list(range(400))
    wanted_BT = torch.tensor([[*row[1:], IGNORED]])
    with Largest() as seen:
        token_losses(model, [row], wanted_BT, 0)
    assert seen.numbers == 100 * 4096  # whole logits would be 400 * 4096


def test_a_head_that_trl_does_not_know_is_refused(tiny_base: Path) -> None:
    from trl.trainer.utils import add_fused_lm_head

    from dsr1_tune.errors import ModelError

    model = load(Base(model=str(tiny_base))).model
    add_fused_lm_head(model)
    check_fused_head(model)
    model.lm_head = nn.Sequential(model.lm_head, nn.Hardtanh(-0.1, 0.1))
    model.lm_head.weight, model.lm_head.bias = model.lm_head[0].weight, None
    with pytest.raises(ModelError, match="deepseek_v3 is not that of its logits"):
        check_fused_head(model)
