"""Merge and quantise in processes that are killed at random moments; run by test_killed.py, which has no threads."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.config import Quantise
from dsr1_tune.export import lineage, merge, quantize


def main() -> None:
    """Twenty kills, half of each; says how many found nothing written yet, something unfinished, and a whole model."""
    run, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    quiet = Console(file=io.StringIO())
    merged = merge.run(run, scratch / "for-quantise", console=quiet)
    jobs: dict[str, Callable[[Path], object]] = {
        "merge": lambda out: merge.run(run, out, console=quiet),
        "quantize": lambda out: quantize.run(merged, out, Quantise(to="nf4"), quiet),
    }
    drawn = random.Random(0)
    for name, work in jobs.items():
        start = time.perf_counter()
        work(scratch / f"{name}-whole")
        usual = time.perf_counter() - start
        seen = {"nothing": 0, "unfinished": 0, "whole": 0}
        out = scratch / name
        for _ in range(10):
            killed(lambda out=out, work=work: work(out), drawn.random() * usual)
            seen[state_of(out)] += 1
        if not out.exists():
            work(out)
        assert state_of(out) == "whole"
        assert not list(scratch.glob(f".{name}.*")), "what killed attempts left is cleared away"
        print(name, seen)


def killed(work: Callable[[], object], after: float) -> None:
    """Do it in a process that is killed after so many seconds, if it is not done by then."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:  # the folder is there, from a child that was done in time
            os._exit(1)
        os._exit(0)
    end = time.perf_counter() + after
    while time.perf_counter() < end and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.002)
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def state_of(out: Path) -> str:
    """What lies at `out`; what is there must be whole."""
    if not out.exists():
        return "unfinished" if list(out.parent.glob(f".{out.name}.*.part")) else "nothing"
    assert lineage.verify(out) == []
    for file in out.glob("*.safetensors"):
        assert load_file(file)
    return "whole"


if __name__ == "__main__":
    main()
