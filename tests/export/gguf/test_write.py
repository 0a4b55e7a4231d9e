"""GGUF: what the converter is told, which type each tensor gets, and what llama.cpp makes of the file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dsr1_tune.config import Base
from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export import quantize
from dsr1_tune.export.gguf import source as gguf_source
from dsr1_tune.export.gguf.types import part_of, pick
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.llama_cpp import ggml
from dsr1_tune.models.llama_cpp.client import LlamaCpp
from dsr1_tune.models.load import load
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.serve.chat import GgufConversation
from tests.conftest import save_tiny


def quantized(source: Path, out: Path, kind: str, **settings: Any) -> tuple[Path, str]:
    """The .gguf file that the command writes, and what it said."""
    said = io.StringIO()
    config = Quantize(to="gguf", gguf=kind, **settings)  # type: ignore[arg-type]
    folder = quantize.run(source, out, config, Console(file=said, width=200))
    (file,) = folder.glob("*.gguf")
    return file, said.getvalue()


def divergence(model: Any, file: Path, num_tokens: int = 64) -> float:
    """Mean KL of llama.cpp's next-token distributions from those of a transformers model, over random tokens."""
    ids_NT = torch.randint(2, 258, (4, num_tokens), generator=torch.Generator().manual_seed(1))
    with LlamaCpp(file) as engine, torch.no_grad():
        theirs_NTV = torch.stack([engine.logprobs(ids.tolist()) for ids in ids_NT])
        ours_NTV = model(ids_NT).logits.float().log_softmax(-1)
    return float((ours_NTV.exp() * (ours_NTV - theirs_NTV)).sum(-1).mean())


def in_bf16(folder: Path) -> Any:
    """The model with its weights rounded to bfloat16, as the file has them, that computes in float32."""
    return load(Base(model=str(folder), dtype="bfloat16")).model.float()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny Qwen3-MoE with sizes that K-quants divide, where the routed experts' down projection is too narrow."""
    sizes = {"hidden_size": 256, "moe_intermediate_size": 96, "head_dim": 32, "num_hidden_layers": 3}
    sizes["norm_topk_prob"] = True
    return save_tiny(tmp_path_factory.mktemp("gguf") / "qwen", tiny_tokenizer, "qwen3_moe", **sizes)


@pytest.fixture(scope="session")
def in_q4(folder: Path, converter: None) -> tuple[Path, str]:
    return quantized(folder, folder.with_name("q4"), "q4_k_m")


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_file_that_llama_cpp_runs(folder: Path, in_q4: tuple[Path, str]) -> None:
    file, said = in_q4
    assert file.name == "qwen-Q4_K_M.gguf"
    assert "llama.cpp loads it" in said
    assert "splits 8 of 8 texts the same way" in said
    assert sorted(path.name for path in file.parent.iterdir() if path.suffix != ".jinja") == [
        "Modelfile", "config.json", "generation_config.json", "lineage.json", file.name, "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert divergence(in_bf16(folder), file) < 0.2
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert types["blk.1.ffn_gate_exps.weight"] == types["blk.1.ffn_up_exps.weight"] == "Q4_K"
    assert types["blk.1.ffn_down_exps.weight"] == "Q5_0"  # rows of 96
    assert types["blk.2.ffn_down_exps.weight"] == "Q8_0"  # a layer that the mix gives more bits
    assert types["blk.1.attn_q.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["blk.1.ffn_gate_inp.weight"] == types["blk.1.attn_norm.weight"] == "F32"


def test_every_expert_and_its_error_are_counted(in_q4: tuple[Path, str]) -> None:
    stage = json.loads((in_q4[0].parent / "lineage.json").read_text())["stages"][-1]
    groups = {group["part"]: group for group in stage["facts"]["groups"]}
    experts = groups["routed_experts"]
    assert experts["num_quantized"] == experts["num_tensors"] == 3 * 4 * 3
    assert experts["num_weights"] == 3 * 4 * 3 * 96 * 256
    assert experts["bits"] == pytest.approx((6 * 4.5 + 2 * 5.5 + 8.5) / 9, abs=1e-3)
    assert 0.04 < experts["relative_error"] < experts["worst_error"] < 0.09
    assert 0.003 < groups["attention"]["relative_error"] < 0.008
    assert stage["facts"]["types"]["Q4_K"] == 6
    assert "router" not in groups


def test_the_modelfile_is_complete(in_q4: tuple[Path, str]) -> None:
    lines = (in_q4[0].parent / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./qwen-Q4_K_M.gguf"
    assert lines[1].startswith('TEMPLATE """{{ if .System }}<|im_start|>system')
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER num_ctx 512" in lines


def test_what_the_file_says_of_the_model_is_kept(in_q4: tuple[Path, str], folder: Path, tmp_path: Path) -> None:
    reader = GGUFReader(in_q4[0])
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.file_type"] == 15
    assert said["general.name"].lower() == "qwen"
    assert said["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    assert len(said["tokenizer.ggml.tokens"]) == 258
    assert said["qwen3moe.expert_count"] == 4


def test_the_numbers_are_those_of_the_library(in_q4: tuple[Path, str], folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    tensor = next(tensor for tensor in GGUFReader(in_q4[0]).tensors if tensor.name == "blk.2.ffn_up_exps.weight")
    blocks = torch.from_numpy(tensor.data.copy())
    for expert in range(4):
        exact = stored[f"model.layers.2.mlp.experts.{expert}.up_proj.weight"].bfloat16()
        assert torch.equal(blocks[expert], ggml.quantize(exact, "Q4_K"))


@pytest.mark.parametrize("kind", ggml.TYPES)
def test_blocks_come_back(kind: str) -> None:
    matrix = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
    back = ggml.dequantize(ggml.quantize(matrix, kind), kind)
    assert back.shape == matrix.shape
    assert float((back - matrix).norm() / matrix.norm()) < {"Q8_0": 0.01, "Q6_K": 0.03, "Q3_K": 0.2}.get(kind, 0.1)


# --- which type ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "kind", "everything", "expected"),
    [
        ("blk.9.ffn_up_exps.weight", (8, 64, 256), "q4_k_m", False, "Q4_K"),
        ("blk.0.ffn_down_exps.weight", (8, 64, 256), "q4_k_m", False, "Q6_K"),
        ("blk.4.ffn_down_exps.weight", (8, 64, 256), "q4_k_m", False, "Q4_K"),
        ("blk.31.ffn_down_exps.weight", (8, 64, 256), "q5_k_m", False, "Q6_K"),
        ("blk.0.ffn_down_exps.weight", (8, 64, 256), "q3_k_m", False, "Q5_K"),
        ("blk.5.ffn_down_exps.weight", (8, 64, 256), "q3_k_m", False, "Q4_K"),
        ("blk.5.ffn_gate_exps.weight", (8, 64, 96), "q3_k_m", False, "IQ4_NL"),
        ("blk.5.ffn_gate_exps.weight", (8, 64, 96), "q8_0", False, "Q8_0"),
        ("blk.5.ffn_gate_exps.weight", (8, 64, 48), "q4_k_m", False, None),
        ("blk.5.attn_q.weight", (64, 256), "q4_k_m", False, "Q8_0"),
        ("blk.5.attn_q.weight", (64, 256), "q4_k_m", True, "Q4_K"),
        ("blk.0.attn_v.weight", (64, 256), "q4_k_m", True, "Q6_K"),
        ("blk.5.ffn_gate_shexp.weight", (64, 256), "q4_k_m", True, "Q4_K"),
        ("output.weight", (512, 256), "q4_k_m", True, "Q6_K"),
        ("blk.5.ffn_gate_inp.weight", (8, 256), "q4_k_m", True, None),
        ("blk.5.exp_probs_b.bias", (8,), "q4_k_m", True, None),
        ("blk.5.attn_norm.weight", (256,), "q4_k_m", True, None),
        ("blk.5.attn_q.bias", (256,), "q4_k_m", True, None),
    ],
)
def test_the_type_of_a_tensor(
    name: str, shape: tuple[int, ...], kind: str, everything: bool, expected: str | None
) -> None:
    assert pick(name, shape, kind, everything, num_layers=32) == expected


def test_the_parts_of_a_file(in_q4: tuple[Path, str]) -> None:
    parts = {part_of(tensor.name) for tensor in GGUFReader(in_q4[0]).tensors if len(tensor.shape) > 1}
    assert parts == {"attention", "routed_experts", "router", "embeddings"}


# --- the traps: what the converter is told ---------------------------------------------------------------------------


def test_a_sigmoid_router_is_said_to_be_one(tiny_model: Any) -> None:
    config = gguf_source.config_for_llama_cpp(open_source(tiny_model("deepseek_v3")))
    assert (config["scoring_func"], config["topk_method"]) == ("sigmoid", "noaux_tc")
    assert "scoring_func" not in gguf_source.config_for_llama_cpp(open_source(tiny_model("qwen3_moe", "softmax")))


YARN = {
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


@pytest.mark.parametrize("is_old", [True, False])
def test_rope_is_said_once_and_in_the_new_words(is_old: bool, tiny_model: Any) -> None:
    folder = tiny_model("deepseek_v3", max_position_embeddings=512)
    config = json.loads((folder / "config.json").read_text())
    if is_old:
        config |= {"rope_parameters": None, "rope_theta": 5000.0, "rope_scaling": {"type": "yarn", **YARN}}
    else:
        config["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 5000.0, **YARN}
    (folder / "config.json").write_text(json.dumps(config))
    told = gguf_source.config_for_llama_cpp(open_source(folder))
    assert "rope_scaling" not in told
    assert told["rope_theta"] == 5000.0
    rope = told["rope_parameters"]
    assert (rope["rope_type"], rope["rope_theta"]) == ("yarn", 5000.0)
    assert (rope["factor"], rope["mscale_all_dim"]) == (16.0, 1.0)


def add_further_layer(folder: Path) -> None:
    """A multi-token-prediction layer as DeepSeek stores it: a copy of the last layer and a few tensors more."""
    weights = load_file(folder / "model.safetensors")
    last = {name: weight for name, weight in weights.items() if ".layers.1." in name}
    further = {name.replace(".1.", ".2.", 1): weight.clone() for name, weight in last.items()}
    extra = {"eh_proj.weight": torch.randn(64, 128), "enorm.weight": torch.ones(64), "hnorm.weight": torch.ones(64)}
    further |= {f"model.layers.2.{name}": weight for name, weight in extra.items()}
    save_file(weights | further, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))


def test_layers_that_are_counted_must_be_there(tiny_model: Any) -> None:
    folder = tiny_model("deepseek_v3", num_nextn_predict_layers=1)
    assert gguf_source.config_for_llama_cpp(open_source(folder))["num_nextn_predict_layers"] == 0
    add_further_layer(folder)
    source = open_source(folder)
    assert gguf_source.config_for_llama_cpp(source)["num_nextn_predict_layers"] == 1
    assert "model.layers.2.eh_proj.weight" in gguf_source.further_layers(source)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": True}, "biases in its latent attention"),
        ({"rope_interleave": False}, "positions in halves"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN, "mscale": 0.7}}, "mscale"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 1.0,
             "original_max_position_embeddings": 512, "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}},
            "longrope",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_cannot_run_is_refused_at_once(
    changes: dict[str, Any], named: str, tiny_model: Any, tmp_path: Path
) -> None:
    folder = tiny_model("deepseek_v3", **changes)
    with pytest.raises(ModelError, match=named) as caught:
        quantized(folder, tmp_path / "out", "q8_0")
    assert "nf4" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_weights_that_llama_cpp_would_make_sum_to_1_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="norm_topk_prob: false"):
        quantized(tiny_model("qwen3_moe", norm_topk_prob=False), tmp_path / "out", "q8_0")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_unknown_tokenizer_is_refused_with_its_reason(tiny_model: Any, tmp_path: Path, converter: None) -> None:
    folder = tiny_model("qwen3_moe", norm_topk_prob=True)
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"llama\.cpp does not know how its tokenizer splits words"):
        quantized(folder, tmp_path / "out", "q8_0")
    assert list(tmp_path.glob("*out*")) == []


def test_a_full_disk_is_known_beforehand(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("dsr1_tune.export.gguf.source.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="GiB of disk"):
        quantized(folder, tmp_path / "out", "q8_0")
    assert not (tmp_path / "out").exists()


def test_weights_that_lie_on_disk_are_linked_and_merged_ones_written(
    folder: Path, tiny_run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    quiet = Narrator(Console(file=io.StringIO()))
    gguf_source.prepare(open_source(folder), tmp_path / "linked", quiet)
    assert (tmp_path / "linked" / "model.safetensors").readlink() == folder / "model.safetensors"
    run = tiny_run("qwen3_moe", "lora")
    gguf_source.prepare(open_source(run.path), tmp_path / "written", quiet)
    assert not (tmp_path / "written" / "model.safetensors").is_symlink()


# --- the engine, and talking to it -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(in_q4: tuple[Path, str]) -> Iterator[LlamaCpp]:
    with LlamaCpp(in_q4[0]) as running:
        yield running


IDS = [0, *range(40, 60), 1]


def test_probabilities_at_every_position(engine: LlamaCpp) -> None:
    logprobs_TV = engine.logprobs(IDS)
    assert logprobs_TV.shape == (len(IDS), engine.num_vocab)
    assert torch.allclose(logprobs_TV.exp().sum(-1), torch.ones(len(IDS)), atol=1e-5)
    assert torch.equal(engine.logprobs(IDS), logprobs_TV)
    assert torch.allclose(engine.logprobs(IDS[:9]), logprobs_TV[:9], atol=1e-4)


def test_a_text_longer_than_a_batch(engine: LlamaCpp, folder: Path) -> None:
    ids = torch.randint(2, 258, (510,), generator=torch.Generator().manual_seed(2)).tolist()
    whole_TV = engine.logprobs(ids)
    assert whole_TV.shape[0] == 510
    assert not torch.equal(whole_TV[-1], engine.logprobs(ids[-1:])[0])


def test_the_greedy_answer_is_the_likeliest(engine: LlamaCpp) -> None:
    answer = engine.generate(IDS, 8)
    for place, token in enumerate(answer):
        assert int(engine.logprobs(IDS + answer[:place])[-1].argmax()) == token
    assert engine.generate(IDS + answer[:3], 5) == answer[3:]  # what it has seen already is not computed again
    assert engine.generate(IDS, 8) == answer


def test_an_answer_may_be_left_before_its_end(engine: LlamaCpp) -> None:
    first = next(engine.stream(IDS, 400, temperature=1.0, seed=1))
    assert first.token == next(engine.stream(IDS, 400, temperature=1.0, seed=1)).token
    assert engine.generate(IDS, 4) == engine.generate(IDS, 40)[:4]
    assert len({next(engine.stream(IDS, 1, temperature=5.0, seed=seed)).token for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("ids", "said"), [([], "no tokens"), ([1, 258], "token 258 is none of"), ([5] * 513, "513 tokens do not fit")]
)
def test_what_it_cannot_run_is_refused_and_it_goes_on(ids: list[int], said: str, engine: LlamaCpp) -> None:
    with pytest.raises(ModelError, match=said):
        engine.logprobs(ids)
    assert engine.logprobs(IDS).shape[0] == len(IDS)


def test_a_file_that_is_cut_off(in_q4: tuple[Path, str], tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(in_q4[0].read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load it: tensor .* not within the file bounds"):
        LlamaCpp(cut)
    with pytest.raises(ModelError, match="there is no such file"):
        LlamaCpp(tmp_path / "other.gguf")


def test_a_crash_is_told(in_q4: tuple[Path, str]) -> None:
    with LlamaCpp(in_q4[0]) as running:
        running._process.kill()
        with pytest.raises(ModelError, match=r"llama\.cpp ended with code -9"):
            running.logprobs(IDS)


def test_without_llama_cpp_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed") as caught:
        quantized(folder, tmp_path / "out", "q8_0")
    assert caught.value.hint == "pip install 'dsr1-tune[gguf]'"


def test_chat_gives_the_answer_to_the_very_prompt(engine: LlamaCpp, folder: Path) -> None:
    tokenizer = load(Base(model=str(folder))).tokenizer
    conversation, pieces = GgufConversation(engine, max_new_tokens=12), list[str]()
    conversation.system = "be brief"
    first = conversation.ask("hello", pieces.append)
    assert first == "".join(pieces).strip()
    conversation.ask("again", pieces.append)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokenizer.decode(engine.generate(ids, 12)).strip() == first
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2


def test_chat_forgets_the_oldest_where_the_context_ends(engine: LlamaCpp) -> None:
    conversation = GgufConversation(engine, max_new_tokens=4)
    for letter in "abc":
        conversation.ask(letter * 180, lambda text: None)
    assert [turn["content"][0] for turn in conversation.turns if turn["role"] == "user"] == ["b", "c"]
    with pytest.raises(ModelError, match="the question is"):
        conversation.ask("x" * 1000, lambda text: None)


def test_ctrl_c_keeps_what_was_said(engine: LlamaCpp) -> None:
    conversation, whole = GgufConversation(engine, max_new_tokens=40), GgufConversation(engine, max_new_tokens=40)
    heard: list[str] = []

    def interrupt(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("hello", interrupt)
    assert whole.ask("hello", lambda text: None).startswith("".join(heard[:2]).strip())
    assert conversation.turns[-1]["content"] == "".join(heard).strip()


def test_the_chat_command(in_q4: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    from dsr1_tune.cli import app

    result = CliRunner().invoke(app, ["chat", str(in_q4[0].parent), "-p", "hello", "--max-new-tokens", "5"])
    assert result.exit_code == 0
    assert result.stdout.strip()
