"""`data clean`: data files → rows worth learning from, held-out rows, rejected rows and a report of it all.

The story: cut the files into chunks; scan each (read, rules, personal data, contamination) in one of some worker
processes; merge duplicates; let a small model judge what is left; split; write. Every row ends in exactly one place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from dsr1_tune import __version__
from dsr1_tune.atomic import atomic_folder
from dsr1_tune.config import CleanRun
from dsr1_tune.data.clean.chunks import cut, open_sources, read_chunk
from dsr1_tune.data.clean.cleaned_rows import CleanedRows, RowStatus, write_groups, write_rows
from dsr1_tune.data.clean.duplicates import Copies, find_copies
from dsr1_tune.data.clean.page import render
from dsr1_tune.data.clean.row_store import RowStore
from dsr1_tune.data.clean.scan import ScanSettings
from dsr1_tune.data.clean.sections import report_of, settings_of
from dsr1_tune.data.clean.workers import WorkerPool
from dsr1_tune.data.dedup import ngrams
from dsr1_tune.data.dedup.contamination import Evaluation
from dsr1_tune.data.dedup.languages import LANGUAGES
from dsr1_tune.data.dedup.minhash import LEARNED_ROWS
from dsr1_tune.data.dedup.ngrams import Hashes, Ints
from dsr1_tune.data.dedup.row_hashes import learn_boilerplate
from dsr1_tune.data.inspect.stats import CountTokens
from dsr1_tune.data.output import answer_of, question_of
from dsr1_tune.data.privacy.guard import known_kinds
from dsr1_tune.data.read.files import Source
from dsr1_tune.data.read.read import check_columns
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.row_check import leaves_out_full_stops, pack_of
from dsr1_tune.data.rules.packs import Pack
from dsr1_tune.data.split import Stratum, count_strata, hold_out, strata_of
from dsr1_tune.errors import ConfigError, DataError, RunError
from dsr1_tune.lock import locked
from dsr1_tune.text.amount import amount
from dsr1_tune.text.composed import composed

DEFAULT_RULES = "general"
LEARNED_CHUNKS = 4
"""So many chunks at the start of each file, LEARNED_ROWS rows at most, are learned from."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cleaned:
    """A finished folder and what its report.json says."""

    folder: Path
    report: dict[str, Any]


def run(config: CleanRun, say: Say = lambda text: None, count_tokens: CountTokens | None = None) -> Cleaned:
    """Clean the files as `config` says and leave a folder of results; go on where a killed run stopped.

    `count_tokens` measures texts with the tokenizer of `config.base`. Raises TuneError for what the user can mend.
    """
    known_kinds(config.privacy.kinds)
    pack = pack_of(config.data, DEFAULT_RULES)
    assert pack
    sources = open_sources(config.data.files, config.data.map)
    if config.dedup.against:
        open_sources(config.dedup.against)
    out = vacant(config)
    with _workplace(config, pack, out) as work:
        say("reading")
        chunks = cut(sources, config.data.map)
        settings = _learn(config, pack, sources)
        pool = WorkerPool(settings, work, num_workers(config), config.engine)
        num_done = count(1)
        files = pool.scan_all(chunks, lambda of: say(f"reading {of.source.path}: {next(num_done)} chunks done"))
        store = RowStore(work, files)
        check_columns(config.data.map, {column for block in store.blocks for column in block.counts.columns})
        say(f"looking for duplicates among {amount(store.num_rows, 'row')}")
        times = _times(config, store)
        copies = find_copies(store, config.dedup, times > 0, pool, say)
        statuses = _fates(store, copies, times)
        judged, judge_section = _judge(config, store, statuses, out, say)
        cleaned, strata = _split(config, store, copies, statuses, times, judged)
        say("writing")
        with atomic_folder(out) as folder:
            write_rows(cleaned, folder)
            groups = write_groups(cleaned, folder / "duplicates.jsonl")
            report = report_of(config, sources, cleaned, strata, groups, judge_section, settings, count_tokens)
            (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
            (folder / "report.html").write_text(render(report, _language(config, report)), encoding="utf-8")
    return Cleaned(out, report)


def vacant(config: CleanRun) -> Path:
    """The folder to write; RunError where it holds something else than an earlier result."""
    first = config.data.files[0].name.removesuffix(".gz")
    given = config.out or Path("clean") / Path(first).stem
    # A link stays one: what it leads to is written.
    out = given.resolve() if given.is_absolute() else Path(os.path.relpath(given.resolve()))
    if given.resolve() == Path.cwd():
        raise RunError(f"{given}: is the folder you are in", hint="name a new one with --out")
    if out.is_file():
        raise RunError(f"{out}: is a file", hint="name a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "report.json").exists():
        raise RunError(f"{out}: is in use: it holds no earlier result of this command", hint="name another --out")
    inside = [str(file) for file in _files(config) if out.resolve() in file.resolve().parents]
    if inside:
        raise RunError(f"{out}: holds {inside[0]}, and would be replaced", hint="name another --out")
    return out


def num_workers(config: CleanRun) -> int:
    """How many processes share the work."""
    if config.workers:
        return config.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _workplace(config: CleanRun, pack: Pack, out: Path) -> Iterator[Path]:
    """The folder beside `out` in which the chunks' outcomes wait; what a killed run left there is used again.

    It is removed at the end, and kept where the run is stopped. Only one run at a time may write to a folder.
    """
    work = out.with_name(f".{out.name}.work")
    mark, present = work / "mark.json", _mark(config, pack)
    with locked(out.with_name(f".{out.name}.lock"), f"{out}: another run is writing there"):
        try:
            if not (mark.exists() and mark.read_bytes() == present):
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
                mark.write_bytes(present)
            yield work
            shutil.rmtree(work, ignore_errors=True)
        except (DataError, ConfigError):
            # What the user has to mend changes the files or the settings, and what was done for the old ones is void.
            shutil.rmtree(work, ignore_errors=True)
            raise


def _mark(config: CleanRun, pack: Pack) -> bytes:
    """Everything on which the chunks' outcomes depend; the pack with those it extends and the words of its lists."""
    calls = [Path(custom.call.rpartition(":")[0]) for custom in pack.custom]
    files = [*_files(config), *(path for path in calls if path.is_file())]
    return orjson.dumps(
        {
            "version": __version__,
            "settings": settings_of(config),
            "pack": pack.model_dump(mode="json"),
            "files": [_identity(path) for path in files],
        }
    )


def _files(config: CleanRun) -> list[Path]:
    rules = [Path(config.data.rules)] if config.data.rules and Path(config.data.rules).is_file() else []
    return [*config.data.files, *config.dedup.against, *rules]


def _identity(path: Path) -> list[Any]:
    """What changes when a file does."""
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _learn(config: CleanRun, pack: Pack, sources: Sequence[Source]) -> ScanSettings:
    """What the scan needs to know beforehand: the evaluation questions, and which preambles rows share."""
    dedup = config.dedup
    evaluation = Evaluation.of(dedup.against, config.data.map, dedup.containment) if dedup.against else None
    looks_near = dedup.near or config.data.eval_share > 0
    parts: list[Hashes] = []
    unended = set()
    for source in sources:
        rows = _first_rows(source, config)
        if looks_near:
            parts.append(learn_boilerplate(rows))
        if leaves_out_full_stops(rows, pack):
            unended.add(str(source.path))
    action = config.privacy.action or pack.privacy or "count"
    boilerplate: Hashes = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))
    return ScanSettings(pack, action, config.privacy.kinds, looks_near, boilerplate, frozenset(unended), evaluation)


def _first_rows(source: Source, config: CleanRun) -> list[Row]:
    """The good rows at the beginning of a file, some thousand or some megabytes."""
    rows: list[Row] = []
    for number, chunk in enumerate(cut([source], config.data.map)):
        found, _ = read_chunk(chunk)
        rows += [row for row in found if not isinstance(row, Drop)]
        if len(rows) >= LEARNED_ROWS or number >= LEARNED_CHUNKS:
            break
    return rows[:LEARNED_ROWS]


def _times(config: CleanRun, store: RowStore) -> np.ndarray:
    """How often each row (N) is written: its file's weight, what is left of it beyond whole times by lot."""
    weights = np.concatenate([np.full(b.num_rows, config.data.weight(b.file)) for b in store.blocks] or [np.zeros(0)])
    whole, part = np.divmod(weights, 1)
    # Another lot than the one that holds rows out.
    salt = ngrams.mixed(ngrams.mixed(np.array([config.seed], np.uint64)) ^ np.uint64(0x5DEECE66D))
    draw = ngrams.mixed(np.arange(store.num_rows).astype(np.uint64) + salt)
    return (whole + (draw.astype(np.float64) / 2**64 < part)).astype(np.uint8)


def _fates(store: RowStore, copies: Copies, times: np.ndarray) -> np.ndarray:
    """Each row's status (N) as far as the duplicates and the weights decide it."""
    everyone = np.arange(store.num_rows)
    statuses = np.where(times > 0, RowStatus.TRAIN, RowStatus.NOT_DRAWN).astype(np.uint8)
    statuses[copies.stands_for != everyone] = RowStatus.NEAR
    statuses[list(copies.contradicted)] = RowStatus.CONTRADICTED
    statuses[copies.same_as != everyone] = RowStatus.EXACT
    return statuses


@dataclass(frozen=True)
class _Pairs:
    """Question and answer of the rows that are left, read when asked for."""

    store: RowStore
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, indices: Sequence[int]) -> list[tuple[str, str]]:
        """The texts of these rows, in the order asked for; composed, as a model knows them."""
        asked = self.rows[np.asarray(indices, np.int64)]
        needed, places = np.unique(asked, return_inverse=True)
        outputs = self.store.outputs(needed)
        return [(composed(question_of(outputs[n])), composed(answer_of(outputs[n]))) for n in places.tolist()]

    def languages(self) -> list[str]:
        """The language of each row."""
        return [LANGUAGES[code] for code in self.store.languages[self.rows].tolist()]


def _judge(
    config: CleanRun, store: RowStore, statuses: np.ndarray, out: Path, say: Say
) -> tuple[dict[int, Drop], dict[str, Any] | None]:
    """What a small model objects to, where it is asked; marks those rows in `statuses`."""
    if not config.judge.ask:
        return {}, None
    from dsr1_tune.data.judge.judge import judge

    rows = np.flatnonzero((statuses == RowStatus.TRAIN) & (store.kinds == 0))
    cache = out.parent / ".judge-cache"
    judgement = judge(_Pairs(store, rows), config.judge, cache, config.seed, say)
    drops = {int(rows[number]): drop for number, drop in judgement.drops.items()}
    statuses[list(drops)] = RowStatus.JUDGED
    return drops, {**judgement.facts, "num_dropped": len(drops)}


def _split(
    config: CleanRun, store: RowStore, copies: Copies, statuses: np.ndarray, times: np.ndarray, judged: dict[int, Drop]
) -> tuple[CleanedRows, list[Stratum]]:
    kept = np.flatnonzero(statuses == RowStatus.TRAIN)
    files = list(dict.fromkeys(block.file for block in store.blocks))
    of_block = [files.index(block.file) for block in store.blocks]
    by_row = np.repeat(np.array(of_block, np.int64), [block.num_rows for block in store.blocks])
    num_chars = store.prints.question_chars + store.prints.answer_chars
    names, strata = strata_of(files, by_row[kept], store.languages[kept], num_chars[kept])
    held_out = hold_out(strata, copies.alike[kept], config.data.eval_share, config.seed)
    statuses[kept[held_out]] = RowStatus.EVAL
    cleaned = CleanedRows(store, statuses, times, copies, judged)
    return cleaned, count_strata(names, strata, ~held_out, held_out)


def _language(config: CleanRun, report: dict[str, Any]) -> Literal["en", "zh"]:
    if config.language != "auto":
        return config.language
    return "zh" if next(iter(report["languages"]), "") == "zh" else "en"
