"""Write prompts.jsonl: small sums, each once, with the result that an answer is checked against."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

SEED = 7
NUM_OF_EACH = 70


def problems() -> list[tuple[str, int]]:
    """As many sums as differences and products, in an order that the seed alone decides."""
    chance = random.Random(SEED)
    numbers = range(1, 13)
    kinds = (
        [(f"{a} + {b}", a + b) for a, b in product(numbers, numbers)],
        [(f"{a} - {b}", a - b) for a, b in product(numbers, numbers) if a >= b],
        [(f"{a} * {b}", a * b) for a, b in product(numbers, numbers)],
    )
    chosen = [one for kind in kinds for one in chance.sample(kind, NUM_OF_EACH)]
    chance.shuffle(chosen)
    return chosen


def main() -> None:
    """One line a problem, beside this script."""
    rows = (
        {"prompt": f"What is {problem}? Answer in one short line.", "answer": str(result)}
        for problem, result in problems()
    )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    Path(__file__).with_name("prompts.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
