"""Every family of mixtures that transformers has, through every command: what works, what is refused, what fails.

    python benchmarks/families.py --out families.json                 # all, two at a time: about an hour on 2 cores
    python benchmarks/families.py --families qwen3_moe jamba --commands lora merge --out few.json
    python benchmarks/families.py --table families.json               # docs/families.md and docs/families.zh.md

A tiny model with random weights is built of each family (tests/families.py), and each command runs on it in a forked
child of a process that has the libraries imported. What they wrote is looked at by benchmarks/family_checks.py, which
imports nothing of the package. Exit code 1 if a cell fails: a traceback, an exit code that is none of ours, a wrong
result, a refusal that does not name the family, or one that comes only after the weights were loaded.

A new version of transformers is one run away: families that it adds are built from the sizes that their configs name.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", COLUMNS="200", NO_COLOR="1")
PATIENCE = 300
"""Seconds that a command may take."""
WORKS, REFUSED, FAILED, NOT_TRIED = "works", "refused", "failed", "not tried"
SHORT = ("schedule.max_steps=3", "schedule.batch_size=4", "schedule.learning_rate=0.005", "samples=0")
ROLLOUT = ("rollout.max_new_tokens=6", "rollout.batch_size=4")
REWARDS = "layers: [{name: task, components: [{type: function, name: letters, call: 'own.py:letters'}]}]\n"
LETTERS = """\
def letters(question, answer, expected=None, row=None):
    return sum(character.isalpha() for character in answer) / max(len(answer), 1)
"""


@dataclass(frozen=True)
class Command:
    """One cell of the table: what is typed, and the cell whose result it needs."""

    words: tuple[str, ...]
    after: str | None = None
    settings: tuple[str, ...] = ()
    is_looked_at: bool = False
    """Whether the independent check has something to say of what it wrote."""
    stdin: str = ""

    @property
    def argv(self) -> list[str]:
        """With its settings."""
        return [*self.words, *(part for setting in self.settings for part in ("--set", setting))]


def _train(method: str, data: str = "rows.json", *more: str) -> Command:
    words = (method, "--data", data, "--model", "base", "--out", method)
    return Command(words, None, (*SHORT, *more), True)


def _merge(method: str) -> Command:
    return Command(("merge", method, "--out", f"{method}-merged"), method, (), True)


def _quantize(kind: str, *more: str) -> Command:
    words = ("quantize", "lora-merged", "--to", kind, "--out", kind, *more)
    return Command(words, "lora-merged", (), kind != "gguf")


COMMANDS = {
    "plan": Command(("plan", "--data", "rows.json", "--model", "base")),
    "experts": Command(("experts", "rows.json", "--model", "base", "--out", "experts")),
    "lora": _train("lora"),
    "qlora": _train("qlora"),
    "full": _train("full", "rows.json", "schedule.learning_rate=0.0005"),
    "esft": _train("esft", "rows.json", "schedule.learning_rate=0.0005"),
    "dpo": _train("dpo", "pairs.json"),
    "ppo": Command(
        ("ppo", "--data", "rows.json", "--model", "base", "--rewards", "rewards.yaml", "--out", "ppo"),
        None,
        (*SHORT, *ROLLOUT, "ppo.answers=4", "ppo.epochs=1", "ppo.minibatches=1"),
    ),
    "grpo": Command(
        ("grpo", "--data", "rows.json", "--model", "base", "--rewards", "rewards.yaml", "--out", "grpo"),
        None,
        (*SHORT, *ROLLOUT, "grpo.group=4"),
    ),
    "lora-merged": _merge("lora"),
    "qlora-merged": _merge("qlora"),
    "full-merged": _merge("full"),
    "esft-merged": _merge("esft"),
    "dpo-merged": _merge("dpo"),
    "nf4": _quantize("nf4", "--all"),
    "int8": _quantize("int8", "--all"),
    "w4a16": _quantize("w4a16"),
    "fp8": _quantize("fp8"),
    "gguf": _quantize("gguf", "--gguf", "bf16"),
    "compare": Command(("compare", "lora-merged", "nf4", "--data", "rows.json", "--out", "compared"), "nf4",
                       ("compare.max_rows=6", "compare.answers=0")),
    "convert-adapter": Command(("convert-adapter", "lora", "--out", "convert-adapter"), "lora", (), True),
    "convert-back": Command(("convert-adapter", "convert-adapter", "--to", "peft-fused", "--out", "convert-back"),
                            "convert-adapter", (), True),
    "chat": Command(("chat", "lora", "--max-new-tokens", "4"), "lora", (), False, "What helps?\n"),
    "check-serve": Command(("check-serve", "lora-merged"), "lora-merged"),
    "adapt": Command(
        ("adapt", "--data", "rows.json", "--model", "base", "--out", "adapted", "--to", "nf4"),
        None,
        (*SHORT, "gates.min_agreement=0", "gates.max_loss_increase=1000%"),
    ),
}  # fmt: skip
MAIN = ("plan", "lora", "qlora", "full", "esft", "dpo", "lora-merged", "full-merged", "esft-merged", "nf4", "int8",
        "w4a16", "fp8")  # fmt: skip


@dataclass
class Cell:
    """What came of one command on one family."""

    state: str
    said: str = ""
    """Why, where it does not work."""
    seconds: float = 0.0
    found: dict[str, Any] | None = None
    """What the independent check measured."""


def main() -> None:
    """Run what is asked for, or write the tables of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", help="without it all that this transformers has")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=[*COMMANDS, "main"])
    parser.add_argument("--out", type=Path, help="a JSON file of every cell")
    parser.add_argument("--keep", type=Path, help="a folder that the models are built and left in")
    parser.add_argument("--workers", type=int, default=2, help="families at a time")
    parser.add_argument("--table", type=Path, nargs="+", help="earlier runs' JSON files, to write the tables of")
    options = parser.parse_args()
    if options.table:
        import_module("benchmarks.families_table").write(
            [json.loads(file.read_text()) for file in options.table], ROOT / "docs"
        )
        return
    main_ones = MAIN if "main" in options.commands else ()
    wanted = [*main_ones, *(name for name in options.commands if name != "main")]
    _import()
    families = import_module("tests.families")
    names = options.families or families.names()
    if unknown := set(names) - set(families.names()):
        parser.error(f"transformers {_version('transformers')} has no mixtures {', '.join(sorted(unknown))}")
    results: dict[str, dict[str, Cell]] = {}

    def one(name: str) -> None:
        with _place(options.keep, name) as folder:
            results[name] = _family(name, folder, _with_needed(wanted))
        _say(name, results[name])

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(one, names))
    if options.out:
        tree = {name: {command: asdict(cell) for command, cell in results[name].items()} for name in names}
        versions = {package: _version(package) for package in ("transformers", "peft", "trl", "torch")}
        options.out.write_text(json.dumps({"versions": versions, "families": tree}, indent=1) + "\n")
    failed = sum(cell.state == FAILED for cells in results.values() for cell in cells.values())
    print(f"{len(names)} families, {len(wanted)} commands, {failed} cells failed")
    sys.exit(bool(failed))


def _import() -> None:
    """Once, so that no child has to."""
    for name in ("torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "dsr1_tune.cli"):
        import_module(name)
    for package in ("train", "align", "export", "adapt"):
        for file in sorted((ROOT / "dsr1_tune" / package).glob("*.py")):
            import_module(f"dsr1_tune.{package}.{file.stem}")
    import_module("torch").set_num_threads(1)
    gc.freeze()  # no child need look at what was imported, and runs collect garbage several times


def _version(package: str) -> str:
    return str(import_module(package).__version__)


def _with_needed(wanted: Any) -> list[str]:
    """The commands asked for and those whose results they need, in the order of the table."""
    needed = set(wanted)
    for name in reversed(COMMANDS):
        if name in needed and (before := COMMANDS[name].after):
            needed.add(before)
    return [name for name in COMMANDS if name in needed]


@contextmanager
def _place(keep: Path | None, name: str) -> Iterator[Path]:
    if keep:
        shutil.rmtree(keep / name, ignore_errors=True)
        (keep / name).mkdir(parents=True)
        yield (keep / name).resolve()
        return
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as scratch:
        yield Path(scratch)


def _say(name: str, cells: dict[str, Cell]) -> None:
    marks = {WORKS: ".", REFUSED: "R", FAILED: "X", NOT_TRIED: "-"}
    seconds = sum(cell.seconds for cell in cells.values())
    print(f"{name:20} {''.join(marks[cell.state] for cell in cells.values())} {seconds:5.0f} s", flush=True)
    for command, cell in cells.items():
        if cell.state in (REFUSED, FAILED):
            print(f"    {cell.state} {command}: {cell.said[-300:]}", flush=True)


# --- one family ------------------------------------------------------------------------------------------------------


def _family(name: str, folder: Path, wanted: list[str]) -> dict[str, Cell]:
    """Build the tiny model, run the commands on it and look at what they wrote."""
    answers = [f"Rest and water, for {days} days." for days in range(2, 26)]
    rows = [{"instruction": f"What helps with case {n}?", "output": answer} for n, answer in enumerate(answers)]
    pairs = [{"question": row["instruction"], "chosen": row["output"], "rejected": "Nothing."} for row in rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "rewards.yaml").write_text(REWARDS)
    (folder / "own.py").write_text(LETTERS)
    code, said, _ = _in_child(lambda: _build(folder / "base", name), folder, "")
    if code:
        return {command: Cell(FAILED, f"the tiny model could not be built: {said[-300:]}") for command in wanted}
    cells: dict[str, Cell] = {}
    for command in wanted:
        needed = COMMANDS[command].after
        if needed and cells[needed].state != WORKS:
            cells[command] = Cell(NOT_TRIED, f"needs {needed}")
        else:
            cells[command] = _run(COMMANDS[command], name, folder)
    if any(COMMANDS[command].is_looked_at and cells[command].state == WORKS for command in wanted):
        _look(folder, cells)
    return cells


def _build(place: Path, name: str) -> None:
    from tests.conftest import byte_tokenizer
    from tests.families import save_family

    save_family(place, byte_tokenizer(), name)


def _run(command: Command, family: str, folder: Path) -> Cell:
    code, said, seconds = _in_child(lambda: _command(command.argv), folder, command.stdin)
    if code == 0 or (command.words[0] == "check-serve" and code in (1, 3) and "Traceback" not in said):
        return Cell(WORKS, "", seconds)
    told = _error_in(said)
    if code != 2 or not told:
        return Cell(FAILED, f"exit code {code}: {said.strip()[-400:]}", seconds)
    if not _is_named(family, told):
        return Cell(FAILED, f"a refusal that does not name the family: {told}", seconds)
    if re.search(r"^Model$", said, re.MULTILINE):  # the heading under which weights are loaded
        return Cell(FAILED, f"refused only after the weights were loaded: {told}", seconds)
    return Cell(REFUSED, told, seconds)


def _error_in(said: str) -> str:
    """What the command said of its error, in one line."""
    found = re.search(r"^(?:error|Error): (.*)", said, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found and "Traceback" not in said else ""


def _is_named(family: str, told: str) -> bool:
    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    return plain(family.removesuffix("_text")) in plain(told)


def _look(folder: Path, cells: dict[str, Cell]) -> None:
    """Have the independent check look at the results; what is wrong has failed."""
    program = [sys.executable, str(ROOT / "benchmarks" / "family_checks.py"), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(program)}:\n{done.stderr[-3000:]}")
    for command, found in json.loads(done.stdout.splitlines()[-1]).items():
        if command in cells and cells[command].state == WORKS:
            cells[command].found = found
            if not found["ok"]:
                cells[command].state, cells[command].said = FAILED, f"a wrong result: {found['why']}"


# --- forked children -------------------------------------------------------------------------------------------------


def _command(argv: list[str]) -> None:
    sys.argv = ["dsr1-tune", *argv]
    import_module("dsr1_tune.__main__").main()


def _in_child(do: Callable[[], None], folder: Path, stdin: str) -> tuple[int, str, float]:
    """The exit code, what was printed and the seconds that it took, in a forked child that works in `folder`."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as typed:
        typed.write(stdin.encode())
        typed.seek(0)
        if not (child := os.fork()):
            _be_child(do, folder, typed.fileno(), printed.fileno())
        code = _wait(child)
        printed.seek(0)
        said = printed.read().decode(errors="replace")
    return code, said, time.monotonic() - start


def _be_child(do: Callable[[], None], folder: Path, typed: int, printed: int) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for source, target in ((typed, 0), (printed, 1), (printed, 2)):
            os.dup2(source, target)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        do()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


if __name__ == "__main__":
    main()
