"""Layered rewards against the task's reward alone, where that one is sparse: updates of PPO until a threshold.

    python benchmarks/layered_rewards.py                       # 5 seeds of every side
    python benchmarks/layered_rewards.py --tags 0.05           # where the task's reward is sparser
    python benchmarks/layered_rewards.py --seeds 1             # a first look

The task: to the prompt `3 7` answer `<tag> 3 7 </tag>` and end. The model is a tiny mixture of experts that has seen
such answers among many sloppy ones (other words for the tags, wrong digits, more words), and gives a right one about
once in 120; with --tags 0.05 once in 1,070.
The same model, prompts, answers per update, learning rate and number of updates for all sides; only the reward file
differs, and all are worth at most 1:

    task      1 where the answer is right in every respect, else 0
    layered   form (begins with its tag, ends with its tag, four words), then the share of digits that are right, then
              the task: each layer counts as far as the lower ones are met
    added     the same components without gates

What counts is the share of an update's answers that are right in every respect, whatever was rewarded: the first of
three updates in a row whose mean is at least the threshold. A run that does not get there is censored (>).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DIGITS = [str(digit) for digit in range(10)]
TAG, CLOSE, JUNK, END = "<tag>", "</tag>", ["um", "so", "well", "ok"], "<end>"
WORDS = ["<pad>", END, "<user>", "<assistant>", "copy", "tags", TAG, CLOSE, *DIGITS, *JUNK]
TEMPLATE = (
    "{% for message in messages %}{{ '<user> ' if message['role'] == 'user' else '<assistant> ' }}"
    "{{ message['content'] }}{{ ' <end>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIDES = ("task", "layered", "added")
TASK = {"type": "regex", "name": "right", "pattern": r"\A<tag> {expected} </tag>\Z"}
FORM = [
    {"type": "regex", "name": "open", "pattern": r"\A<tag>"},
    {"type": "regex", "name": "close", "pattern": r"</tag>\Z"},
    {"type": "function", "name": "short", "call": "partial.py:short"},
]
DIGIT = {"type": "function", "name": "digits", "call": "partial.py:digits"}
PARTIAL = '''"""Steps on the way to a right answer."""


def short(answer):
    """Whether it is four words."""
    return len(answer.split()) == 4


def digits(answer, expected):
    """The share of the digits that stand where they should, behind the first word."""
    said, wanted = answer.split()[1:], expected.split()
    return sum(a == b for a, b in zip(said, wanted)) / len(wanted)
'''
SMOOTH = 3


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--tags", type=float, default=0.15, help="how often the model knows a tag; 0.05 is sparser")
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, help="a JSON-lines file that results are added to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run(json.loads(options.child))
        return
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        make_task(work, options.tags)
        for seed in range(options.seeds):
            for side in options.sides:
                results.append(measure(work, side, seed, options))
                shown = {name: value for name, value in results[-1].items() if name != "right"}
                print(json.dumps(shown), flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(results[-1]) + "\n")
    print(table(results, options))


def make_task(work: Path, tags: float = 0.15) -> None:
    """Model, prompts and the reward files."""
    pairs = [f"{a} {b}" for a in DIGITS for b in DIGITS]
    (work / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": p}) + "\n" for p in pairs))
    (work / "partial.py").write_text(PARTIAL)
    task = {"name": "task", "components": [TASK]}
    steps = [
        {"name": "form", "weight": 0.2, "components": FORM},
        {"name": "logic", "weight": 0.3, "components": [DIGIT]},
        {**task, "weight": 0.5},
    ]
    added = [{**layer, **({} if layer["name"] == "task" else {"gate": "none"})} for layer in steps]
    for side, layers in (("task", [task]), ("layered", steps), ("added", added)):
        (work / f"{side}.yaml").write_text(json.dumps({"layers": layers}))
    make_model(work / "model", tags)


def make_model(folder: Path, tags: float) -> None:
    """A Qwen3-MoE of two layers, trained on sloppy answers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(WORDS),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        max_position_embeddings=64,
        eos_token_id=WORDS.index(END),
        pad_token_id=0,
        bos_token_id=0,
    )
    model = Qwen3MoeForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    draw = random.Random(0)
    for _ in range(400):
        rows = [told(draw, tags) for _ in range(64)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        labels = torch.where(ids == 0, -100, ids)
        labels[:, :3] = -100
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def told(draw: random.Random, tags: float) -> list[int]:
    """A row of what the model was trained on: sloppy answers, and among them exact ones to other prompts.

    It is the exact ones that let it be sure of anything: its head is frozen later. To a prompt of the task a right
    answer comes with probability tags² · 0.73² · 0.7: once in 120 with 0.15, once in 1,070 with 0.05.
    """
    asked = [draw.choice(DIGITS), draw.choice(DIGITS)]
    if draw.random() < 0.25:
        return _numbered(["<user>", "copy", *asked, "<assistant>", *asked, END])
    if draw.random() < 0.25:
        return _numbered(["<user>", "tags", "<assistant>", "copy", "tags", TAG, CLOSE, END])
    said = [TAG if draw.random() < tags else draw.choice(JUNK)]
    said += [digit if draw.random() < 0.7 else draw.choice(DIGITS) for digit in asked]
    said.append(CLOSE if draw.random() < tags else draw.choice(JUNK))
    while draw.random() < 0.3 and len(said) < 7:
        said.append(draw.choice(DIGITS + JUNK))
    return _numbered(["<user>", *asked, "<assistant>", *said, END])


def _numbered(words: list[str]) -> list[int]:
    return [WORDS.index(word) for word in words]


def measure(work: Path, side: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    job = {
        "work": str(work),
        "side": side,
        "seed": seed,
        "updates": options.updates,
        "threshold": options.threshold,
        "answers": options.answers,
        "learning_rate": options.learning_rate,
        "result": str(work / f"{side}-{seed}.json"),
    }
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the model is too small for more
    env = (
        threads
        | os.environ
        | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    )
    began = time.monotonic()
    with (work / "log").open("w") as log:
        command = [sys.executable, __file__, "--child", json.dumps(job)]
        done = subprocess.run(command, env=env, stdout=log, stderr=log)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{(work / 'log').read_text()[-3000:]}")
    result: dict[str, Any] = json.loads(Path(job["result"]).read_text())
    return {"side": side, "seed": seed, "seconds": round(time.monotonic() - began), **result}


def run(job: dict[str, Any]) -> None:
    """Our PPO as the command runs it; it ends once the threshold is reached."""
    from dsr1_tune.align import ppo
    from dsr1_tune.config import PpoRun

    work = Path(job["work"])
    config = PpoRun.model_validate(
        {
            "data": {"files": [work / "prompts.jsonl"]},
            "base": {"model": str(work / "model"), "dtype": "float32"},
            "rewards": work / f"{job['side']}.yaml",
            "adapter": {"rank": 8, "alpha": 16, "groups": ["attention", "routed_experts"]},
            "rollout": {"max_new_tokens": 8, "batch_size": job["answers"]},
            "ppo": {"answers": job["answers"], "epochs": 2, "minibatches": 2, "kl": 0.01, "missing_eos": 0.0},
            "schedule": {
                "learning_rate": job["learning_rate"],
                "max_steps": job["updates"],
                "batch_size": job["answers"] // 2,
                "gradient_checkpointing": False,
                "max_tokens": 32,
                "seed": job["seed"],
                "save_steps": 100_000,
            },
            "watch": {"trackers": []},
            "samples": 0,
            "out": work / f"run-{job['side']}-{job['seed']}",
        }
    )
    right: list[float] = []
    end_step = ppo.Steps.end_step

    def end_step_until_it_can(steps: Any, numbers: dict[str, Any], *others: Any, **named: Any) -> None:
        right.append(numbers["reward/task/right"])
        end_step(steps, numbers, *others, **named)
        steps.control.should_training_stop |= reached(right, job["threshold"]) is not None

    ppo.Steps.end_step = end_step_until_it_can  # type: ignore[method-assign]
    result = {"right": right}
    try:
        ppo.run(config)
    except KeyboardInterrupt:
        if reached(right, job["threshold"]) is None:
            raise
    result["reached"] = reached(right, job["threshold"])
    result["first"] = round(statistics.mean(right[:5]), 4)
    result["last"] = round(statistics.mean(right[-SMOOTH:]), 4)
    Path(job["result"]).write_text(json.dumps(result))


def reached(right: list[float], threshold: float) -> int | None:
    """The first of three updates in a row whose mean is at least the threshold; None where there are none."""
    means = (statistics.mean(right[at : at + SMOOTH]) for at in range(len(right) - SMOOTH + 1))
    return next((number for number, mean in enumerate(means, 1) if mean >= threshold), None)


def table(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Updates of every seed, and their medians; a censored run counts as the number of updates it had, and more."""
    lines = [
        f"| reward | updates until {options.threshold:.0%} right, by seed | median | of task |",
        "|---|---|---|---|",
    ]
    medians: dict[str, float] = {}
    for side in options.sides:
        own = [one["reached"] for one in results if one["side"] == side]
        shown = ", ".join(str(number) if number else f">{options.updates}" for number in own)
        medians[side] = statistics.median(number or float("inf") for number in own)
        is_censored = medians[side] == float("inf")
        median = f">{options.updates}" if is_censored else f"{medians[side]:g}"
        base = medians.get("task", float("nan"))
        sign, base = ("<", options.updates) if base == float("inf") else ("", base)
        share = "" if is_censored or side == "task" or "task" not in medians else f"{sign}{medians[side] / base:.0%}"
        lines.append(f"| {side} | {shown} | {median} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
