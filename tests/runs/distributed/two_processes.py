"""One of two processes that test_group.py starts: does the runs of a JSON file, one after the other.

Each run is {"command", "config", "resume", "interrupt": [rank, step], "starve": rank}. What this process alone can
tell is written beside the run: the sum of all trained weights, and which experts it used.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import distributed

from dsr1_tune import config as configs
from dsr1_tune.moe import expert_lora
from dsr1_tune.runs import session
from dsr1_tune.runs.trainer import callbacks

RANK = int(os.environ["RANK"])
CONFIGS = {"lora": configs.LoraRun, "qlora": configs.QloraRun, "full": configs.FullRun, "esft": configs.EsftRun}

apply_experts, train = expert_lora.apply_experts, session.Session.train


def do(run: dict[str, Any]) -> dict[str, Any]:
    """One run; a Ctrl-C that was asked for ends it."""
    seen: dict[str, Any] = {"experts": [], "sum": None}

    def watched_experts(experts: Any, x: Any, index_TK: Any, *rest: Any) -> Any:
        if x.requires_grad:
            seen["experts"] = sorted({*seen["experts"], *index_TK.flatten().tolist()})
        return apply_experts(experts, x, index_TK, *rest)

    def watched_train(self: Any, model: Any) -> None:
        if run.get("starve") == RANK:
            for name, buffer in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer[0] = -1e4  # no token of this process goes to expert 0
        train(self, model)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        seen["sum"] = sum(float(weight.detach().double().abs().sum()) for weight in trained)

    def interrupt(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if run.get("interrupt") == [RANK, state.global_step + 1]:
            os.kill(os.getpid(), signal.SIGINT)

    expert_lora.apply_experts, session.Session.train = watched_experts, watched_train
    callbacks.GracefulStop.on_step_begin = interrupt
    config = CONFIGS[run["command"]].model_validate(run["config"])
    resume = Path(run["resume"]) if run.get("resume") else None
    with Path(os.devnull).open("w") as nowhere, suppress(KeyboardInterrupt):
        import_module(f"dsr1_tune.train.{run['command']}").run(config, resume, Console(file=nowhere))
    return seen


if __name__ == "__main__":
    # They meet once for all runs: at one address they cannot meet, part and meet again.
    distributed.init_process_group("gloo")
    distributed.destroy_process_group = lambda: None
    faulthandler.dump_traceback_later(float(os.environ["PATIENCE"]), exit=True)  # a hang shows where
    for number, run in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        Path(f"{sys.argv[1]}.{number}.{RANK}").write_text(json.dumps(do(run)))
