"""PPO side by side: ours, and the last TRL that had it: reward against updates, tokens per second, peak memory.

    python benchmarks/ppo.py                                   # ours and TRL's, 3 seeds, 30 updates
    python benchmarks/ppo.py --seeds 1 --updates 6             # a short look at speed and memory
    python benchmarks/ppo.py --groups attention                # without updates on routed experts

Both sides get the same mixture of experts with random weights (28 M parameters, float32), prompts, reward, answers per
update, epochs, minibatches, lengths, learning rate and ranks of the same places. A run is a process of its own; the
sides take turns. TRL 1.12 is put into a folder of its own, on top of our torch, transformers and PEFT, so that TRL
is all that differs. It keeps a value model beside the policy: with the same LoRA as the policy (trl), or, as its own
example has it, trained whole (trl-full: for memory and speed; the learning rate is LoRA's). Its policy is a PEFT model,
so it holds no reference copy. Routed experts get their LoRA from stock PEFT on TRL's side, by our products on ours;
--groups attention shows what is left without that difference.

Tokens per second: answer tokens, counted once when generated and once for each epoch in which they are trained on,
over the time of an update; median, after an update to warm up. Beside other programs, which slow the wall's clock,
compare tokens per second of processor time. Peak memory: the largest resident set up to the end of training, above
what the imports took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHILD = Path(__file__).with_name("ppo_sides.py")
TRL = "trl==1.12.0"
SIDES = {
    "ours": "base once; value head on the policy's last layer, one adapter for both; reference: adapter off",
    "ours-own": "base once; an adapter for the policy, another for the value; reference: adapter off",
    "trl": "base twice: policy with LoRA, value model with LoRA; reference: adapter off; reward module",
    "trl-full": "base twice: policy with LoRA, value model trained whole; reference: adapter off; reward module",
}
REWARD = '''"""The task: answers full of the letter e."""


def share_of_e(answer: str) -> float:
    """Share of the answer's characters that are e: 1 at best."""
    return answer.count("e") / len(answer) if answer else 0.0
'''
NUM_PROMPTS = 128
MIB = 2**20


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "trl"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--groups", nargs="+", choices=("attention", "routed_experts"),
                        default=["attention", "routed_experts"])  # fmt: skip
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16, help="longest answer")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, both sides")
    parser.add_argument("--out", type=Path, help="a JSON-lines file that results are added to")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        make_task(work)
        for seed in range(options.seeds):
            for side in options.sides:
                results.append(measure(work, side, seed, options))
                show(results[-1])
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(results[-1]) + "\n")
    print(table(results, options.sides))
    print(curves(results, options.sides))


def make_task(work: Path) -> None:
    """The model, the prompts and the reward, as files that both sides read."""
    words = sorted(
        {word for file in (ROOT / "docs").glob("*.md") for word in re.findall("[a-z]{3,}", file.read_text())}
    )
    draw = random.Random(0)
    prompts = [f"Say something about {' '.join(draw.sample(words, draw.randint(2, 16)))}." for _ in range(NUM_PROMPTS)]
    (work / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (work / "reward.py").write_text(REWARD)
    layer = {"name": "task", "components": [{"type": "function", "call": "reward.py:share_of_e"}]}
    (work / "rewards.yaml").write_text(json.dumps({"layers": [layer]}))
    subprocess.run([sys.executable, str(CHILD), "make-model", str(work)], check=True)


def measure(work: Path, side: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    result = work / f"{side}-{seed}.json"
    job = {
        "side": side,
        "work": str(work),
        "result": str(result),
        "seed": seed,
        "updates": options.updates,
        "groups": options.groups,
        "answers": options.answers,
        "tokens": options.tokens,
        "learning_rate": options.learning_rate,
        "checkpointing": options.checkpointing,
    }
    paths = [str(trl_folder())] if side.startswith("trl") else []
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    with (work / "log").open("w") as log:
        done = subprocess.run([sys.executable, str(CHILD), "run", json.dumps(job)], env=env, stdout=log, stderr=log)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{(work / 'log').read_text()[-3000:]}")
    return {"side": side, "seed": seed, **json.loads(result.read_text())}


def trl_folder() -> Path:
    """Where TRL lies; put there first, without its dependencies, which are ours."""
    from dsr1_tune.atomic import atomic_folder
    from dsr1_tune.models.embedded import cache_dir

    folder: Path = cache_dir() / "benchmarks" / TRL.replace("==", "-")
    if not folder.is_dir():
        print(f"installing {TRL} into {folder} (once)", flush=True)
        with atomic_folder(folder) as part:
            options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
            subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(part), TRL], check=True)
    return folder


def speed(result: dict[str, Any], clock: str = "seconds") -> float:
    """Answer tokens per second, generated and trained on, in the median update after the first."""
    passes = 1 + result["epochs"]
    return statistics.median(passes * n / s for n, s in zip(result["tokens"][1:], result[clock], strict=True))


def show(result: dict[str, Any]) -> None:
    """A line as soon as a run is done."""
    rewards = result["rewards"]
    print(
        f"{result['side']} seed {result['seed']}: {speed(result):.0f} tokens/s "
        f"({speed(result, 'cpu_seconds'):.0f} per second of processor time), "
        f"peak {result['peak'] / MIB:.0f} MiB above imports, {result['trained']:,} weights trained, "
        f"reward {rewards[0]:.3f} -> {rewards[-1]:.3f}, KL {result['kl'][-1]:.2f}",
        flush=True,
    )


def table(results: list[dict[str, Any]], sides: list[str]) -> str:
    """Markdown: the best of each side's runs, in speed and in memory."""

    def best(side: str, pick: Callable[[Any], float], measure: Callable[[dict[str, Any]], float]) -> float:
        return pick(measure(r) for r in results if r["side"] == side)

    base = "trl" if "trl" in sides else sides[-1]
    base_pace, base_peak = best(base, max, speed), best(base, min, lambda r: r["peak"])
    lines = [
        f"| side | weights trained | s/update | tokens/s | times {base}'s | tokens per processor second "
        f"| peak MiB | of {base}'s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side in sides:
        pace, peak = best(side, max, speed), best(side, min, lambda r: r["peak"])
        lines.append(
            f"| {side} | {best(side, max, lambda r: r['trained']):,} "
            f"| {best(side, min, lambda r: statistics.median(r['seconds'])):.2f} | {pace:.0f} | {pace / base_pace:.2f} "
            f"| {best(side, max, lambda r: speed(r, 'cpu_seconds')):.0f} | {peak / MIB:.0f} | {peak / base_peak:.2f} |"
        )
    return "\n".join([*lines, "", *(f"- {side} holds: {SIDES[side]}" for side in sides)])


def curves(results: list[dict[str, Any]], sides: list[str]) -> str:
    """Markdown: mean reward over the seeds, and the spread of the last, at a few updates."""
    num = min(len(r["rewards"]) for r in results)
    shown = sorted({round(k * (num - 1) / 6) for k in range(7)})
    lines = ["", "| mean reward at update | " + " | ".join(str(k + 1) for k in shown) + " | last, by seed | last KL |"]
    lines.append("|" + "---|" * (len(shown) + 3))
    for side in sides:
        runs = [r for r in results if r["side"] == side]
        means = " | ".join(f"{statistics.mean(r['rewards'][k] for r in runs):.3f}" for k in shown)
        last = ", ".join(f"{r['rewards'][-1]:.3f}" for r in runs)
        lines.append(f"| {side} | {means} | {last} | {statistics.mean(r['kl'][-1] for r in runs):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
