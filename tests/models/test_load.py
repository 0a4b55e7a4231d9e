"""Bases load as they are, and what cannot be used is refused early, saying where and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded, hub, load, room
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.memory import Memory

IDS = torch.arange(2, 40)[None]


def locate(folder: Path | str, **settings: Any) -> load.Located:
    return load.locate(Base(model=str(folder), **settings))


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


# --- what loads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe", "llama"])
@torch.no_grad()
def test_load_gives_a_folder_as_it_was_saved(tiny_model: Any, family: str) -> None:
    folder = tiny_model(family)
    loaded = load.load(Base(model=str(folder)))
    want = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    assert torch.equal(loaded.model(IDS).logits, want)
    assert (loaded.name, loaded.revision) == (str(folder), None)
    assert loaded.tokenizer.chat_template
    assert not loaded.model.training
    assert loaded.model.config.use_cache


def test_load_for_training_without_cache_and_in_the_dtype(tiny_model: Any) -> None:
    located = locate(tiny_model())
    loaded = load.load_located(located, dtype="bfloat16", for_training=True)
    assert loaded.model.training
    assert not loaded.model.config.use_cache
    assert loaded.model.dtype == torch.bfloat16
    # A rounded correction bias would change which experts are chosen.
    assert loaded.model.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_load_of_several_weight_files(tiny_model: Any) -> None:
    folder = tiny_model()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder / "cut", max_shard_size="200KB")
    for file in folder.glob("token*"):
        shutil.copy(file, folder / "cut")
    shutil.copy(folder / "chat_template.jinja", folder / "cut")
    located = locate(folder / "cut")
    assert len(ModelFolder(located.folder, "").weight_files) > 2
    load.load_located(located)
    next(iter(sorted((folder / "cut").glob("*.safetensors")))).unlink()
    with pytest.raises(ModelError, match="weight files are missing"):
        locate(folder / "cut")


@pytest.mark.parametrize("name", [None, "embedded"])
def test_locate_without_a_name_is_the_embedded_base(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    folder = tiny_model()
    monkeypatch.setattr(embedded, "ensure", lambda progress=None: folder)
    located = load.locate(Base(model=name))
    assert (located.name, located.revision, located.repo_id) == ("embedded", folder.name, None)


def test_locate_says_to_rebuild_a_damaged_embedded_base(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model()
    truncated(folder)
    monkeypatch.setattr(embedded, "ensure", lambda progress=None: folder)
    with pytest.raises(ModelError, match="is damaged") as caught:
        load.locate(Base())
    assert "dsr1-tune base --rebuild" in caught.value.hint
    with pytest.raises(ModelError, match="is damaged") as caught:
        embedded.sizes(folder)
    assert "dsr1-tune base --rebuild" in caught.value.hint


def test_a_base_can_be_loaded_twice(tiny_model: Any) -> None:
    located = locate(tiny_model())
    load.load_located(located, dtype="bfloat16", for_training=True)
    loaded = load.load_located(located)
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config.use_cache


def test_tokenizer_without_padding_pads_with_its_end(tiny_model: Any) -> None:
    folder = tiny_model()
    edit_json(folder / "tokenizer_config.json", lambda tree: tree.pop("pad_token"))
    tokenizer = locate(folder).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token


def test_pick_dtype_auto_is_float32_on_a_cpu() -> None:
    assert load.pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert load.pick_dtype("float16", torch.device("cpu")) == torch.float16


# --- what is refused -------------------------------------------------------------------------------------------------


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "deepse')


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def binary_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")


def no_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda tree: tree.pop("model_type"))


def unknown_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda tree: tree.update(model_type="zebra", auto_map={"AutoConfig": "z.Z"}))


def wrong_value(folder: Path) -> None:
    edit_json(folder / "config.json", lambda tree: tree.update(hidden_size="wide"))


def not_causal(folder: Path) -> None:
    edit_json(folder / "config.json", lambda tree: tree.update(model_type="clip"))


def quantized(folder: Path) -> None:
    edit_json(folder / "config.json", lambda tree: tree.update(quantization_config={"quant_method": "eetq"}))


def quantized_as_said(folder: Path) -> None:
    edit_json(folder / "config.json", lambda tree: tree.update(quantization_config={"quant_method": "fp8"}))


def quantized_unsaid(folder: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    tensors = {f"{name}.{what}": torch.zeros(8, 8, dtype=torch.int32) for what in ("qweight", "qzeros", "g_idx")}
    save_file(tensors, folder / "model.safetensors")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    no_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def only_gguf(folder: Path) -> None:
    no_weights(folder)
    (folder / "model.Q4_1.gguf").write_bytes(b"GGUF")


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def empty_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Zebra"}}')


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("spoil", "says", "mend"),
    [
        (no_config, r"has no config\.json; it holds .*model\.safetensors", "give a folder"),
        (broken_config, r"config\.json: cannot be read", "copy"),
        (list_config, "holds no JSON object", "copy"),
        (binary_config, r"config\.json: cannot be read", "copy"),
        (no_type, "names no model_type", "copy"),
        (
            unknown_type,
            r"of a family \(zebra, DeepseekV3ForCausalLM\) that .* not know. The Python .* not run",
            "a newer",
        ),
        (wrong_value, "transformers cannot use it", "correct the file"),
        (
            quantized_unsaid,
            r"stored quantized \(model\.layers\.0\.mlp\.down_proj\.qweight\), but .* says how",
            "dsr1-tune dequantize",
        ),
        (not_causal, "is a clip, which is no causal language model", "give a folder"),
        (quantized, r"stored quantized \(eetq\)", "dsr1-tune dequantize"),
        (quantized_as_said, "none of its weights is quantized", "as it is"),
        (no_weights, "has no weights", "give a folder"),
        (pickled, r"only as \.bin", "convert it to safetensors"),
        (only_gguf, r"only as \.gguf", "give a folder"),
        (truncated, r"model\.safetensors: is damaged", "copy or download"),
        (empty_file, r"model\.safetensors: is damaged", "copy or download"),
        (not_safetensors, r"model\.safetensors: is damaged", "copy or download"),
        (broken_index, "lists no weights", "copy"),
        (no_tokenizer, "has no tokenizer that can be read", r"tokenizer\.json"),
        (broken_tokenizer, "has no tokenizer that can be read", r"tokenizer\.json"),
        (no_template, "has no chat template", "chat or instruct variant"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_locate_refuses_a_spoilt_folder_before_loading(
    tiny_model: Any, spoil: Callable[[Path], None], says: str, mend: str
) -> None:
    folder = tiny_model()
    spoil(folder)
    with pytest.raises(ModelError, match=says) as caught:
        locate(folder)
    assert str(folder) in caught.value.message
    assert mend.replace("\\", "") in caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_load_refuses_weights_of_another_shape(tiny_model: Any, family: str) -> None:
    folder = tiny_model(family)
    edit_json(folder / "config.json", lambda tree: tree.update(moe_intermediate_size=32))
    with pytest.raises(ModelError, match="weights are of other shapes than its config") as caught:
        load.load_located(locate(folder))
    assert "do not belong to its config.json" in caught.value.hint


def test_load_refuses_missing_weights_and_draws_none_at_random(tiny_model: Any) -> None:
    file = tiny_model() / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.self_attn.o_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, such as model\.layers\.1\.self_attn\.o_proj"):
        load.load_located(locate(file.parent))


def test_load_refuses_one_missing_expert(tiny_model: Any) -> None:
    file = tiny_model() / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.experts.2.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="some experts are missing"):
        load.load_located(locate(file.parent))


def test_load_names_weights_without_a_place(tiny_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    file = tiny_model() / "model.safetensors"
    save_file({**load_file(file), "model.layers.1.surplus": torch.ones(1)}, file, metadata={"format": "pt"})
    load.load_located(locate(file.parent))
    assert "1 stored weights have no place in the model, such as model.layers.1.surplus" in caplog.text


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "~/none", "a/b/c", "two words", "back\\slash"])
def test_locate_refuses_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        locate(name)


def test_locate_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="is not a folder"):
        locate(tmp_path / "notes.txt")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is a GGUF file"):
        locate(tmp_path / "model.gguf")


def test_locate_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json; it holds nothing"):
        locate(tmp_path)


def test_locate_refuses_what_does_not_fit_into_memory(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model()
    in_float32 = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(room, "main_memory", lambda: Memory(total=10**6, free=in_float32 * 3 // 4))
    with pytest.raises(ModelError, match="GiB as float32, cpu has") as caught:
        locate(folder)
    assert "base.dtype=bfloat16" in caught.value.hint


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_hub(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model on the Hub under somebody/tiny: its small files come first, its weights when they are asked for."""
    folder = tiny_model()
    kept = folder.rename(folder.with_name("remote"))
    folder.mkdir()

    def fetch(repo_id: str, revision: str | None = None, patterns: Any = hub.DESCRIPTIVE) -> tuple[Path, str]:
        assert repo_id == "somebody/tiny"
        for pattern in patterns:
            for file in kept.glob(pattern):
                shutil.copy(file, folder)
        return folder, "c0ffee"

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(
        hub, "file_sizes", lambda repo_id, commit: {file.name: file.stat().st_size for file in kept.iterdir()}
    )
    return kept


def test_weights_are_fetched_only_when_loaded(on_hub: Path) -> None:
    located = load.locate(Base(model="somebody/tiny"))
    assert (located.name, located.revision, located.repo_id) == ("somebody/tiny", "c0ffee", "somebody/tiny")
    assert not list(located.folder.glob("*.safetensors"))
    loaded = load.load_located(located)
    assert loaded.revision == "c0ffee"
    assert load.locate(Base(model="somebody/tiny")).folder == located.folder


def test_pickles_on_the_hub_are_refused_before_downloading(on_hub: Path) -> None:
    (on_hub / "model.safetensors").rename(on_hub / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no model\.safetensors on the Hub, only pickled weights"):
        load.locate(Base(model="somebody/tiny"))


def test_weights_on_the_hub_are_weighed_before_downloading(on_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "file_sizes", lambda *_: {"model.safetensors": 10**13})
    with pytest.raises(ModelError, match=r"2500\.0 B weights need"):
        load.locate(Base(model="somebody/tiny"))


def test_weights_that_are_only_on_the_hub_offline(on_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "file_sizes", lambda *_: None)
    with pytest.raises(ModelError, match="weights are not in the local cache"):
        load.locate(Base(model="somebody/tiny"))
