"""check-serve: every trap that an engine falls into is seen beforehand, and the way round it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.export import check_serve, lineage
from dsr1_tune.export.engine_table import engines
from dsr1_tune.export.formats.registry import formats
from dsr1_tune.export.gguf.source import refuse_unsupported
from dsr1_tune.export.lineage import Stage
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.llama_cpp import client
from dsr1_tune.models.tokenizer_files import write_generation_config
from dsr1_tune.serve.engines import ENGINES
from tests.conftest import CHATML, save_tiny
from tests.families import config_of
from tests.real_templates import tokenizer_of

QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "q_lora_rank": 1536,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "rope_parameters": {"rope_type": "yarn"},
}
EXPERT = "model.layers.0.mlp.experts.0.up_proj.weight"
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """folder(config, "model.norm.weight", ...) is a model folder with tensors of these names."""

    def make(config: dict[str, Any], *names: str, tokenizer: bool = True, template: bool = True) -> Path:
        save_file({name: torch.zeros(1) for name in (EXPERT, *names)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        if tokenizer:
            (tmp_path / "tokenizer.json").write_text("{}")
        if template:
            (tmp_path / "chat_template.jinja").write_text("")
        return tmp_path

    return make


def problems(place: Path, engine: str) -> str:
    return "; ".join(check_serve.run(place, engine).problems)


@pytest.mark.parametrize("config", [QWEN, V3], ids=["qwen", "v3"])
@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers"])
def test_check_serve_loads_a_model_in_16_bits(folder: Folder, config: dict[str, Any], engine: str) -> None:
    verdict = check_serve.run(folder(config), engine)
    assert verdict.loads and str(verdict.artifact.path) in str(verdict.command)
    assert not verdict.instead


def test_check_serve_gives_llama_cpp_a_gguf(folder: Folder) -> None:
    place = folder(V3)
    verdict = check_serve.run(place, "llama.cpp")
    assert "reads only gguf" in verdict.problems[0]
    assert verdict.instead == (f"dsr1-tune quantize {place} --to gguf --out {place}-gguf",)


@pytest.mark.parametrize(
    ("changes", "engine", "said"),
    [
        ({"topk_method": None}, "vllm", 'lacks topk_method, so that vLLM.*add "topk_method": "noaux_tc"'),
        ({"scoring_func": None}, "sglang", 'add "scoring_func": "sigmoid"'),
        ({"scoring_func": None}, "llama.cpp", "lacks scoring_func"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "vllm", "of type longrope; vLLM computes only default and"),
        ({"q_lora_rank": None}, "llama.cpp", "it has no q_lora_rank"),
        ({"architectures": None}, "vllm", "its config.json names no architecture, by which vLLM chooses"),
        ({"model_type": "new"}, "transformers", "does not know its model_type, new"),
    ],
)
def test_check_serve_sees_the_traps_of_deepseek(
    folder: Folder, changes: dict[str, Any], engine: str, said: str
) -> None:
    config = {name: value for name, value in {**V3, **changes}.items() if value is not None}
    import re

    assert re.search(said, problems(folder(config), engine))


def test_check_serve_of_transformers_needs_no_topk_method(folder: Folder) -> None:
    config = {name: value for name, value in V3.items() if name != "topk_method"}
    assert check_serve.run(folder(config), "transformers").loads


def test_check_serve_refuses_biases_in_attention(folder: Folder) -> None:
    """As the embedded base has them; there is no export that mends it."""
    place = folder(V3, "model.layers.0.self_attn.kv_a_proj_with_mqa.bias")
    for engine in ("vllm", "sglang", "llama.cpp"):
        verdict = check_serve.run(place, engine)
        assert "its attention has biases" in "; ".join(verdict.problems) and verdict.instead == ()
    assert check_serve.run(place, "transformers").loads


@pytest.mark.parametrize("changes", [{"norm_topk_prob": False}, {"norm_topk_prob": None}])  # None: left out, as false
def test_check_serve_recommends_no_gguf_that_is_not_written(tiny_model: Any, changes: dict[str, Any]) -> None:
    """The same function refuses it here and in `quantize --to gguf`, for the model and for adapters on it."""
    place = tiny_model("qwen3_moe", norm_topk_prob=False)
    config = json.loads((place / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    with pytest.raises(ModelError, match=r"norm_topk_prob: false"):
        refuse_unsupported(open_source(place))
    for found in (place, adapter(place.parent, *APART, base_model_name_or_path=str(place))):
        verdict = check_serve.run(found, "llama.cpp")
        assert "norm_topk_prob: false" in "; ".join(verdict.problems) and verdict.instead == ()
    assert check_serve.run(place, "vllm").loads


def w4a16(ignore: list[str], group_size: int = 128) -> dict[str, Any]:
    groups = {"group_0": {"weights": {"num_bits": 4, "group_size": group_size}}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ignore}}


def test_check_serve_refuses_w4a16_that_takes_the_router(folder: Folder) -> None:
    router = "model.layers.0.mlp.gate"
    assert "1 router is not in quantization_config.ignore, such as model.layers.0.mlp.gate" in problems(
        folder(QWEN | w4a16([]), f"{router}.weight"), "vllm"
    )
    for entry in (router, r"re:.*mlp\.gate$"):
        assert check_serve.run(folder(QWEN | w4a16([entry]), f"{router}.weight"), "vllm").loads
    assert "groups have 16 weights" in problems(folder(QWEN | w4a16([router], 16)), "sglang")
    assert any(
        "compressed-tensors" in line for line in check_serve.run(folder(QWEN | w4a16([router])), "transformers").remarks
    )


def test_check_serve_refuses_fp8_blocks_that_do_not_divide_experts(folder: Folder) -> None:
    fp8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert check_serve.run(folder(QWEN | fp8), "vllm").loads
    assert "are 704 wide" in problems(folder(QWEN | fp8 | {"moe_intermediate_size": 704}), "vllm")


def test_check_serve_of_nf4_leads_back_to_the_run(folder: Folder) -> None:
    place = folder(QWEN | {"quantization_config": {"quant_method": "bitsandbytes"}})
    lineage.write(place, [Stage("train", {"run": "/runs/medical"})])
    told = {engine: check_serve.run(place, engine).instead for engine in engines()}
    assert told["vllm"] == ("dsr1-tune quantize /runs/medical --to w4a16 --out /runs/medical-w4a16",)
    assert told["llama.cpp"] == ("dsr1-tune quantize /runs/medical --to gguf --out /runs/medical-gguf",)
    assert told["transformers"] == ("dsr1-tune merge /runs/medical --out /runs/medical-merged",)


def test_check_serve_needs_a_tokenizer_and_misses_a_template(folder: Folder) -> None:
    verdict = check_serve.run(folder(QWEN, tokenizer=False, template=False), "vllm")
    assert "it has no tokenizer" in verdict.problems[0] and "no chat template" in verdict.remarks[0]


def gguf(file: Path, architecture: str, *tensors: str, **fields: int) -> Path:
    writer = GGUFWriter(file, architecture)
    for name, value in fields.items():
        writer.add_uint32(f"{architecture}.{name.replace('__', '.')}", value)
    for name in tensors:
        writer.add_tensor(name, torch.zeros(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_check_serve_of_gguf_files(tmp_path: Path) -> None:
    bias = "blk.1.exp_probs_b.bias"
    good = gguf(tmp_path / "good.gguf", "deepseek2", bias, expert_gating_func=2, attention__q_lora_rank=8)
    assert check_serve.run(good, "llama.cpp").loads
    assert f"llama-server --model {good} --jinja" in str(check_serve.run(good, "llama.cpp").command)
    assert "moved" not in problems(good, "vllm") and "only in a plugin" in problems(good, "vllm")
    soft = gguf(tmp_path / "soft.gguf", "deepseek2", bias, expert_gating_func=1, attention__q_lora_rank=8)
    assert "its router is a softmax" in problems(soft, "llama.cpp")
    few = gguf(tmp_path / "few.gguf", "deepseek2", block_count=3)
    assert "with 27 layers, but it has 3" in problems(few, "llama.cpp")
    assert check_serve.run(gguf(tmp_path / "lite.gguf", "deepseek2", "x", block_count=27), "llama.cpp").loads
    good.write_bytes(good.read_bytes()[:40])
    with pytest.raises(ModelError, match="is damaged"):
        check_serve.run(good, "llama.cpp")


def test_check_serve_does_not_take_what_it_does_not_know_for_what_fails(folder: Folder) -> None:
    """An engine may run it all the same: that is an answer of its own, with an exit code of its own."""
    new = folder(QWEN | {"architectures": ["NewForCausalLM"]})
    for engine in ("vllm", "sglang"):
        verdict = check_serve.run(new, engine)
        assert verdict.answer == "not known" and not verdict.loads and verdict.problems == ()
        assert f"NewForCausalLM, is none of those that were looked up for {verdict.title}" in verdict.unknown[0]
        assert str(new) in str(verdict.command)
    assert check_serve.run(new, "llama.cpp").answer == "does not load"  # no GGUF, whatever its architecture
    assert check_serve.run(new, "transformers").loads
    vision = folder(QWEN | {"model_type": "qwen3_vl_moe", "architectures": ["NewForCausalLM"]})
    assert "more than a language model" in check_serve.run(vision, "transformers").unknown[0]
    trained = adapter(new, *APART, base_model_name_or_path=str(new))
    assert "its base's architecture, NewForCausalLM, is none" in check_serve.run(trained, "vllm").unknown[0]


@pytest.mark.parametrize(
    ("architecture", "engine", "answer"),
    [
        ("Qwen3NextForCausalLM", "vllm", "loads"),
        ("GraniteMoeHybridForCausalLM", "sglang", "loads"),
        ("JambaForCausalLM", "vllm", "loads"),
        ("JambaForCausalLM", "sglang", "not known"),
        ("FlexOlmoForCausalLM", "vllm", "loads"),
        ("Dots1ForCausalLM", "vllm", "not known"),  # its own code was dropped
    ],
)
def test_check_serve_table_says_which_engine_has_code_for_it(
    folder: Folder, architecture: str, engine: str, answer: str
) -> None:
    assert check_serve.run(folder(QWEN | {"architectures": [architecture]}), engine).answer == answer


@pytest.mark.parametrize(
    ("family", "engine", "answer"),
    [
        ("gemma4_text", "vllm", "loads"),
        ("gemma4_text", "sglang", "not known"),
        ("granitemoe", "vllm", "not known"),
        ("granitemoe", "transformers", "does not load"),
        ("qwen3_moe", "vllm", "loads"),
        ("qwen3_moe", "transformers", "loads"),
    ],
)
def test_check_serve_tells_who_reads_experts_one_by_one_of_families_that_store_them_in_one_tensor(
    folder: Folder, tmp_path: Path, family: str, engine: str, answer: str
) -> None:
    plain = config_of(family).to_dict() | {"architectures": [NAMED[family]]}
    verdict = check_serve.run(folder(plain | w4a16([])), engine)
    assert verdict.answer == answer
    assert answer == "loads" or "experts are stored one by one" in (*verdict.problems, *verdict.unknown)[0]
    if engine == "transformers":
        return
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(plain))
    fused, apart = (
        check_serve.run(adapter(tmp_path, *form, base_model_name_or_path=str(tmp_path / "base")), engine).answer
        for form in (FUSED, APART)
    )
    if family == "qwen3_moe":
        assert (fused, apart) == ("does not load", "loads")
    else:
        assert (fused, apart) == ("not known" if engine == "vllm" else "does not load", "not known")


NAMED = {
    "gemma4_text": "Gemma4ForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def test_check_serve_asks_llama_cpp_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = gguf(tmp_path / "asked.gguf", "plamo2", "x")  # known to llama.cpp, and not in the table
    new = gguf(tmp_path / "new.gguf", "new", "x")
    assert check_serve.run(asked, "llama.cpp").loads
    assert "new, is unknown to the llama.cpp that is installed here (xllamacpp" in problems(new, "llama.cpp")
    monkeypatch.setattr(client, "knows", lambda architecture: None)  # as where llama.cpp is not installed
    assert check_serve.run(gguf(tmp_path / "listed.gguf", "granitemoe", "x"), "llama.cpp").loads
    assert "new, was not looked up" in check_serve.run(new, "llama.cpp").unknown[0]
    lineage.write(tmp_path, [Stage("quantize", {"loaded_by": "xllamacpp 2026.10.11549"})])
    assert check_serve.run(new, "llama.cpp").loads  # it has been loaded when it was written


def adapter(tmp_path: Path, *names: str, **config: Any) -> Path:
    place = tmp_path / "adapter"
    place.mkdir(exist_ok=True)
    save_file({f"base_model.model.{name}.lora_A.weight": torch.zeros(1) for name in names}, place / _FILE)
    told = {"r": 8, "lora_alpha": 16, "base_model_name_or_path": "Qwen/Qwen3-30B-A3B", **config}
    (place / "adapter_config.json").write_text(json.dumps(told))
    return place


_FILE = "adapter_model.safetensors"
FUSED = ("model.layers.0.mlp.experts.base_layer", "model.layers.0.mlp.experts")
APART = tuple(f"model.layers.0.mlp.experts.0.{name}_proj" for name in ("gate", "up", "down"))


def test_check_serve_of_adapters(tmp_path: Path) -> None:
    place = f"{tmp_path}/adapter"
    told = check_serve.run(adapter(tmp_path, *FUSED), "vllm")
    assert "the adapter is peft-fused" in told.problems[0]
    assert told.instead == (
        f"dsr1-tune convert-adapter {tmp_path}/adapter --to per-expert --out {tmp_path}/adapter-per-expert",
    )
    apart = check_serve.run(adapter(tmp_path, *APART, r=32), "vllm")
    assert apart.loads and "--max-lora-rank 32 --lora-modules adapter=" in str(apart.command)
    assert "Qwen/Qwen3-30B-A3B" in str(apart.command) and "is not on this machine" in apart.remarks[0]
    assert "wants all three" in problems(adapter(tmp_path, APART[2]), "vllm")
    assert check_serve.run(adapter(tmp_path, APART[2]), "sglang").loads
    assert "vLLM refuses use_dora" in problems(adapter(tmp_path, *APART, use_dora=True), "vllm")
    assert "vLLM refuses modules_to_save" in problems(adapter(tmp_path, *APART, modules_to_save=["gate"]), "vllm")
    ignored = check_serve.run(adapter(tmp_path, *APART, use_rslora=True), "sglang")
    assert "leaves out, without a word, what is meant by use_rslora" in ignored.problems[0]
    fused = f"{place}-peft-fused"
    assert ignored.instead == (
        f"dsr1-tune convert-adapter {place} --to peft-fused --out {fused}",
        f"dsr1-tune merge {fused} --out {fused}-merged",
    )
    assert check_serve.run(adapter(tmp_path, *APART, use_rslora=True), "vllm").loads
    assert "--to gguf" in check_serve.run(adapter(tmp_path, *APART), "llama.cpp").instead[-1]
    merged = f"dsr1-tune merge {place} --out {place}-merged"
    assert check_serve.run(adapter(tmp_path, *FUSED), "transformers").instead == (merged,)


def test_check_serve_says_what_a_plain_adapter_is_and_what_to_do(tmp_path: Path) -> None:
    place = adapter(tmp_path, "model.layers.0.self_attn.q_proj")
    told = CliRunner().invoke(cli.app, ["check-serve", str(place), "--engine", "llama.cpp"]).output
    assert f"does not load {place}, a PEFT adapter for the base Qwen/Qwen3-30B-A3B\n" in told
    assert "it is a PEFT adapter, and llama.cpp reads models, merged and as GGUF" in told
    assert f"first: dsr1-tune merge {place} --out {place}-merged\n" in told and "--to gguf" in told
    verdict = check_serve.run(adapter(tmp_path, "model.layers.0.self_attn.q_proj", peft_type="IA3"), "vllm")
    assert "of the kind IA3" in verdict.problems[0] and verdict.instead == ()
    with pytest.raises(ModelError, match="does not say which base") as caught:
        check_serve.run(adapter(tmp_path, "x", base_model_name_or_path=None), "vllm")
    assert "base_model_name_or_path" in caught.value.hint
    (place / _FILE).unlink()
    with pytest.raises(ModelError, match=r"as a PEFT adapter, but no adapter_model\.safetensors, its weights"):
        check_serve.run(place, "vllm")


def test_check_serve_says_which_version_is_known(folder: Folder) -> None:
    place = folder(QWEN)
    assert check_serve.run(place, "vllm", "0.33.0").remarks == ()
    assert "0.99.1 was not looked at; what follows is of 0.33.0" in check_serve.run(place, "vllm", "0.99.1").remarks
    assert "nothing is known here of 0.1.0" in check_serve.run(place, "vllm", "0.1.0").remarks[0]
    assert check_serve.run(place, "llama.cpp", "b99999").version == "b11549"
    for engine, version, said in (("tgi", None, "tgi is unknown"), ("vllm", "new", "new is no version")):
        with pytest.raises(ConfigError, match=said):
            check_serve.run(place, engine, version)


def test_check_serve_command_exits_1_where_it_does_not_load(folder: Folder, tmp_path: Path) -> None:
    place = folder(V3)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, ["check-serve", str(place), *words])
        return done.exit_code, done.output

    code, said = run("--engine", "vllm")
    assert code == 0 and "vLLM 0.33.0 loads" in said and "serve it with: vllm serve" in said
    code, said = run("--engine", "llama.cpp")
    assert code == 1 and "it does load what this makes: dsr1-tune quantize" in said
    code, said = run("--engine", "sglang", "--json")
    assert code == 0 and json.loads(said)["loads"] is True
    folder(V3 | {"architectures": ["NewForCausalLM"]})
    code, said = run("--engine", "sglang")
    assert code == 3 and "it is not known here whether SGLang 0.5.23 loads" in said and "try it with: python" in said
    code, said = run("--json")
    assert code == 3 and json.loads(said)["answer"] == "not known" and json.loads(said)["loads"] is False
    with pytest.raises(ModelError, match="there is no such folder"):
        check_serve.run(tmp_path / "nowhere", "vllm")


def test_check_serve_table_is_whole() -> None:
    assert set(engines()) == set(ENGINES)
    loaded = {name for one in formats().values() for name in (*one.loads_in, *one.refused_by)}
    assert loaded <= set(ENGINES)
    for engine in engines().values():
        assert isinstance(engine.version, str) and engine.title and "forms" in engine.adapters, engine.name


@pytest.mark.parametrize(("engine", "why"), [("vllm", "only in a plugin"), ("sglang", "covers linear layers")])
def test_check_serve_says_why_nf4_is_not_loaded(folder: Folder, engine: str, why: str) -> None:
    stored = {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}
    said = problems(folder(QWEN | {"quantization_config": stored}), engine)
    assert "is stored as nf4, which" in said and why in said


def test_check_serve_says_what_ends_answers_unknown_to_the_engine(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(CHATML, eos="<|endoftext|>")
    place = save_tiny(tmp_path / "base", tokenizer, "llama", vocab_size=260)
    said = "<|im_end|> ends its answers, but is not named in its generation_config.json: add its id to eos_token_id"
    assert any(said in remark for remark in check_serve.run(place, "vllm").remarks)
    write_generation_config(place, tokenizer, place)
    assert check_serve.run(place, "vllm").remarks == ()
