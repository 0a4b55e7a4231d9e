"""Does the judge choose better training data?  LoRA on the best-scored rows, on random ones and on the worst ones.

All arms see the same number of tokens and the same held-out rows, which belong to no arm; every seed draws other
held-out rows, another order and another adapter. The base is the embedded one, as for `dsr1-tune lora`.

    python benchmarks/judge.py --scores alpaca_en_demo.json scores.jsonl
    python benchmarks/judge_lora.py alpaca_en_demo.json scores.jsonl --seeds 3 --out judge_lora.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from dsr1_tune.config import Adapter, Base, Data
from dsr1_tune.data.encode.example import IGNORED, Example, encode_all
from dsr1_tune.data.prepare import examine
from dsr1_tune.data.record import Record
from dsr1_tune.models.load import load_located, locate
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.runs.evaluate import held_out_loss

ARMS = ("best", "random", "worst")


def main() -> None:
    """Train all arms for every seed and print the held-out losses."""
    asked = _arguments()
    examples, scores = _scored(asked)
    loaded = load_located(locate(Base()), "float32", for_training=True)
    model = add_lora(loaded.model, Adapter())
    results: list[dict[str, Any]] = []
    for seed in range(asked.seeds):
        rows = sorted(examples)
        held_out = set(random.Random(seed).sample(rows, asked.held_out))
        left = [row for row in rows if row not in held_out]
        probe = [examples[row] for row in sorted(held_out)]
        for arm in ARMS:
            start = time.perf_counter()
            chosen = _choose(left, scores, examples, arm, asked.tokens, seed)
            _start_anew(model, seed)
            if arm == ARMS[0]:
                before = held_out_loss(model, probe, loaded.tokenizer.pad_token_id).loss
            num_tokens = _train(model, [examples[row] for row in chosen], loaded.tokenizer.pad_token_id, asked, seed)
            after = held_out_loss(model, probe, loaded.tokenizer.pad_token_id).loss
            seconds = round(time.perf_counter() - start)
            results.append(
                {"seed": seed, "arm": arm, "rows": len(chosen), "tokens": num_tokens, "before": before, "after": after}
            )
            print(f"seed {seed}, {arm}: {before:.4f} -> {after:.4f} ({num_tokens} tokens, {seconds} s)", flush=True)
            asked.out.write_text(json.dumps(results, indent=1))
    _print_table(results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("scores", type=Path, help="a line per row: index, and the score")
    parser.add_argument("--score", default="combined", help="the name of the score to go by; higher is better")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=12_000, help="tokens that every arm is trained on")
    parser.add_argument("--held-out", type=int, default=60, help="rows that no arm is trained on")
    parser.add_argument("--max-tokens", type=int, default=192, help="longer rows are left out")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, default=Path("judge_lora.json"))
    return parser.parse_args()


def _scored(asked: argparse.Namespace) -> tuple[dict[int, Example], dict[int, float]]:
    """The encoded rows that have a score, and their scores, by the row's index in the file."""
    lines = [json.loads(line) for line in asked.scores.read_text().splitlines()]
    scores = {line["index"]: line[asked.score] for line in lines if line[asked.score] is not None}
    rows = examine(Data(files=(asked.file,))).rows
    records = [row for row in rows if isinstance(row, Record) and row.place.index in scores]
    examples, _ = encode_all(records, locate(Base()).tokenizer, asked.max_tokens)
    return {example.record.place.index: example for example in examples}, scores


def _choose(
    rows: Sequence[int], scores: dict[int, float], examples: dict[int, Example], arm: str, num_tokens: int, seed: int
) -> list[int]:
    """Rows of an arm, in random order, until they have so many tokens; best and worst are halves of all rows."""
    ranked = sorted(rows, key=lambda row: scores[row])
    half = len(ranked) // 2
    members = {"best": ranked[-half:], "worst": ranked[:half], "random": list(ranked)}[arm]
    random.Random(seed).shuffle(members)
    chosen, total = [], 0
    for row in members:
        if total >= num_tokens:
            break
        chosen.append(row)
        total += len(examples[row].input_ids)
    if total < num_tokens:
        raise SystemExit(f"the {arm} half has only {total} tokens; ask for fewer with --tokens")
    return chosen


def _start_anew(model: Any, seed: int) -> None:
    """Every arm of a seed begins with the same adapter: A drawn, B zero."""
    set_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                if "lora_B" in name:
                    weight.zero_()
                else:
                    torch.nn.init.kaiming_uniform_(weight, a=5**0.5)


def _train(model: Any, examples: Sequence[Example], pad: int, asked: argparse.Namespace, seed: int) -> int:
    """One pass with AdamW and a linear decay; returns the number of tokens."""
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=asked.learning_rate, weight_decay=0.0)
    batches = list(_batches(examples, asked.batch, seed))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    for batch in batches:
        longest = max(len(example.input_ids) for example in batch)
        ids, labels, mask = (
            torch.tensor([list(row) + [filler] * (longest - len(row)) for row in rows])
            for rows, filler in (
                ([e.input_ids for e in batch], pad),
                ([e.labels for e in batch], IGNORED),
                ([[1] * len(e.input_ids) for e in batch], 0),
            )
        )
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return sum(len(example.input_ids) for example in examples)


def _batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Rows of like length together, the batches in random order."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    random.Random(seed).shuffle(batches)
    yield from batches


def _print_table(results: Sequence[dict[str, Any]]) -> None:
    print("\n| arm | held-out loss, mean of seeds | each seed | rows |\n|---|---|---|---|")
    for arm in ARMS:
        of_arm = [result for result in results if result["arm"] == arm]
        losses = [result["after"] for result in of_arm]
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        rows = ", ".join(str(result["rows"]) for result in of_arm)
        print(f"| {arm} | {statistics.mean(losses):.4f} | {each} | {rows} |")
    before = statistics.mean(result["before"] for result in results)
    print(f"| untrained | {before:.4f} | | |")


if __name__ == "__main__":
    main()
