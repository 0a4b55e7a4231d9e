"""What watching costs: the share of a training step that counting experts, norms by part and alarms take.

    python benchmarks/watching.py [--steps 8]

A real `lora` run on the embedded base, in which every call of the watcher and of the monitor's hooks is timed. Two runs
side by side would tell less: on a shared machine their steps differ by more than watching costs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Train, and compare the time inside the watcher with the steps' time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()

    from dsr1_tune.config import LoraRun
    from dsr1_tune.config.load import load_config
    from dsr1_tune.moe.monitor import RoutingMonitor
    from dsr1_tune.runs.watch.watcher import Watcher
    from dsr1_tune.train import lora

    spent: dict[str, float] = {}
    for owner, name in (
        (RoutingMonitor, "_count"),
        (RoutingMonitor, "_look_at_mask"),
        (Watcher, "before_clipping"),
        (Watcher, "on_log"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), f"{owner.__name__}.{name}", spent))
    with tempfile.TemporaryDirectory() as scratch:
        sets = [f"schedule.max_steps={options.steps}", "samples=0", "schedule.save_steps=100000"]
        config = load_config(LoraRun, ROOT / "examples/medical/lora.yaml", {"out": f"{scratch}/run"}, sets)
        data = config.data.model_copy(update={"files": tuple(ROOT / file for file in config.data.files)})
        folder = lora.run(config.model_copy(update={"data": data}))
        seconds = [json.loads(line)["seconds"] for line in folder.log_file.read_text().splitlines()]
    total = seconds[-1]
    print(f"{options.steps} steps in {total:.1f} s, {total / options.steps:.2f} s each")
    for name, share in spent.items():
        print(f"{name:32} {1000 * share / options.steps:8.2f} ms a step {share / total:8.3%}")
    together = sum(spent.values())
    print(f"{'together':32} {1000 * together / options.steps:8.2f} ms a step {together / total:8.3%}")


def _timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    spent[name] = 0.0

    def timed(*given: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*given, **more)
        finally:
            spent[name] += time.perf_counter() - start

    return timed


if __name__ == "__main__":
    main()
