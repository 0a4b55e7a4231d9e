"""Merge in processes that are killed at random moments; test_merge_killed.py runs it, as forks want no threads."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.export import lineage, merge


def main() -> None:
    """Ten kills; says how many found nothing written yet, something unfinished, and a whole model."""
    run, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    quiet = Console(file=io.StringIO())
    start = time.perf_counter()
    merge.run(run, scratch / "whole", console=quiet)
    usual = time.perf_counter() - start
    drawn = random.Random(0)
    seen = {"nothing": 0, "unfinished": 0, "whole": 0}
    out = scratch / "merged"
    for _ in range(10):
        killed(lambda: merge.run(run, out, console=quiet), drawn.random() * usual)
        seen[state_of(out)] += 1
        if out.exists():
            shutil.rmtree(out)
    merge.run(run, out, console=quiet)
    assert state_of(out) == "whole"
    assert not list(scratch.glob(".merged.*")), "what killed attempts left is cleared away"
    print(seen)


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
