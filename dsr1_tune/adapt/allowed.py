"""Whether a method's own command would begin a planned run: what it asks before it reads any weight is asked."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from dsr1_tune.config import RUNS, Parallel, PlanRun, as_run
from dsr1_tune.errors import ConfigError
from dsr1_tune.models.attention import unsupported
from dsr1_tune.models.memory_plan.base import PlannedBase
from dsr1_tune.models.memory_plan.estimate import Method
from dsr1_tune.runs.distributed.group import check_number
from dsr1_tune.runs.trainer.optimizers import check_optimizer


def refusal(config: PlanRun, base: PlannedBase, device: str, method: Method, parallel: Parallel) -> str:
    """Why `dsr1-tune METHOD` would refuse the planned run with its work shared out so; "" where it would not."""
    try:
        run = as_run(config, RUNS[method], parallel=parallel.model_dump())
        check_number(run.parallel.strategy, run.parallel, run.parallel.processes)
        check_optimizer(run.schedule, torch.device(device))
        return unsupported(base.config, run.base.attention, run.base.dtype, device)
    except ValidationError as error:
        return "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
    except ConfigError as error:
        return f"{error.message}; {error.hint}" if error.hint else error.message
