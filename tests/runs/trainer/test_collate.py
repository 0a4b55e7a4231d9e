"""A packed example is computed as if it were alone; where the model can't keep to that, packing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Adapter
from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.data.encode.packing import Packed, pack
from dsr1_tune.errors import ModelError
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.moe.monitor import is_token
from dsr1_tune.runs.trainer import collate
from dsr1_tune.runs.trainer.collate import PackedCollator, as_dataset, largest_difference, use_packing
from tests.runs.trainer.conftest import EXAMPLES, FAMILIES, MAX_TOKENS, PAD, alone, batch_of, check_logits, load


def summed_loss(logits_TV: torch.Tensor, labels: tuple[int, ...]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        logits_TV[:-1].float(), torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_example_has_the_logits_it_has_alone(tiny_model: Any, family: str, attention: str) -> None:
    if (family, attention) == ("gpt_oss", "sdpa"):
        pytest.skip("gpt_oss has no sdpa attention")
    model = load(tiny_model(family), attn_implementation=attention).eval()
    use_packing(model)
    with torch.no_grad():
        check_logits(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_example_has_its_own_logits_with_lora_and_checkpointing(tiny_model: Any, family: str) -> None:
    model = add_lora(load(tiny_model(family)), Adapter(rank=2))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model.enable_input_require_grads()
    model.get_base_model().activation_checkpointing_enable()
    model.train()
    use_packing(model)
    assert model.training
    check_logits(model)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    separately = gradients(sum(summed_loss(alone(model, one.input_ids), one.labels) for one in EXAMPLES))
    batch = batch_of(pack(EXAMPLES, MAX_TOKENS, seed=3))
    together = gradients(model(**batch, use_cache=False, num_items_in_batch=1).loss)
    assert together.keys() == separately.keys()
    assert together
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, separately[name], rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_loss_is_the_mean_over_all_learned_tokens(tiny_model: Any, family: str) -> None:
    model = load(tiny_model(family)).eval()
    use_packing(model)
    with torch.no_grad():
        total = sum(float(summed_loss(alone(model, one.input_ids), one.labels)) for one in EXAMPLES)
        num_learned = sum(label != IGNORED for one in EXAMPLES for label in one.labels[1:])
        packed = model(**batch_of(pack(EXAMPLES, MAX_TOKENS, seed=3)), use_cache=False).loss
    assert float(packed) == pytest.approx(total / num_learned, rel=1e-5)


# --- the batch -------------------------------------------------------------------------------------------------------


def test_packed_positions_restart_and_padding_sees_nobody() -> None:
    sequences = [Packed((7, 8, 9, 5, 6), (IGNORED, 8, 9, IGNORED, 6), (3, 2)), Packed((3, 4), (IGNORED, 4), (2,))]
    batch = batch_of(sequences)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[7, 8, 9, 5, 6], [3, 4, PAD, PAD, PAD]],
        "labels": [[IGNORED, 8, 9, IGNORED, 6], [IGNORED, 4, IGNORED, IGNORED, IGNORED]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]],
    }
    assert is_token(batch["position_ids"]).tolist() == [[True] * 5, [True, True, False, False, False]]


def test_packed_positions_make_a_block_diagonal_mask(tiny_model: Any) -> None:
    from transformers.masking_utils import create_causal_mask

    config = load(tiny_model("deepseek_v3")).config
    batch = batch_of([Packed((7, 8, 9, 5, 6), (IGNORED,) * 5, (3, 2)), Packed((3, 4), (IGNORED,) * 2, (2,))])
    mask = create_causal_mask(
        config, torch.zeros(2, 5, 8), attention_mask=None, past_key_values=None, position_ids=batch["position_ids"]
    )
    wanted = torch.zeros(2, 5, 5, dtype=torch.bool)
    wanted[0, :3, :3] = torch.ones(3, 3).tril().bool()
    wanted[0, 3:, 3:] = torch.ones(2, 2).tril().bool()
    wanted[1, :2, :2] = torch.ones(2, 2).tril().bool()
    wanted[1, 2:, 2:] = torch.eye(3).bool()
    assert torch.equal(mask[:, 0], wanted)


def tiny_mamba() -> Any:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1
        )
    )


def tiny_hybrid() -> Any:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        vocab_size=258,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        intermediate_size=32,
    )
    return Qwen3NextForCausalLM(config)


def tiny_bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=2))


@pytest.mark.parametrize("make", [tiny_mamba, tiny_hybrid, tiny_bloom])
def test_packing_is_refused_for_a_model_that_mixes_examples(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.train()
    with pytest.raises(ModelError, match="packing"):
        use_packing(model)
    assert model.training
    assert not model.base_model._forward_pre_hooks


def test_packing_gives_masks_to_a_model_that_ignores_positions(tiny_model: Any) -> None:
    model = load(tiny_model("gpt_oss")).eval()
    before = largest_difference(model)
    use_packing(model)
    assert largest_difference(model) < 1e-5
    if before > 0.1:  # else transformers has mended it, and no mask is needed
        assert model.base_model._forward_pre_hooks


def test_packing_is_refused_where_even_masks_do_not_help(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils

    model = load(tiny_model("deepseek_v3")).eval()
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    assert largest_difference(model) > 0.1
    with pytest.raises(ModelError, match="see those before it"):
        use_packing(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_check_tolerates_rounding_to_16_bits(tiny_model: Any, family: str) -> None:
    model = load(tiny_model(family), dtype=torch.bfloat16)
    use_packing(model)
    assert largest_difference(model) < 0.05
    if family != "gpt_oss":
        assert not model.base_model._forward_pre_hooks


@torch.no_grad()
def test_sequences_in_one_row_have_the_loss_of_several_rows(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_base).eval()
    sequences = pack(EXAMPLES, MAX_TOKENS, seed=3)
    rows, row = (PackedCollator(PAD, is_one_row)(as_dataset(sequences)) for is_one_row in (False, True))
    assert row["input_ids"].shape == (1, sum(map(sum, (one.lengths for one in sequences))))
    assert len(rows["input_ids"]) == len(sequences) > 1
    losses = [float(model(**batch, use_cache=False, num_items_in_batch=1).loss) for batch in (rows, row)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    # Flash attention reads where examples begin from a single row: packing is tried out as it will be used.
    monkeypatch.setattr(collate, "is_flash", lambda model: True)
    assert largest_difference(model, PAD) < 1e-3
