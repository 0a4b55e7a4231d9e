"""16-bit copies of quantized folders: every number, every file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError, RunError
from dsr1_tune.export.dequantize import run
from dsr1_tune.export.weights.base_copy import check_copy
from dsr1_tune.models.load import load, locate
from tests import quantized_folders as packed

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
V2 = {**GPTQ, "checkpoint_format": "gptq_v2"}
COMPRESSED = {"quant_method": "compressed-tensors", "config_groups": {}}
FORMS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "gptq": (packed.gptq, {**GPTQ, "sym": True}, {}),
    "gptq in order of activations": (packed.gptq, {**GPTQ, "sym": True, "desc_act": True}, {"shuffled": True}),
    "gptq asymmetric": (packed.gptq, {**GPTQ, "sym": False}, {"sym": False}),
    "gptq second format": (
        packed.gptq,
        {**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"},
        {"sym": False, "v2": True},
    ),
    "gptq symmetric second format": (packed.gptq, {**GPTQ, "sym": True, "checkpoint_format": "gptq_v2"}, {"v2": True}),
    "gptq 8": (packed.gptq, {**GPTQ, "bits": 8, "sym": False}, {"sym": False, "bits": 8}),
    "gptq 3": (packed.gptq, {**GPTQ, "bits": 3, "sym": False}, {"sym": False, "bits": 3, "shuffled": True}),
    "gptq 2": (packed.gptq, {**GPTQ, "bits": 2, "sym": False}, {"sym": False, "bits": 2}),
    "awq": (
        packed.awq,
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        {},
    ),
    "w4a16": (packed.packed_integers, {**COMPRESSED, "format": "pack-quantized"}, {}),
    "w4a16 asymmetric": (packed.packed_integers, {**COMPRESSED, "format": "pack-quantized"}, {"sym": False}),
    "w4a16 in order of activations": (packed.packed_integers, {**COMPRESSED}, {"shuffled": True, "sym": False}),
    "w8a16": (packed.packed_integers, {**COMPRESSED}, {"bits": 8, "group": 64}),
    "int8": (packed.int8, {**COMPRESSED, "format": "int-quantized"}, {}),
    "int8 asymmetric": (packed.int8, {**COMPRESSED, "format": "int-quantized"}, {"sym": False}),
    "fp8": (packed.fp8, {"quant_method": "fp8", "activation_scheme": "static"}, {}),
    "fp8 by rows": (packed.fp8, {**COMPRESSED, "format": "float-quantized"}, {"scale": "row"}),
    "fp8 by groups": (packed.fp8, {**COMPRESSED}, {"scale": "group"}),
    "block-fp8": (
        packed.fp8,
        {"quant_method": "fp8", "weight_block_size": [48, 48]},
        {"scale": "block", "name": "weight_scale_inv"},
    ),
    "fp8 modelopt": (packed.fp8, {"quant_method": "modelopt", "quant_algo": "FP8"}, {}),
    "nvfp4": (packed.nvfp4, {**COMPRESSED, "format": "nvfp4-pack-quantized"}, {}),
    "nvfp4 modelopt": (packed.nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, {"modelopt": True}),
}


def check(copy: Path, source: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Every expected weight to the last bit, the rest as it was, and nothing else."""
    written = load_file(copy / "model.safetensors")
    left = {name for name in source if name in written and name not in expected}
    assert written.keys() == expected.keys() | left
    for name, weight in expected.items():
        assert torch.equal(written[name], weight.to(dtype)), name
    for name in left:
        wanted = source[name] if source[name].dtype == torch.float32 else source[name].to(dtype)
        assert torch.equal(written[name], wanted)


@pytest.mark.parametrize("form", FORMS)
def test_dequantize_gives_the_numbers_that_were_packed(form: str, tiny_model: Any, tmp_path: Path) -> None:
    make, told, how = FORMS[form]
    folder = tiny_model("qwen3_moe", num_hidden_layers=1, num_experts=2)
    expected = packed.requantize(folder, make, told, **how)
    source = load_file(folder / "model.safetensors")
    check(run(folder, tmp_path / "copy"), source, expected, torch.bfloat16)
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= source.keys()
    assert "quantization_config" not in json.loads((tmp_path / "copy" / "config.json").read_text())


def test_dequantized_gpt_oss_is_transformers_own(tiny_model: Any, tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = tiny_model("gpt_oss")
    expected = packed.as_published_gpt_oss(folder)
    source = load_file(folder / "model.safetensors")
    copy = run(folder, tmp_path / "copy")
    check(copy, source, expected, torch.bfloat16)
    written = load_file(copy / "model.safetensors")
    for name in expected:
        assert torch.equal(
            written[name], convert_moe_packed_tensors(source[f"{name}_blocks"], source[f"{name}_scales"])
        )
    model = load(Base(model=str(copy))).model
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(model.get_parameter(name), expected[name])


def small(tiny_model: Any, make: Any = packed.gptq, told: dict[str, Any] | None = None, **how: Any) -> tuple[Any, Any]:
    """A folder of one layer in a format, GPTQ if nothing is said, and what its weights stand for."""
    folder = tiny_model("qwen3_moe", num_hidden_layers=1, num_experts=2)
    return folder, packed.requantize(folder, make, told, **how)


def change(folder: Path, **changed: Tensor | None) -> None:
    """Other tensors in a folder's file; None takes one out."""
    tensors = {**load_file(folder / "model.safetensors"), **changed}
    save_file({name: one for name, one in tensors.items() if one is not None}, folder / "model.safetensors")


def test_gptq_is_told_by_its_tensors_or_by_a_file_beside(tiny_model: Any, tmp_path: Path) -> None:
    folder, expected = small(tiny_model)
    source = load_file(folder / "model.safetensors")
    check(run(folder, tmp_path / "told by tensors"), source, expected, torch.bfloat16)

    folder, expected = small(tiny_model, sym=False)
    with pytest.raises(ModelError, match=r"qzeros: nothing says whether its zeros are those of GPTQ's first format"):
        run(folder, tmp_path / "asymmetric")
    (folder / "quantize_config.json").write_text(json.dumps({**GPTQ, "sym": False}))
    source = load_file(folder / "model.safetensors")
    check(run(folder, tmp_path / "told beside"), source, expected, torch.bfloat16)
    assert not (tmp_path / "told beside" / "quantize_config.json").exists()


def test_numbers_read_as_the_other_kind_are_others(tiny_model: Any, tmp_path: Path) -> None:
    folder, expected = small(tiny_model, told={**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"}, sym=False)
    written = load_file(run(folder, tmp_path / "copy") / "model.safetensors")
    assert not any(torch.equal(written[name], weight.bfloat16()) for name, weight in expected.items())


@pytest.mark.parametrize(
    ("to", "family"),
    [(to, "deepseek_v3") for to in ("nf4", "int8", "fp8", "w4a16")] + [("fp8", "gpt_oss"), ("w4a16", "gpt_oss")],
)
def test_what_quantize_wrote_comes_back_as_it_is_loaded(to: str, family: str, tiny_model: Any, tmp_path: Path) -> None:
    from dsr1_tune.config.export import Quantize
    from dsr1_tune.export.quantize import run as quantize

    base = tiny_model(family)
    folder = quantize(base, tmp_path / to, Quantize(to=to, all=True))
    copy = run(folder, tmp_path / "copy", "float32")
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        theirs, ours = (
            load(Base(model=str(one), dtype="float32")).model(input_ids=ids).logits for one in (folder, copy)
        )
    assert (theirs - ours).abs().max() < 1e-4 * theirs.abs().max()
    assert set(load_file(copy / "model.safetensors")) == set(load_file(base / "model.safetensors"))
    check_copy(*(locate(Base(model=str(one))) for one in (folder, copy)), lambda line: None)
    assert [stage["name"] for stage in json.loads((copy / "lineage.json").read_text())["stages"]][-2:] == [
        "quantize",
        "dequantize",
    ]


def test_all_other_files_and_tensors_go_along(tiny_model: Any, tmp_path: Path) -> None:
    folder, _ = small(tiny_model, packed.fp8, {"quant_method": "fp8"})
    name = "model.layers.0.self_attn.k_proj"
    scales = {f"{name}.{one}_scale": torch.tensor(0.1) for one in ("input", "k")}
    change(folder, **scales, **{"mtp.norm.weight": torch.ones(4).half()})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    copy = run(folder, tmp_path / "copy", "float16")
    for file in ("README.md", "chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (copy / file).read_bytes() == (folder / file).read_bytes()
    written = load_file(copy / "model.safetensors")
    assert not any(one.endswith("scale") for one in written)
    assert written["mtp.norm.weight"].dtype == written[f"{name}.weight"].dtype == torch.float16
    assert json.loads((copy / "config.json").read_text())["dtype"] == "float16"


def test_a_large_copy_is_cut_into_shards(tiny_model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from dsr1_tune.models.weights import dequantized

    folder, expected = small(tiny_model)
    monkeypatch.setattr(dequantized, "SHARD_BYTES", 40_000)
    copy = run(folder, tmp_path / "copy")
    files = sorted(copy.glob("*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 80_000 for file in files)
    assert load(Base(model=str(copy))).model.get_parameter("model.norm.weight").dtype == torch.float32
    index = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(iter(expected))
    assert torch.equal(load_file(copy / index[name])[name], expected[name].bfloat16())


def test_ctrl_c_leaves_nothing_and_the_source_as_it_was(tiny_model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from dsr1_tune.models.weights.quantized import Quantized

    folder, _ = small(tiny_model)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def stop(self: Quantized, dtype: torch.dtype) -> Tensor:
        if self.name.endswith("o_proj.weight"):
            raise KeyboardInterrupt
        return self.make(dtype)

    monkeypatch.setattr(Quantized, "read", stop)
    with pytest.raises(KeyboardInterrupt, match="nothing is left"):
        run(folder, tmp_path / "there" / "copy")
    assert not [file for file in (tmp_path / "there").iterdir() if not file.name.endswith(".lock")]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    monkeypatch.undo()
    assert run(folder, tmp_path / "there" / "copy").is_dir()


LAYER = "model.layers.0.self_attn.q_proj"
FP8 = {"quant_method": "fp8"}


@pytest.mark.parametrize(
    ("make", "told", "changed", "said"),
    [
        (packed.gptq, GPTQ, {f"{LAYER}.scales": None}, rf"{LAYER}.qweight: {LAYER}.scales, .* is missing"),
        (packed.gptq, GPTQ, {f"{LAYER}.qweight": None}, rf"{LAYER}.(g_idx|qzeros|scales): belongs to no quantized"),
        (packed.gptq, GPTQ, {f"{LAYER}.g_idx": torch.full((64,), 9, dtype=torch.int32)}, rf"{LAYER}.g_idx: names a gr"),
        (packed.gptq, GPTQ, {f"{LAYER}.qweight": torch.ones(9, 64, dtype=torch.int32)}, rf"{LAYER}.qweight: is I32"),
        (packed.gptq, {**GPTQ, "sym": True}, {f"{LAYER}.qzeros": torch.ones(2, 8, dtype=torch.int32)}, "is symmetric"),
        (packed.awq, {"quant_method": "awq", "version": "gemv"}, {}, "packed for gemv"),
        (packed.awq, {"quant_method": "awq"}, {f"{LAYER}.pre_quant_scale": torch.ones(64)}, "pre_quant_scale: belongs"),
        (packed.fp8, FP8, {f"{LAYER}.weight_scale": None}, f"{LAYER}.weight: is in float8, and"),
        (packed.fp8, FP8, {f"{LAYER}.weight_scale": torch.ones(3, 5)}, f"{LAYER}.weight_scale: is F32"),
        (packed.fp8, FP8, {f"{LAYER}.weight_scale": torch.tensor(torch.nan)}, f"{LAYER}.weight: comes"),
        (packed.nvfp4, COMPRESSED, {f"{LAYER}.weight_global_scale": None}, "scale over all of its scales is missing"),
        (packed.packed_integers, COMPRESSED, {f"{LAYER}.weight_shape": torch.tensor([64, 63])}, "packed: is I32"),
        (packed.packed_integers, {**COMPRESSED, "format": "marlin-24"}, {}, "marlin-24"),
        (packed.packed_integers, {**COMPRESSED, "transform_config": {"R1": {}}}, {}, "rotated"),
    ],
)  # fmt: skip
def test_dequantize_refuses_by_name(
    make: Any, told: Any, changed: Any, said: str, tiny_model: Any, tmp_path: Path
) -> None:
    folder, _ = small(tiny_model, make, told)
    change(folder, **changed)
    with pytest.raises(ModelError, match=said):
        run(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_dequantize_refuses_what_is_no_quantized_model(tiny_model: Any, tmp_path: Path) -> None:
    folder = tiny_model("qwen3_moe", num_hidden_layers=1)
    with pytest.raises(ModelError, match="none of its weights is quantized") as error:
        run(folder, tmp_path / "copy")
    assert "in 16 or 32 bits" in error.value.hint
    with pytest.raises(ModelError, match="is no folder of a model"):
        run(tmp_path / "nothing" / "there", tmp_path / "copy")
    folder, _ = small(tiny_model)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "file").touch()
    with pytest.raises(RunError, match="already there"):
        run(folder, tmp_path / "copy")


def test_a_copy_that_could_not_be_loaded_is_not_written(tiny_model: Any, tmp_path: Path) -> None:
    folder, _ = small(tiny_model)
    tensors = load_file(folder / "model.safetensors")
    change(folder, **{one: None for one in tensors if one.startswith(LAYER)})
    with pytest.raises(ModelError, match=f"not stored under names that are known, such as {LAYER}.weight"):
        run(folder, tmp_path / "copy")


def test_the_command_tells_what_is_wrong_and_what_comes_next(tiny_model: Any, tmp_path: Path, capsys: Any) -> None:
    from dsr1_tune import cli

    folder, _ = small(tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dsr1-tune", "dequantize", str(folder)])
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert left.value.code == 0 and f"dsr1-tune lora --model {folder}-bf16" in capsys.readouterr().out
    change(folder, **{f"{LAYER}.scales": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dsr1-tune", "dequantize", str(folder), "--out", str(tmp_path / "other")])
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert left.value.code == 2 and f"{LAYER}.qweight" in capsys.readouterr().err
