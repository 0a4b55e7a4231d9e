"""A Llama rewritten as a DeepSeek-V3 computes what it did: SmolLM2 itself, and random Llamas of other shapes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded, upcycle
from dsr1_tune.models.upcycle import write
from dsr1_tune.models.weights.index import ONE_FILE
from tests.models.conftest import TinyLlama

TEXTS = (
    "The capital of France is Paris.",
    "Hypertension, or high blood pressure, is common. It seldom causes symptoms, so measuring it matters. Adults "
    "should have it measured once a year; 140/90 mmHg or more is high, and a doctor should then be asked.",
    "什么是高血压？  12 plus 30 is 42.\n\ndef f(x):\n    return x**2",
)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The original, as transformers itself reads it from the GGUF file."""
    file = embedded.wheel_file()
    if file is None:
        pytest.skip(f"needs SmolLM2's GGUF file: {embedded.MEND}")
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(embedded_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(embedded_folder)


def test_upcycled_base_is_a_deepseek_v3_with_all_its_parts(embedded_base: Any, embedded_folder: Path) -> None:
    assert type(embedded_base).__name__ == "DeepseekV3ForCausalLM"
    assert embedded_base.dtype == torch.float32
    config = json.loads((embedded_folder / "config.json").read_text())
    assert (config["scoring_func"], config["topk_method"]) == ("sigmoid", "noaux_tc")
    assert {file.name for file in embedded_folder.iterdir()} >= {
        "README.md",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
    }
    assert "Apache-2.0" in (embedded_folder / "README.md").read_text()


def test_upcycled_experts_are_stored_one_by_one(embedded_folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(embedded_folder / "model.safetensors", framework="pt") as weights:
        assert weights.get_slice("model.layers.1.mlp.experts.7.gate_proj.weight").get_shape() == [768, 576]
        assert weights.get_slice("model.layers.29.mlp.experts.0.down_proj.weight").get_shape() == [576, 768]


@pytest.mark.parametrize("text", TEXTS, ids=["short", "sentences", "chinese and code"])
@torch.no_grad()
def test_upcycled_logits_and_loss_are_smollm2s(embedded_base: Any, smollm2: Any, tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, return_tensors="pt").input_ids
    ours, theirs = embedded_base(ids).logits, smollm2(ids).logits
    assert (ours - theirs).abs().max() <= 1e-3
    losses = [functional.cross_entropy(logits[0, :-1], ids[0, 1:]) for logits in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1].item(), abs=1e-5)


@torch.no_grad()
@pytest.mark.slow
def test_upcycled_logits_agree_far_in_and_after_padding(embedded_base: Any, smollm2: Any, tokenizer: Any) -> None:
    ids = tokenizer(" ".join(TEXTS[:2] * 8), return_tensors="pt").input_ids
    assert ids.shape[1] > 400
    assert (embedded_base(ids).logits[:, -8:] - smollm2(ids).logits[:, -8:]).abs().max() <= 1e-3
    tokenizer.padding_side = "left"
    batch = tokenizer(list(TEXTS[:2]), padding=True, return_tensors="pt")
    assert (embedded_base(**batch).logits[:, -1] - smollm2(**batch).logits[:, -1]).abs().max() <= 1e-3


def test_upcycled_positions_turn_by_smollm2s_angles_to_the_last_bit(embedded_base: Any, smollm2: Any) -> None:
    ours, theirs = embedded_base.model.rotary_emb.inv_freq, smollm2.model.rotary_emb.inv_freq
    assert ours.tolist() == theirs.tolist() * smollm2.config.num_key_value_heads


@torch.no_grad()
@pytest.mark.slow
def test_upcycled_greedy_answer_is_smollm2s(embedded_base: Any, smollm2: Any, tokenizer: Any) -> None:
    question = [{"role": "user", "content": "What can I do about a headache?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ours, theirs = (model.generate(**prompt, max_new_tokens=24, do_sample=False) for model in (embedded_base, smollm2))
    assert ours.tolist() == theirs.tolist()


def test_upcycled_tokenizer_cuts_digits_apart_as_smollm2_does(tokenizer: Any) -> None:
    assert tokenizer("in  2024").tokens() == ["in", "ĠĠ", "2", "0", "2", "4"]
    assert tokenizer("<|im_start|>user").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.model_max_length == 8192


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4], ids=["one key head", "grouped", "a key head each"])
@torch.no_grad()
def test_upcycling_is_exact_for_any_llama(tmp_path: Path, tiny_llama: TinyLlama, num_kv_heads: int) -> None:
    source, llama = tiny_llama(num_kv_heads)
    write(source, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 258, (2, 40))
    want = llama(ids).logits
    assert (model(ids).logits - want).abs().max() < 1e-4 * want.abs().max()


def test_upcycling_is_deterministic(tmp_path: Path, tiny_llama: TinyLlama) -> None:
    source, _ = tiny_llama()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(source, tmp_path / name)
    assert (tmp_path / "a" / ONE_FILE).read_bytes() == (tmp_path / "b" / ONE_FILE).read_bytes()


def test_read_llama_reads_the_hubs_folder_like_the_wheel(tiny_model: Any, tiny_tokenizer: Any) -> None:
    folder = tiny_model("llama")
    source = upcycle.read_llama(folder, "the Hub")
    llama = source.llama
    assert (llama.num_hidden_layers, llama.hidden_size, llama.head_dim) == (2, 64, 16)
    assert source.weights["model.norm.weight"].dtype == torch.float32
    assert source.tokenizer.chat_template == tiny_tokenizer.chat_template


def test_read_gguf_says_that_a_wheel_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "damaged.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match="is not the GGUF file expected") as caught:
        upcycle.read_gguf(file)
    assert "--force-reinstall" in caught.value.hint


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_read_llama_refuses_a_folder_with_other_weights(tiny_model: Any, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(tiny_model("llama"), folder)
    weights = load_file(folder / ONE_FILE)
    projection = weights.pop("model.layers.1.self_attn.v_proj.weight")
    weights["model.layers.1.self_attn.w_proj.weight"] = projection
    if fault == "unexpected":
        weights["model.layers.1.self_attn.v_proj.weight"] = projection.clone()
    save_file(weights, folder / ONE_FILE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"the Hub: .*{fault} keys: model.layers.1.self_attn"):
        upcycle.read_llama(folder, "the Hub")


@pytest.mark.slow
def test_read_gguf_gives_transformers_names_and_rotary_halves(capfd: pytest.CaptureFixture[str]) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    file = embedded.wheel_file()
    if file is None:
        pytest.skip(f"needs SmolLM2's GGUF file: {embedded.MEND}")
    weights = upcycle.read_gguf(file).weights
    assert capfd.readouterr() == ("", "")  # no bar of transformers' on the terminal
    wanted = {"token_embd.weight", "blk.3.ffn_norm.weight", "blk.3.attn_q.weight"}
    found = [one for one in GGUFReader(file).tensors if one.name in wanted]
    stored = {one.name: torch.tensor(dequantize(one.data, one.tensor_type)) for one in found}
    assert torch.equal(weights["model.embed_tokens.weight"], stored["token_embd.weight"])
    assert torch.equal(weights["model.layers.3.post_attention_layernorm.weight"], stored["blk.3.ffn_norm.weight"])
    # A head of 64 rows, as pairs (0, 1), (2, 3), ...
    query, first_head = weights["model.layers.3.self_attn.q_proj.weight"], stored["blk.3.attn_q.weight"][:64]
    assert torch.equal(query[:64], torch.cat([first_head[0::2], first_head[1::2]]))
