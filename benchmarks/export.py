"""Every export target of one merged model: size, what it loses, speed.

    python benchmarks/export.py RUN [--targets nf4 int8 fp8 w4a16 w4a16-gptq ...] [--answers 30] [--out exports-table]

The run is merged first and rounded to bfloat16, as larger bases are; that is what every target is made of and held
against, by `dsr1-tune compare`: loss on the run's held-out records and on the built-in general set, likeliest tokens
that stay, KL divergence, task scores of greedy answers, and tokens a second on this machine, where an engine for the
format runs here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TARGETS = ["nf4", "nf4-all", "int8", "int8-all", "fp8", "w4a16", "w4a16-gptq"]


def main() -> None:
    """Merge, then quantize and compare target by target; a line for each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=60, help="of each set")
    parser.add_argument("--out", type=Path, default=Path("exports-table"))
    options = parser.parse_args()
    whole, merged = options.out / "merged", options.out / "merged-bf16"
    if not whole.exists():
        ours("merge", str(options.run), "--out", str(whole))
    if not merged.exists():
        round_to_bf16(whole, merged)
    heads = (
        "target",
        "MB",
        "size",
        "domain loss",
        "change",
        "general",
        "agreement",
        "KL",
        "ROUGE-L",
        "reads/s",
        "says/s",
    )
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    for target in options.targets:
        made = options.out / target
        if not made.exists():
            done = ours("quantize", str(merged), "--out", str(made), *flags_of(target), may_fail=True)
            if done:
                print(f"| {target} | {done} |", flush=True)
                continue
        report = options.out / f"compare-{target}"
        sets = [f"compare.answers={options.answers}", f"compare.answer_tokens={options.answer_tokens}"]
        sets += [f"compare.max_rows={options.rows}"]
        words = [word for one in sets for word in ("--set", one)]
        failed = ours("compare", str(merged), str(made), "--out", str(report), *words, may_fail=True)
        print(failed or line(target, json.loads((report / "compare.json").read_text())), flush=True)


def round_to_bf16(whole: Path, rounded: Path) -> None:
    """A copy of a model with its matrices and norms in bfloat16; balancing biases stay in float32."""
    from dsr1_tune.export import lineage
    from dsr1_tune.export.weights.sidecars import copy_sidecars
    from dsr1_tune.export.weights.source import open_source
    from dsr1_tune.models.weights.checkpoint import Spec, write_weights
    from dsr1_tune.moe.anatomy import is_balancing_bias

    source = open_source(whole)

    class Rounded:
        shards = source.weights.shards

        def spec(self, name: str) -> Spec:
            return (
                source.weights.spec(name) if is_balancing_bias(name) else Spec("BF16", source.weights.spec(name).shape)
            )

        def stored(self, name: str) -> None:
            return None

        def read(self, name: str) -> Any:
            weight = source.weights.read(name)
            return weight if is_balancing_bias(name) else weight.bfloat16()

    rounded.mkdir()
    write_weights(Rounded(), rounded)
    copy_sidecars(source, rounded, {**source.config, "dtype": "bfloat16"})
    lineage.write(rounded, source.stages)


def flags_of(target: str) -> list[str]:
    """`nf4-all` → --to nf4 --all; `gguf-q8_0` → --to gguf --gguf q8_0; `w4a16-gptq` → --to w4a16 --method gptq."""
    form, _, how = target.partition("-")
    if how == "all":
        return ["--to", form, "--all"]
    return [
        "--to",
        form,
        *(["--gguf", how] if form == "gguf" and how else []),
        *(["--method", how] if how == "gptq" else []),
    ]


def ours(*arguments: str, may_fail: bool = False) -> str:
    """Run dsr1-tune; what it said if it failed, where that may be."""
    done = subprocess.run([sys.executable, "-m", "dsr1_tune", *arguments], capture_output=True, text=True)
    if done.returncode and not may_fail:
        sys.exit(done.stderr)
    return done.stderr.strip().splitlines()[0] if done.returncode else ""


def line(target: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    a, b, domain, general = found["a"], found["b"], found["domain"], found["general"]
    rouge = next((one for one in (found["answers"] or {}).get("scores", []) if "rouge" in one["name"].lower()), None)
    cells = [
        target,
        f"{b['stored_bytes'] / 1e6:,.0f}",
        f"{b['stored_bytes'] / a['stored_bytes']:.2f} ×",
        f"{domain['loss_b']['value']:.4f}",
        f"{domain['increase']['value']:+.2%}",
        f"{general['increase']['value']:+.2%}",
        f"{domain['agreement']['value']:.2%}" if domain["agreement"] else "",
        f"{domain['divergence']['value']:.4f}" if domain["divergence"] else "",
        f"{rouge['a']['value']:.3f} → {rouge['b']['value']:.3f}" if rouge else "",
        f"{b['reads_per_second']:,.0f}" if b["reads_per_second"] else "",
        f"{b['writes_per_second']:,.1f}" if b["writes_per_second"] else "",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
