"""lora, qlora, esft and full on the embedded base: the same data, order and tokens; gain, size, memory, speed.

    python benchmarks/methods.py                                  # all methods, one epoch of the medical example
    python benchmarks/methods.py --methods lora qlora --steps 8   # a short look, for tokens/s and memory

Every method runs as a user runs it, `dsr1-tune METHOD`, in a process of its own, one after the other. The gain is the
held-out loss before less the loss after; its share is taken of full fine-tuning's. Peak memory is the process's largest
resident set, evaluation and final check included. Results are added to --out as they come, one JSON line a run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Each method's own learning rates: those of another would say nothing about it.
RATES = {"lora": (5e-4,), "qlora": (5e-4,), "esft": (5e-5, 2e-4), "full": (2e-5, 1e-4)}
MIB = 2**20


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0 takes an epoch")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], help="a setting for every method")
    parser.add_argument("--out", type=Path, help="a JSON-lines file that results are added to")
    options = parser.parse_args()
    results = []
    for method in options.methods:
        for rate in RATES[method]:
            results.append(measure(method, rate, options.steps, options.seed, options.set))
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
            show(results[-1])
    print(table(results))


def measure(method: str, rate: float, steps: int, seed: int, more: list[str]) -> dict[str, Any]:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        settings = [
            f"schedule.learning_rate={rate}", f"schedule.max_steps={steps}", f"schedule.seed={seed}", "samples=0",
            "schedule.save_steps=100000", *more,
        ]  # fmt: skip
        command = [sys.executable, "-m", "dsr1_tune", method, "--config", "examples/medical/lora.yaml"]
        command += ["--out", str(folder), *(part for setting in settings for part in ("--set", setting))]
        with (Path(scratch) / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{method} failed:\n{(Path(scratch) / 'log').read_text()[-3000:]}")
        manifest = json.loads((folder / "manifest.json").read_text())
        steps_log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    losses = [line for line in steps_log if "loss" in line]
    metrics = manifest["metrics"]
    coverage = metrics["coverage"]
    # The first step also warms caches up.
    paces = [(b["num_tokens"] - a["num_tokens"]) / (b["seconds"] - a["seconds"]) for a, b in itertools.pairwise(losses)]
    return {
        "method": method,
        "learning_rate": rate,
        "before": metrics["loss_before"],
        "after": metrics["loss_after"],
        "gain": metrics["loss_before"] - metrics["loss_after"],
        "trained": sum(line["num_trained"] for line in coverage) / sum(line["num_base"] for line in coverage),
        "tokens": losses[-1]["num_tokens"],
        "tokens_per_second": statistics.median(paces),
        "peak_mib": usage.ru_maxrss * 1024 / MIB,
        "weights_bytes": metrics.get("weights_bytes"),
        "steps": metrics["num_steps"],
    }


def show(result: dict[str, Any]) -> None:
    """A line as soon as a run is done."""
    print({name: round(value, 5) if isinstance(value, float) else value for name, value in result.items()}, flush=True)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, the best learning rate of each method."""
    best = {m: max((r for r in results if r["method"] == m), key=lambda r: r["gain"]) for m in RATES
            if any(r["method"] == m for r in results)}  # fmt: skip
    full = best.get("full", {}).get("gain")
    lines = [
        "| method | learning rate | trained | loss before | after | gain | of full's | tokens/s | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, r in best.items():
        share = f"{r['gain'] / full:.0%}" if full else ""
        lines.append(
            f"| {method} | {r['learning_rate']:g} | {r['trained']:.2%} | {r['before']:.4f} | {r['after']:.4f} "
            f"| {r['gain']:.4f} | {share} | {r['tokens_per_second']:.0f} | {r['peak_mib']:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
