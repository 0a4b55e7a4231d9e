"""Runs that start, go on and are killed two at a time: never two writers in a folder, never a lost adapter.

    python benchmarks/run_pairs.py --pairs 50

Every run is the real command line on a tiny model, in a process that is forked from one that has imported everything
already, so that two begin within a few milliseconds. A pair is one of: two new runs without --out; two with the same
--out; --resume of a run that is alive; a run killed with SIGKILL at a random moment and gone on with by two at once.
After each, every folder must hold one whole run: its steps in order, none twice, and the weights that its manifest
names. Prints what happened by kind, and exits 1 at the first fault.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import golden

METHODS = ("lora", "qlora", "full", "esft", "reward", "dpo", "kto", "ppo", "grpo")
PATIENCE = 300.0


def main() -> None:
    """Try so many pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        golden.write_material(Path(), None, no_eval=False)
        golden.write_models(Path())
        _import_everything()
        chance = random.Random(options.seed)
        kinds: list[Callable[[str, random.Random], str]] = [two_new, two_with_one_out, resume_alive, killed]
        counts: Counter[str] = Counter()
        for number in range(options.pairs):
            kind, method = kinds[number % len(kinds)], chance.choice(options.methods)
            outcome = kind(method, chance)
            print(f"{number + 1:3} {kind.__name__} {method}: {outcome}", flush=True)
            counts[f"{kind.__name__}: {outcome}"] += 1
    for outcome, count in sorted(counts.items()):
        print(f"{count:3} × {outcome}")


def _import_everything() -> None:
    import torch

    from dsr1_tune.align import dpo, grpo, kto, ppo, reward  # noqa: F401
    from dsr1_tune.train import esft, full, lora, qlora  # noqa: F401

    torch.set_num_threads(1)


@dataclass(frozen=True)
class Child:
    """A command that was started."""

    pid: int
    said: Path

    def wait(self) -> int:
        """Its exit code, -9 if it was killed."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def text(self) -> str:
        """What it printed."""
        return self.said.read_text()


def start(*words: str | Path) -> Child:
    """`dsr1-tune WORDS` in a process of its own."""
    said = Path(tempfile.mkstemp(dir=".", suffix=".txt")[1])
    if pid := os.fork():
        return Child(pid, said)
    code = 70
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["dsr1-tune", *map(str, words)]
        from dsr1_tune.cli import main as command

        command()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def settings(method: str) -> tuple[str, ...]:
    """The options of a run of so many steps that another can meet it."""
    return (method, "--config", f"configs/{method}.yaml", "--set", "schedule.save_steps=2")


# --- kinds of pairs ---------------------------------------------------------------------------------------------------


def two_new(method: str, chance: random.Random) -> str:
    """Two folders, each with its own learning rate."""
    before = set(Path("runs").glob("*"))
    rates = ("0.002", "0.0003")
    ends = both(*(start(*settings(method), "--set", f"schedule.learning_rate={rate}") for rate in rates))
    made = sorted(set(Path("runs").glob("*")) - before)
    expect([code for code, _ in ends] == [0, 0] and len(made) == 2, ends, f"two runs in {made}")
    found = {
        json.loads((check(run) / "manifest.json").read_text())["config"]["schedule"]["learning_rate"] for run in made
    }
    expect(found == {0.002, 0.0003}, ends, f"learning rates {found}")
    return "two folders"


def two_with_one_out(method: str, chance: random.Random) -> str:
    """One goes on, the other is refused and names it."""
    out = fresh("out")
    first = start(*settings(method), "--out", out)
    time.sleep(chance.choice((0, 0, 0.003, 0.05, 0.5)))
    ends = both(first, start(*settings(method), "--out", out))
    return one_of_two(ends, out)


def resume_alive(method: str, chance: random.Random) -> str:
    """--resume of a run that is alive is refused, and names it; the run is none the worse for it."""
    out = fresh("out")
    first = start(*settings(method), "--out", out)
    deadline = time.monotonic() + PATIENCE
    while not (out / "manifest.json").exists():
        expect(time.monotonic() < deadline, [(0, first.text)], "no manifest")
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.5))
    second = start(method, "--resume", out)
    return one_of_two(both(first, second), out)


def killed(method: str, chance: random.Random) -> str:
    """Killed at any moment, and gone on with by two at once."""
    out = fresh("out")
    first = start(*settings(method), "--out", out)
    time.sleep(chance.uniform(0, 3.0))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    if (out / "manifest.json").exists():
        if json.loads((out / "manifest.json").read_text())["status"] == "finished":
            check(out)
            return "was finished before"
        again = [start(method, "--resume", out) for _ in range(2)]
        return f"resumed, {one_of_two(both(*again), out)}"
    again = [start(*settings(method), "--out", out) for _ in range(2)]
    return f"begun anew, {one_of_two(both(*again), out)}"


# --- what must be so --------------------------------------------------------------------------------------------------

End = tuple[int, str]


def fresh(name: str) -> Path:
    """A path where nothing is."""
    return Path(tempfile.mkdtemp(dir=".")) / name


def both(*children: Child) -> list[End]:
    """Exit codes and what was said, each with the other's process number in front."""
    codes = [child.wait() for child in children]
    pids = [child.pid for child in children]
    return [(code, f"[{other}] {one.text}") for code, one, other in zip(codes, children, reversed(pids), strict=True)]


def one_of_two(ends: list[End], out: Path) -> str:
    """One run is whole; the other has ended with 2, and named the first where it met it."""
    expect(sorted(code for code, _ in ends) == [0, 2], ends, "exit codes are not 0 and 2")
    refused = next(said for code, said in ends if code == 2)
    check(out)
    other = re.match(r"\[(\d+)\]", refused)
    if re.search(r"a run is at work there: process", refused):
        expect(bool(other and f"process {other[1]} on " in refused), ends, "the other is not named")
        return "refused while the other ran"
    expect("already holds a run (finished)" in refused or "is finished" in refused, ends, "refused for another reason")
    return "refused when the other was through"


def check(run: Path) -> Path:
    """The folder, if it holds one whole run."""
    from dsr1_tune.runs.folder import RunFolder

    manifest = json.loads((run / "manifest.json").read_text())
    said = [(0, str(sorted(path.name for path in run.iterdir())))]
    expect(manifest["status"] == "finished", said, f"status {manifest['status']}")
    expect(RunFolder(run).changed_outputs() == [], said, "other weights than the manifest names")
    steps = [json.loads(line)["step"] for line in (run / "train_log.jsonl").read_text().splitlines()]
    expect(steps == list(range(1, manifest["metrics"]["num_steps"] + 1)), said, f"steps {steps}")
    expect(not (run / ".lock").exists(), said, "the lock is left")
    return run


def expect(holds: bool, ends: list[End], otherwise: str) -> None:
    """Say what went wrong, and leave."""
    if not holds:
        for code, said in ends:
            print(f"--- exit code {code}\n{said[-4000:]}")
        sys.exit(f"fault: {otherwise}")


if __name__ == "__main__":
    main()
