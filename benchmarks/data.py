"""Rows per CPU-second and peak memory of cleaning data: ours, data-juicer's, and the limit, a bare parse of the file.

Every contender is a command of its own and gets the same generated rows (data_rows.py). The labels say how many of the
near-duplicates and of the junk it found and how many clean rows it lost. CPU seconds count the command and all its
processes; memory is the highest sum of their proportional set sizes (shared pages counted once), looked up every 0.2 s.
Runs on Linux. With --repeats every contender runs so many times, in turn, and the medians are printed.

    python benchmarks/data.py                                              # 200,000 rows, ours and the limit
    python benchmarks/data.py --data-juicer VENV                           # data-juicer in the same go (20 minutes)
    python benchmarks/data.py --data-juicer VENV --only data-juicer --json dj.json
    python benchmarks/data.py --data-juicer-result dj.json --repeats 3     # its figures from that earlier run
    python benchmarks/data.py --rows 200000 2000000 --workers 2            # does memory grow with the rows?

VENV is a virtual environment with data-juicer: `python3.11 -m venv VENV`, `VENV/bin/pip install torch==2.13.0` (a
build for the CPU), then `VENV/bin/pip install py-data-juicer==1.6.1 aiohttp scipy`. A first run on a few rows, not
timed, lets it install what else it wants. It gets the rows with question, context and answer already joined to the one
text field it looks at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import data_rows
import orjson
import psutil
import yaml

SAMPLE_SECONDS = 0.2
NAMES = ("limit", "four rules", "general", "data-juicer")
FOUR_RULES = Path(__file__).resolve().parent / "packs" / "four_rules.yaml"
FOUR_RULES_RUN = ["--rules", str(FOUR_RULES), "--privacy", "off"]
FOUR_RULES_RUN += ["--set", "dedup.contradictions=false", "--set", "data.eval_share=0"]
"""The operations that data-juicer is asked for too, and no more."""
GENERAL_RUN = ["--rules", "general"]
"""All that `data clean` does where nothing else is said."""
PARSE = """
import sys, orjson
with open(sys.argv[1], "rb") as lines:
    for line in lines:
        orjson.loads(line)
"""
DATA_JUICER: dict[str, Any] = {
    "project_name": "benchmark",
    "np": 2,
    "text_keys": "text",
    "use_cache": False,
    "open_monitor": False,
    "process": [
        {"text_length_filter": {"min_len": 10, "max_len": data_rows.TOO_LONG}},
        {"character_repetition_filter": {"rep_len": 10, "max_ratio": 0.2}},
        {"special_characters_filter": {"max_ratio": 0.4}},
        {"alphanumeric_filter": {"min_ratio": 0.4}},
        {"document_deduplicator": {"lowercase": True, "ignore_non_character": True}},
        {
            "document_minhash_deduplicator": {
                "tokenization": "character",
                "window_size": 5,
                "lowercase": True,
                "ignore_pattern": r"\p{P}",
                "num_permutations": 128,
                "jaccard_threshold": 0.8,
            }
        },
    ],
}
"""Four rules, exact and near-duplicates. Thresholds are such that it loses next to no clean row for a rule."""


@dataclass(frozen=True)
class Rows:
    """A generated file, what became of it in numbers, and the groups of rows that say the same."""

    file: Path
    num_rows: int
    digest: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Contender:
    """A command that cleans a file: (file, output folder) → its arguments, and which rows it kept."""

    name: str
    workers: int
    command: Callable[[Path, Path], list[str]]
    kept: Callable[[Path], set[int]] | None = None

    @property
    def title(self) -> str:
        """How it is called in tables."""
        return self.name if self.kept is None else f"{self.name}, {self.workers} worker{'s' * (self.workers > 1)}"


@dataclass(frozen=True)
class Cost:
    """What a command used: seconds, and the highest memory of all its processes at one time, in MB.

    `private_mb` leaves out the pages of files, which the kernel can take back.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    private_mb: float


@dataclass(frozen=True)
class Score:
    """What a command found, by the labels: shares of the duplicates and of the junk, and clean rows lost."""

    kept: int
    near: float
    exact: float
    junk: float
    lost: int


@dataclass(frozen=True)
class Measure:
    """One run of a contender over one file."""

    name: str
    title: str
    workers: int
    rows: int
    digest: str
    cost: Cost
    score: Score | None


def main() -> None:
    """Measure what is asked for, print a table, and write the single runs as JSON."""
    args = arguments()
    measures = earlier(args.data_juicer_result) if args.data_juicer_result else []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for num_rows in args.rows:
            rows = generate(folder, num_rows, args.seed, args.texts)
            print(f"\n{num_rows:,} rows, {rows.file.stat().st_size / 1e6:.0f} MB, {rows.counts}\n", flush=True)
            contenders = line_up(args, folder)
            for _ in range(args.repeats):
                for contender in contenders:
                    measures.append(measure(contender, rows, folder))
                    print(f"{contender.title}: {measures[-1].cost}", file=sys.stderr, flush=True)
                    save(args.json, measures)
            print(table([one for one in measures if one.rows == num_rows and one.digest == rows.digest]))
            rows.file.unlink()
    print(*comparisons(measures, args.rows), sep="\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of ours")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--texts", type=Path, help="a folder of JSON files whose sentences the rows are made of")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="only these contenders")
    parser.add_argument("--data-juicer", type=Path, metavar="VENV", help="run data-juicer of this environment")
    parser.add_argument("--data-juicer-result", type=Path, metavar="FILE", help="or take an earlier run's figures")
    parser.add_argument("--folder", type=Path, help="where to put rows and results, which are removed at the end")
    parser.add_argument("--json", type=Path, default=Path("data-benchmark.json"), help="every single run")
    return parser.parse_args()


def line_up(args: argparse.Namespace, folder: Path) -> list[Contender]:
    """Who runs: the limit, ours with both packs and every number of workers, and data-juicer where it is given."""
    contenders = [Contender("limit", 1, lambda file, out: [sys.executable, "-c", PARSE, str(file)])]
    for num in args.workers:
        contenders.append(Contender("four rules", num, ours(num, FOUR_RULES_RUN), kept_by_us))
    for num in args.workers:
        contenders.append(Contender("general", num, ours(num, GENERAL_RUN), kept_by_us))
    if args.data_juicer:
        install(args.data_juicer, folder)
        contenders.append(Contender("data-juicer", DATA_JUICER["np"], data_juicer(args.data_juicer), kept_by_theirs))
    return [contender for contender in contenders if not args.only or contender.name in args.only]


def ours(workers: int, options: Sequence[str]) -> Callable[[Path, Path], list[str]]:
    """Our command line."""

    def command(file: Path, out: Path) -> list[str]:
        clean = [sys.executable, "-m", "dsr1_tune", "data", "clean", str(file), "--out", str(out / "clean")]
        return [*clean, "--workers", str(workers), *options]

    return command


def kept_by_us(out: Path) -> set[int]:
    """The rows in train.jsonl and eval.jsonl."""
    lines = (line for name in ("train.jsonl", "eval.jsonl") for line in (out / "clean" / name).open("rb"))
    return {orjson.loads(line)["source"]["index"] for line in lines}


def data_juicer(venv: Path) -> Callable[[Path, Path], list[str]]:
    """Data-juicer's command line; its input file, with one text a row, is written here, before the clock starts."""

    def command(file: Path, out: Path) -> list[str]:
        texts, config = out / "texts.jsonl", out / "config.yaml"
        with file.open("rb") as lines, texts.open("wb") as joined:
            for line in lines:
                row = orjson.loads(line)
                parts = (row["instruction"], row["input"], row["output"])
                joined.write(orjson.dumps({"id": row["id"], "text": "\n".join(filter(None, parts))}) + b"\n")
        paths = {"dataset_path": str(texts), "export_path": str(out / "kept" / "kept.jsonl")}
        config.write_text(yaml.safe_dump({**DATA_JUICER, **paths}))
        return [str(venv.resolve() / "bin" / "dj-process"), "--config", str(config)]

    return command


def kept_by_theirs(out: Path) -> set[int]:
    """The rows in data-juicer's export."""
    return {orjson.loads(line)["id"] for line in (out / "kept" / "kept.jsonl").open("rb")}


def install(venv: Path, folder: Path) -> None:
    """Let data-juicer clean a few rows: it installs at run time what its operations need."""
    measure(Contender("data-juicer", 2, data_juicer(venv), kept_by_theirs), generate(folder, 500, 0, None), folder)


def generate(folder: Path, num_rows: int, seed: int, texts: Path | None) -> Rows:
    """Write the rows and their labels."""
    file = folder / f"rows-{num_rows}.jsonl"
    counts = data_rows.write(file, num_rows, seed, texts)
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "blake2b").hexdigest()[:16]
    return Rows(file, num_rows, digest, counts)


def measure(contender: Contender, rows: Rows, folder: Path) -> Measure:
    """Run a contender once, in a folder of its own that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name)
        cost = run(contender.command(rows.file, out), out)
        score = scored(rows, contender.kept(out)) if contender.kept else None
    return Measure(contender.name, contender.title, contender.workers, rows.num_rows, rows.digest, cost, score)


def run(command: Sequence[str], out: Path) -> Cost:
    """Run a command to its end; what it says goes to a file, which is shown if it fails."""
    # Caches in the run's own folder, so that nobody finds there what an earlier run computed.
    env = {**os.environ, "HF_HOME": str(out / "cache"), "DATA_JUICER_CACHE_HOME": str(out / "cache")}
    log = out / "log.txt"
    peaks = [(0.0, 0.0)]
    ended = threading.Event()
    with log.open("wb") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=env, cwd=out)
        watcher = threading.Thread(target=watch, args=(process.pid, peaks, ended))
        watcher.start()
        # Of the command and of all its processes that it waited for.
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        ended.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nexit code {process.returncode}\n{log.read_text()[-4000:]}")
    peak, private = (max(column) for column in zip(*peaks, strict=True))
    # Too short for a look, or a peak between two looks: the kernel remembers the largest single process.
    peak = max(peak, used.ru_maxrss * 1024 / 1e6)
    return Cost(round(wall, 2), round(used.ru_utime + used.ru_stime, 2), round(peak, 1), round(private, 1))


def watch(pid: int, peaks: list[tuple[float, float]], ended: threading.Event) -> None:
    """Add up the memory of a process and those below it every now and then."""
    while not ended.wait(SAMPLE_SECONDS):
        peaks.append(memory(pid))


def memory(pid: int) -> tuple[float, float]:
    """MB in use by a process and those below it: with their parts of shared pages, and without the pages of files."""
    both = file = 0
    for process in (pid, *(child.pid for child in children(pid))):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        sizes = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
        both += sizes.get("Pss:", 0)
        file += sizes.get("Pss_File:", 0)
    return both * 1024 / 1e6, (both - file) * 1024 / 1e6


def children(pid: int) -> list[psutil.Process]:
    """All processes below one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def scored(rows: Rows, kept: set[int]) -> Score:
    """Compare what is kept with the labels.

    Of an original and its copies any one may stay: every further one that is gone was found, and where none is left a
    clean row was lost.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    kinds: dict[int, str] = {}
    others = set()
    for label in map(orjson.loads, data_rows.labels_of(rows.file).open("rb")):
        others.add(label["row"])
        if label["kind"] == "junk":
            kinds[label["row"]] = "junk"
        else:
            groups[label["of"]].append(label["row"])
            kinds[label["of"]] = label["kind"]
    found = dict.fromkeys(("near", "exact", "junk"), 0)
    lost = sum(row not in kept and row not in groups for row in range(rows.num_rows) if row not in others)
    for original, copies in groups.items():
        num_kept = sum(row in kept for row in (original, *copies))
        found[kinds[original]] += len(copies) - max(num_kept - 1, 0)
        lost += num_kept == 0
    found["junk"] = sum(kind == "junk" and row not in kept for row, kind in kinds.items())
    shares = {kind: round(found[kind] / max(rows.counts.get(kind, 0), 1), 4) for kind in found}
    return Score(len(kept), shares["near"], shares["exact"], shares["junk"], lost)


def earlier(file: Path) -> list[Measure]:
    """Data-juicer's runs out of a file that `--json` wrote."""
    runs = json.loads(file.read_text())["runs"]
    return [
        Measure(**{**one, "cost": Cost(**one["cost"]), "score": Score(**one["score"])})
        for one in runs
        if one["name"] == "data-juicer"
    ]


def save(file: Path, measures: Sequence[Measure]) -> None:
    """Every single run, and what it ran with."""
    about = {
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("dsr1-tune", "numpy", "orjson", "rensa")},
        "data_juicer": DATA_JUICER,
    }
    file.write_text(json.dumps({**about, "runs": [asdict(one) for one in measures]}, indent=1, ensure_ascii=False))


def table(measures: Sequence[Measure]) -> str:
    """A row a contender: medians, and ratios of rows per CPU-second."""
    runs: dict[str, list[Measure]] = defaultdict(list)
    for one in measures:
        runs[one.title].append(one)
    seconds = {title: middle(one.cost.cpu_s for one in same) for title, same in runs.items()}
    theirs = next((used for title, used in seconds.items() if title.startswith("data-juicer")), None)
    lines = [
        "| contender | rows / CPU-s | CPU s | wall s | peak MB | without files | near-duplicates found | exact | junk "
        "| clean rows lost | × data-juicer | share of the limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, same in runs.items():
        cost = [one.cost for one in same]
        used, score = seconds[title], same[0].score
        found = (
            f"{score.near:.1%} | {score.exact:.1%} | {score.junk:.1%} | {score.lost:,}" if score else "– | – | – | –"
        )
        lines.append(
            f"| {title} | {same[0].rows / used:,.0f} | {used:.1f} | {middle(one.wall_s for one in cost):.1f} "
            f"| {middle(one.peak_mb for one in cost):,.0f} | {middle(one.private_mb for one in cost):,.0f} | {found} "
            f"| {times(theirs, used)} | {times(seconds.get('limit'), used, '.1%')} |"
        )
    return "\n".join(lines)


def times(reference: float | None, used: float, how: str = ".1f") -> str:
    """How much faster than the reference, where there is one."""
    return "–" if reference is None else format(reference / used, how)


def comparisons(measures: Sequence[Measure], sizes: Sequence[int]) -> Iterator[str]:
    """What a second worker brings, and how memory grows with the rows."""
    runs: dict[tuple[str, int, int], list[Cost]] = defaultdict(list)
    for one in measures:
        if one.score:
            runs[one.name, one.rows, one.workers].append(one.cost)
    for (name, size, workers), alone in runs.items():
        two = runs.get((name, size, 2))
        if workers == 1 and two:
            # The runs of a round are neighbours in time: a noisy machine spoils their ratio least.
            ratio = middle(one.wall_s / other.wall_s for one, other in zip(alone, two, strict=False))
            yield f"{name}, {size:,} rows: two workers are {ratio:.2f} × as fast as one by the clock"
    for (name, size, workers), costs in runs.items():
        many = runs.get((name, max(sizes), workers))
        if size == min(sizes) < max(sizes) and many:
            ratio = middle(one.peak_mb for one in many) / middle(one.peak_mb for one in costs)
            own = middle(one.private_mb for one in many) / middle(one.private_mb for one in costs)
            yield (
                f"{name}, {workers} at work: {max(sizes):,} rows take {ratio:.2f} × the memory of {size:,} "
                f"({own:.2f} × without files)"
            )


def middle(values: Iterable[float]) -> float:
    """The median."""
    return statistics.median(values)


if __name__ == "__main__":
    main()
