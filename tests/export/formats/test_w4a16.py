"""W4A16 is what its format says: by its own formulas, and in slow tests by the library that engines read it with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.config import Base
from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export.formats import w4a16
from dsr1_tune.export.formats.rounding import round_to_nearest
from dsr1_tune.export.weights.accounting import Quantized, chosen
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models import isolated_env
from dsr1_tune.models.load import load
from dsr1_tune.models.weights.checkpoint import DTYPES, Checkpoint, read_header, write_weights
from dsr1_tune.models.weights.converted import open_w4a16
from dsr1_tune.quant.w4a16 import dequantize
from dsr1_tune.runs.console import Narrator
from tests.conftest import TinyModel
from tests.export.conftest import TinyRun
from tests.families import save_family

FAMILIES = ("qwen3_moe", "deepseek_v3", "mixtral")
IDS = torch.arange(2, 66)[None]


def quantize(source: Path, out: Path, **settings: Any) -> Quantized:
    out.mkdir()
    narrator = Narrator(Console(file=io.StringIO()))
    return w4a16.write(open_source(source), out, Quantize(to="w4a16", **settings), narrator)


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return load(Base(model=str(folder))).model(IDS).logits


# --- the format ------------------------------------------------------------------------------------------------------


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_w4a16_model_comes_back_as_rounded(
    family: str, everything: bool, tiny_model: TinyModel, tmp_path: Path
) -> None:
    base, out = tiny_model(family), tmp_path / "out"
    quantized = quantize(base, out, all=everything)
    names = chosen(open_source(base).layout, everything)
    by_part = {group.part: group for group in quantized.groups}
    assert by_part["routed_experts"].share == 1
    assert by_part["attention"].share == float(everything)
    assert sum(group.num_quantized for group in quantized.groups) == len(names)
    assert by_part["routed_experts"].bits == 4.5  # float32 scales of groups of 64
    assert 0.05 < by_part["routed_experts"].relative_error < by_part["routed_experts"].worst_error < 0.12
    before, stored = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    reference = dict(before)
    for name in names:
        reference[name] = dequantize(*round_to_nearest(before[name], 64))
        assert stored[f"{name}_shape"].tolist() == list(before[name].shape)
        assert name not in stored
    for name in before.keys() - names:
        assert torch.equal(stored[name], before[name])
    weights = open_w4a16(Checkpoint(out))
    assert all(torch.equal(weights[name][...], tensor) for name, tensor in reference.items())
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    for file in base.iterdir():
        (rounded / file.name).write_bytes(file.read_bytes())
    save_file(reference, rounded / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(out), logits(rounded))
    assert (out / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()


def test_w4a16_lists_everything_else_as_not_quantized(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("deepseek_v3")
    weights = load_file(base / "model.safetensors")
    further = {"model.layers.2.eh_proj.weight": torch.randn(64, 128)}  # a prediction layer that transformers drops
    save_file(weights | further, base / "model.safetensors", metadata={"format": "pt"})
    quantize(base, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    ignored = set(config.pop("quantization_config")["ignore"])
    assert {"lm_head", "model.layers.1.mlp.gate", "model.layers.0.self_attn.kv_b_proj"} < ignored
    assert {"model.layers.2.eh_proj", "model.layers.1.mlp.shared_experts.up_proj"} < ignored
    assert not any(".experts." in name for name in ignored)
    said = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    assert config == json.loads((base / "config.json").read_text()) | said
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(kept["model.layers.2.eh_proj.weight"], further["model.layers.2.eh_proj.weight"])


def test_w4a16_lists_a_router_by_both_its_names(tiny_model: TinyModel, tmp_path: Path) -> None:
    quantize(tiny_model("mixtral"), tmp_path / "out")
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert {"model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate"} < set(ignored)


def test_w4a16_tensors_lie_where_their_dtype_may(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("deepseek_v3", moe_intermediate_size=96, v_head_dim=24)
    half = {
        name: tensor if "bias" in name else tensor.bfloat16()
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    odd = {"model.layers.2.odd.weight": torch.randn(7, 32).bfloat16(), "a.odd": torch.randn(3).bfloat16()}
    save_file(half | odd, base / "model.safetensors", metadata={"format": "pt"})
    quantized = quantize(base, tmp_path / "out")
    assert quantized.facts["group_size"] == 32
    header = read_header(tmp_path / "out" / "model.safetensors")
    assert {spec.dtype for spec, _ in header.values()} == {"I64", "I32", "F32", "BF16"}
    assert all(stored.begin % DTYPES[spec.dtype].itemsize == 0 for spec, stored in header.values())
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert all(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize(("hidden", "inner", "size"), [(128, 128, 128), (128, 64, 64), (128, 96, 32)])
def test_w4a16_takes_the_largest_group_that_divides_all(
    hidden: int, inner: int, size: int, tiny_model: TinyModel, tmp_path: Path
) -> None:
    base = tiny_model("qwen3_moe", hidden_size=hidden, moe_intermediate_size=inner, num_hidden_layers=1)
    assert quantize(base, tmp_path / "out").facts["group_size"] == size


def test_w4a16_refuses_groups_that_do_not_fit(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("qwen3_moe")
    with pytest.raises(ModelError, match=r"experts.*_proj\.weight has 64 columns, which groups of 128") as caught:
        quantize(base, tmp_path / "out", group_size=128)
    assert "group_size=64" in caught.value.hint
    narrow = tiny_model("qwen3_moe", "narrow", moe_intermediate_size=48)
    with pytest.raises(ModelError, match=r"down_proj\.weight has 48 columns"):
        quantize(narrow, tmp_path / "out2")


@pytest.mark.parametrize("family", ["aria_text", "granitemoehybrid"])
def test_w4a16_of_experts_in_one_tensor_is_of_each_matrix_and_read_as_the_model_has_them(
    family: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base, out = save_family(tmp_path / "base", tiny_tokenizer, family), tmp_path / "out"
    quantized = quantize(base, out)
    assert {group.part: group.share for group in quantized.groups}["routed_experts"] == 1
    block = f"model.layers.1.{'mlp' if family == 'aria_text' else 'block_sparse_moe'}.experts"
    before, after = (load(Base(model=str(folder), dtype="float32")).model.state_dict() for folder in (base, out))
    gate_up, down = (before[f"{block}.{name}_proj"] for name in ("gate_up", "down"))
    if family == "aria_text":  # which multiplies from the other side
        gate_up, down = gate_up.mT, down.mT
    gate, up = gate_up.chunk(2, dim=1)
    weights = open_w4a16(Checkpoint(out))
    read = {"gate_proj": [], "up_proj": [], "down_proj": []}
    for part, matrices in zip(read, (gate, up, down), strict=True):
        for expert, matrix in enumerate(matrices):
            read[part].append(dequantize(*round_to_nearest(matrix.contiguous(), 64)))
            assert torch.equal(weights[f"{block}.{expert}.{part}.weight"][...], read[part][-1]), (part, expert)
    together = torch.cat([torch.stack(read["gate_proj"]), torch.stack(read["up_proj"])], dim=1)
    together, apart = (together.mT, after[f"{block}.down_proj"].mT) if family == "aria_text" else (
        together, after[f"{block}.down_proj"]
    )  # fmt: skip
    assert torch.equal(after[f"{block}.gate_up_proj"], together) and torch.equal(apart, torch.stack(read["down_proj"]))
    router = "mlp.router" if family == "aria_text" else "block_sparse_moe.router.layer"
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert f"model.layers.1.{router}" in ignored and not any("experts.0" in name for name in ignored)


def test_w4a16_refuses_weights_that_are_no_numbers(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("qwen3_moe")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.experts.2.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.2\.up_proj"):
        quantize(base, tmp_path / "out")


def test_w4a16_merges_and_rounds_in_one_pass(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("qwen3_moe", "lora")
    source = open_source(run.path)
    merged = tmp_path / "merged"
    merged.mkdir()
    write_weights(source.weights, merged)
    for file in source.folder.iterdir():
        if file.suffix != ".safetensors":
            (merged / file.name).write_bytes(file.read_bytes())
    quantize(run.path, tmp_path / "one")
    quantize(merged, tmp_path / "two")
    file = "model.safetensors"
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert (tmp_path / "one" / file).read_bytes() != b""
    base = load_file(source.folder / file)
    assert any(not torch.equal(base[name], tensor) for name, tensor in load_file(merged / file).items())


def test_w4a16_without_a_scale_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    quantize(tiny_model("qwen3_moe"), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    del stored["model.layers.0.mlp.experts.1.up_proj.weight_scale"]
    save_file(stored, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="experts"):
        load(Base(model=str(tmp_path / "out")))


def test_w4a16_without_a_matrix_of_experts_that_were_in_one_tensor_is_refused(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    quantize(save_family(tmp_path / "base", tiny_tokenizer, "granitemoe"), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    del stored["model.layers.0.block_sparse_moe.experts.1.up_proj.weight_packed"]
    save_file(stored, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 matrices of experts are missing, such as .*experts\.1\.up_proj\.weight"):
        load(Base(model=str(tmp_path / "out")))


# --- as others read it -----------------------------------------------------------------------------------------------

_THEIRS = """
import json, sys, torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
decompress = BaseCompressor.get_value_from_registry("pack-quantized").decompress
parts = ("weight_packed", "weight_scale", "weight_shape")
for folder in sys.argv[1:]:
    config = QuantizationConfig.model_validate(json.load(open(folder + "/config.json"))["quantization_config"])
    (scheme,) = config.config_groups.values()
    stored = load_file(folder + "/model.safetensors")
    names = [name.removesuffix("weight_packed") for name in stored if name.endswith("weight_packed")]
    whole = {f"{n}weight": decompress({p: stored[n + p] for p in parts}, scheme)["weight"] for n in names}
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, folder + ".safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.save(model(torch.arange(2, 66)[None]).logits, folder + ".pt")
"""


@pytest.mark.slow
def test_w4a16_is_read_the_same_by_compressed_tensors_and_transformers(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The library that vLLM and SGLang read the format with multiplies out the same numbers, to the bit."""
    bases = {tmp_path / f"out-{family}": tiny_model(family, family) for family in FAMILIES}
    for out, base in bases.items():
        quantize(base, out, all=True)
    isolated_env.ensure("llmcompressor").run(["-c", _THEIRS, *bases])
    for out, base in bases.items():
        theirs, ours = load_file(f"{out}.safetensors"), open_w4a16(Checkpoint(out))
        assert theirs.keys() == chosen(open_source(base).layout, True)
        assert all(torch.equal(ours[name][...], tensor) for name, tensor in theirs.items())
        assert torch.equal(torch.load(f"{out}.pt"), logits(out))


def test_w4a16_of_many_shards_keeps_its_index(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("qwen3_moe")
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    shards = {f"model-0000{number}-of-00002.safetensors": list(weights)[number - 1 :: 2] for number in (1, 2)}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, base / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    quantize(base, tmp_path / "out")
    written = Checkpoint(tmp_path / "out")
    assert list(written.shards) == list(shards)
    owner = "model.layers.0.mlp.experts.0.up_proj.weight"
    assert (
        index["weight_map"][owner]
        == json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"][f"{owner}_packed"]
    )
    assert logits(tmp_path / "out").isfinite().all()
