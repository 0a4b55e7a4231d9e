"""Merging into a block-FP8 base: the share of what training gained that the merged model still has.

    python benchmarks/fp8_merge.py [--seeds 3] [--steps 60]

The base is a tiny model in DeepSeek-V3's layout (3 layers, 4 experts, blocks of 128 × 128 with `weight_scale_inv`),
taught sums for a minute and stored in FP8. It is trained on other rows by `lora` (2e-4), `full` (2e-5) and `esft`
(2e-5), and merged three ways: into bfloat16 (the default), into FP8 by chance (`merge.fp8=keep`), and into FP8 rounded
to the nearest. The gain is the loss of 20 held-out records before training less that after, in float32; mean and 95 %
interval over the seeds, of which each trains anew.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
RATES = {"lora": 2e-4, "full": 2e-5, "esft": 2e-5}
WAYS = ("bfloat16", "keep", "nearest")
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}


def main() -> None:
    """Train every method on every seed, and print a line for each way of merging."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lessons", type=int, default=300, help="steps that teach the base sums")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        base = write_base(place / "base", options.lessons)
        rows = [{"instruction": f"What helps with case {i}?", "output": advice(i)} for i in range(200)]
        (place / "rows.json").write_text(json.dumps(rows))
        for method, rate in RATES.items():
            told = [measure(method, rate, base, place, seed, options.steps) for seed in range(options.seeds)]
            gains = ", ".join(f"{one['before']:.4f} → {one['after']:.4f}" for one in told)
            print(f"{method} at {rate:g}: held-out loss {gains}", flush=True)
            for way in WAYS:
                shares = [one[way] for one in told]
                deviation = statistics.stdev(shares) if len(shares) > 1 else math.nan
                half = STUDENT.get(len(shares), 2.6) * deviation / math.sqrt(len(shares))
                each = ", ".join(f"{share:.1%}" for share in shares)
                print(f"  {way:9} {statistics.mean(shares):7.1%} ± {half:.1%} of the gain  ({each})", flush=True)


def advice(number: int) -> str:
    """An answer that follows from its question."""
    return f"Rest and water, for {number % 7 + 2} days, and {('tea', 'sleep', 'a walk')[number % 3]}."


def measure(method: str, rate: float, base: Path, place: Path, seed: int, steps: int) -> dict[str, float]:
    """Train once; loss before and after, and the share of the gain that each way of merging keeps."""
    from rich.console import Console

    from dsr1_tune import config as configs
    from dsr1_tune.export.weights.merged import Merged, MergedFp8, Plain
    from dsr1_tune.export.weights.source import find_trained, open_trained
    from dsr1_tune.runs.kept_rows import eval_subset_examples

    kind: Any = {"lora": configs.LoraRun, "full": configs.FullRun, "esft": configs.EsftRun}[method]
    tree = {
        "data": {"files": [str(place / "rows.json")]},
        "base": {"model": str(base), "dtype": "float32"},
        "schedule": {"max_steps": steps, "epochs": 50, "batch_size": 8, "learning_rate": rate, "seed": seed},
        "samples": 0,
        "out": str(place / f"{method}-{seed}"),
    }
    run = import_module(f"dsr1_tune.train.{method}").run(kind.model_validate(tree), console=Console(file=io.StringIO()))
    trained = find_trained(run.path)
    assert trained is not None
    opened, updates = open_trained(trained)
    merged, size = Merged(opened.plain, updates), opened.plain.block_size
    assert size is not None
    examples = eval_subset_examples(run, opened.located.tokenizer)

    class Nearest(MergedFp8):
        def _encode(self, name: str) -> tuple[Tensor, Tensor]:
            return _to_nearest(self.merged.exact(name), size)

    def float8(weights: MergedFp8) -> Callable[[str], Tensor]:
        plain: Any = Plain(weights.base, size)
        plain.base = _Readable(weights)
        return lambda name: plain.exact(name).float()

    def loss(read: Callable[[str], Tensor]) -> float:
        return _loss(opened, read, examples)

    before, after = loss(opened.plain.exact), loss(merged.exact)
    ways = {"bfloat16": merged.read, "keep": float8(MergedFp8(merged, size)), "nearest": float8(Nearest(merged, size))}
    shares = {way: (before - loss(read)) / (before - after) for way, read in ways.items()}
    return {"before": before, "after": after, **shares}


class _Readable:
    """Weights that are asked for as a checkpoint is."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        self.read, self.spec, self.stored = weights.read, weights.spec, weights.stored

    def __contains__(self, name: str) -> bool:
        return name in self.weights.base


def _to_nearest(weight: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    from dsr1_tune.quant.fp8 import to_blocks

    return to_blocks(weight, size)


def _loss(opened: Any, read: Callable[[str], Tensor], examples: list[Any]) -> float:
    from dsr1_tune.export.weights.load_streamed import load_streamed
    from dsr1_tune.runs.evaluate import held_out_loss

    model = load_streamed(opened.located, read, opened.layout).model
    return held_out_loss(model, examples, opened.located.tokenizer.pad_token_id).loss


def write_base(folder: Path, lessons: int) -> Path:
    """A tiny DeepSeek-V3 that was taught sums, with every projection in block-FP8."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    from dsr1_tune.quant.fp8 import to_blocks

    tokenizer = import_module("tests.conftest").byte_tokenizer()
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    config = DeepseekV3Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, moe_intermediate_size=128,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
        num_nextn_predict_layers=0, eos_token_id=1, pad_token_id=1, bos_token_id=0,
        rope_parameters={**yarn, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    teach(model, tokenizer, lessons)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stored = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if weight.dim() == 2 and "_proj" in name:
            stored[name], stored[f"{name}_scale_inv"] = to_blocks(weight)
        else:
            stored[name] = weight
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    tree = json.loads((folder / "config.json").read_text())
    tree["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(tree))
    return folder


def teach(model: Any, tokenizer: Any, lessons: int) -> None:
    """Teach sums, so that the weights are those of a model that knows something."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(lessons):
        pairs = torch.randint(0, 50, (16, 2), generator=generator).tolist()
        rows = [
            [
                {"role": "user", "content": f"What is {a:02} and {b:02}?"},
                {"role": "assistant", "content": f"The sum of {a:02} and {b:02} is {a + b:03}."},
            ]
            for a, b in pairs
        ]
        ids = torch.tensor([tokenizer.apply_chat_template(row, return_dict=False) for row in rows])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
