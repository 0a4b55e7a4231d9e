"""What `dsr1-tune plan` predicts against what runs take: the peak of each method's process, in two tiny families.

    python benchmarks/plan.py                             # two tiny families, lora, qlora, full and dpo
    python benchmarks/plan.py --models embedded --rows 4  # the embedded base: up to 12 GB, a quarter of an hour
    python benchmarks/plan.py --methods lora qlora --processes 2  # two processes that share the experts out

Each method runs as a user runs it, `dsr1-tune METHOD`, in a process of its own, for a few steps; dpo on pairs of which
both answers are as long as those of the others. The peak is VmHWM: resident memory, pages of mapped files included; of
several processes that of the one that takes the most.
Results are added to --out as they come.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
MIB = 2**20
# About 115 M parameters each, so that there is more to see than imports.
SIZES: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
}


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["qwen3_moe", "deepseek_v3"])
    parser.add_argument("--methods", nargs="+", default=["lora", "qlora", "full", "dpo"])
    parser.add_argument("--rows", type=int, default=4, help="sequences of a batch")
    parser.add_argument("--words", type=int, default=60, help="length of a text")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1, help="more than one share the experts out")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, help="a JSON-lines file that results are added to")
    options = parser.parse_args()
    print("model | method | predicted MiB | measured | error | predicted phase", flush=True)
    for model in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            base = None if model == "embedded" else write_base(Path(scratch) / "base", model)
            data = write_data(Path(scratch) / "data.json", options.words)
            for method in options.methods:
                told = measure(method, base, data, Path(scratch), options)
                line = {"model": model, "method": method, **told}
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                predicted, measured = told["predicted"] / MIB, told["measured"] / MIB
                numbers = f"{predicted:,.0f} | {measured:,.0f} | {predicted / measured - 1:+.1%} | {told['phase']}"
                print(f"{model} | {method} | {numbers} | {told['seconds']:.0f} s", flush=True)


def write_base(folder: Path, family: str) -> str:
    """A model with random weights and a tokenizer whose tokens are bytes; written by a process that then ends."""
    root = str(Path(__file__).resolve().parents[1])
    code = f"from benchmarks import plan; plan._write_base({str(folder)!r}, {family!r})"
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL, cwd=root)
    return str(folder)


def _write_base(folder: str, family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen3MoeConfig

    from tests.conftest import byte_tokenizer

    if family == "qwen3_moe":
        config: Any = Qwen3MoeConfig(**SIZES, num_experts=16, head_dim=64)
    else:
        config = DeepseekV3Config(
            **SIZES, n_routed_experts=16, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=None,
            kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64,
        )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def write_data(file: Path, num_words: int) -> Path:
    """Twenty records of nearly one length; beside them, in pairs.jsonl, as many pairs with answers like theirs."""
    rows = [
        {"input": f"what is {a} times {b}?", "output": f"it is {a * b:3}. " + "so " * num_words}
        for a in range(11, 16)
        for b in range(11, 15)
    ]
    file.write_text(json.dumps(rows))
    pairs = [
        {"prompt": row["input"], "chosen": row["output"], "rejected": row["output"].replace("so", "no")} for row in rows
    ]
    file.with_name("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return file


def measure(method: str, base: str | None, data: Path, scratch: Path, options: Any) -> dict[str, Any]:
    """The prediction, and the peak of the process."""
    settings = [f"schedule.batch_size={options.rows}", f"schedule.max_steps={options.steps}", "samples=0", *options.set]
    sets = [part for setting in settings for part in ("--set", setting)]
    if options.processes > 1:
        sets += ["--processes", str(options.processes), "--set", "parallel.strategy=experts"]
    model = ["--model", base] if base else []
    asked = [sys.executable, "-m", "dsr1_tune", "plan", "--data", str(data), *model, *sets, "--memory", "1000GiB"]
    asked += ["--set", "device=cpu"]
    planned = json.loads(
        subprocess.run([*asked, "--json"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    )
    one = planned["methods"][method]
    learned = data.with_name("pairs.jsonl") if method == "dpo" else data
    command = [sys.executable, "-m", "dsr1_tune", method, "--data", str(learned), *model, *sets]
    command += ["--out", str(scratch / method)]
    start = time.perf_counter()
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        peak = watched(process)
    if process.returncode:
        raise SystemExit(f"{method} failed:\n{(scratch / 'log').read_text()[-3000:]}")
    seconds = time.perf_counter() - start
    return {"predicted": one["peak"], "measured": peak, "phase": one["reached_in"], "phases": one["phases"],
            "parts": one["parts"], "batch": one["batch"], "seconds": seconds}  # fmt: skip


def watched(process: subprocess.Popen[bytes]) -> int:
    """The largest VmHWM of a process, or one of those that it starts, until it ends, in bytes."""
    peak, several = 0, psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(OSError, psutil.Error):
            for one in (several, *several.children()):
                lines = Path(f"/proc/{one.pid}/status").read_text().splitlines()
                peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.02)
    process.wait()
    return peak


if __name__ == "__main__":
    main()
