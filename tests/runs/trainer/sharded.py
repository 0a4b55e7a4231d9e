"""One of two processes that test_shard_first.py starts: two steps of `full` under fsdp2 in bfloat16, in both orders."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, distributed, float32
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsr1_tune.config import FullRun
from dsr1_tune.runs.trainer import trainer
from dsr1_tune.runs.trainer.shard_first import shard_first
from dsr1_tune.train import full

RANK = os.environ["RANK"]
prepare = Accelerator._prepare_fsdp2


class Largest(TorchDispatchMode):
    """The most numbers that this process holds of any float32 tensor that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = [one._local_tensor if isinstance(one, DTensor) else one for one in tree_leaves(out)]
        made = [one.numel() for one in held if isinstance(one, Tensor) and one.dtype == float32]
        self.numbers = max([self.numbers, *made])
        return out


def train(config: dict[str, Any], order: str) -> None:
    seen = Largest()

    def watched(self: Any, *args: Any) -> Any:
        with seen:
            return prepare(self, *args)

    Accelerator._prepare_fsdp2 = watched
    trainer.shard_first = shard_first if order == "first" else (lambda prepare: prepare)
    with Path(os.devnull).open("w") as nowhere:
        run = full.run(FullRun.model_validate(config), console=Console(file=nowhere))
    (run.path / f"largest.{RANK}").write_text(str(seen.numbers))


if __name__ == "__main__":
    # They meet once for both: at one address they cannot meet, part and meet again.
    distributed.init_process_group("gloo")
    distributed.destroy_process_group = lambda: None
    for order, config in json.loads(Path(sys.argv[1]).read_text()).items():
        train(config, order)
