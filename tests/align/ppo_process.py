"""One process of those that test_ppo_processes.py starts: ppo whose answers do not depend on who draws them."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from dsr1_tune.align import ppo
from dsr1_tune.align.online.generate import Answers
from dsr1_tune.config import PpoRun
from dsr1_tune.runs.distributed import group


def answer(session: Any, policy: Any, asked: Any, step: int) -> Answers:
    """Up to six letters for each prompt and step; some end, some do not."""
    answers = []
    for example in asked:
        draw = random.Random(f"{step} {example.input_ids}")
        answers.append((*(draw.randrange(68, 94) for _ in range(draw.randrange(1, 6))), draw.choice([1, 70])))
    policy.be_deterministic()
    return Answers(tuple(answers), tuple(ids[-1] == 1 for ids in answers))


seen: dict[str, float] = {}
take_steps = ppo.PpoSession.take_steps


def take_steps_and_sum(session: Any, model: Any) -> int:
    """The sum of all trained weights, as this process has them."""
    num_steps = take_steps(session, model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    seen["sum"] = sum(float(weight.detach().double().abs().sum()) for weight in trained)
    return num_steps


ppo._answer, ppo.PpoSession.take_steps = answer, take_steps_and_sum  # type: ignore[method-assign]
ppo.run(PpoRun.model_validate(json.loads(Path(sys.argv[1]).read_text())))
Path(f"{sys.argv[1]}.{sys.argv[2]}").write_text(json.dumps(seen))
assert group.world_size() == 1, "the processes have parted"
