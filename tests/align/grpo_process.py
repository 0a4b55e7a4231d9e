"""One process of those that test_grpo_processes.py starts: grpo whose answers do not depend on who draws them."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from dsr1_tune.align import grpo
from dsr1_tune.align.online.grpo_trainer import GrpoTrainer
from dsr1_tune.config import GrpoRun
from dsr1_tune.runs.distributed import group


def answer(trainer: Any, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
    """Up to six letters for each place in an update; some end, some do not."""
    first = group.rank() * len(prompt_ids)
    answers = []
    for place in range(first, first + len(prompt_ids)):
        draw = random.Random(f"{trainer.state.global_step} {place}")
        answers.append([*(draw.randrange(68, 94) for _ in range(draw.randrange(1, 6))), draw.choice([1, 70])])
    return answers, None


seen: dict[str, float] = {}
take_steps = grpo.GrpoSession.take_steps


def take_steps_and_sum(session: Any, model: Any) -> int:
    """The sum of all trained weights, as this process has them."""
    num_steps = take_steps(session, model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    seen["sum"] = sum(float(weight.detach().double().abs().sum()) for weight in trained)
    return num_steps


GrpoTrainer._generate_single_turn = answer  # type: ignore[method-assign]
grpo.GrpoSession.take_steps = take_steps_and_sum  # type: ignore[method-assign]
grpo.run(GrpoRun.model_validate(json.loads(Path(sys.argv[1]).read_text())))
Path(f"{sys.argv[1]}.{sys.argv[2]}").write_text(json.dumps(seen))
assert group.world_size() == 1, "the processes have parted"
