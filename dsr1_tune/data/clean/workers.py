"""Chunks shared out to processes: on this machine, or by Ray on many.  What comes of each is left on disk."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from dsr1_tune.data.clean.chunks import Chunk, without_garbage_collection
from dsr1_tune.data.clean.row_store import Whereabouts, is_saved, read_outputs, save
from dsr1_tune.data.clean.scan import Scanner, ScanSettings
from dsr1_tune.data.dedup.minhash import Pairs, Verified, verify
from dsr1_tune.data.dedup.ngrams import Ints
from dsr1_tune.data.output import turns_of
from dsr1_tune.errors import RunError

Done = Callable[[Chunk], None]
MANY_PAIRS = 10_000
"""So many comparisons take longer than processes take to start."""
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Doubtful:
    """Pairs of rows to compare (P, 2), all their rows in ascending order, and where those stand."""

    pairs: Pairs
    rows: Ints
    whereabouts: Whereabouts
    similarity: float


class WorkerPool:
    """The processes that share the work: for the scans, and once more for the comparisons where they are many.

    Between the two the memory is the merging's. With one worker there are none: all is done in this process. Raises
    RunError where a process dies.
    """

    def __init__(self, settings: ScanSettings, folder: Path, num_workers: int, engine: str) -> None:
        self._settings, self._folder, self._engine = settings, folder, engine
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    @contextmanager
    def _processes(self) -> Iterator[None]:
        # Spawned, not forked: the parent may hold threads, and a fresh process is the same on every system.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self._num_workers, context, _start, (self._settings, self._folder))
        try:
            yield
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def scan_all(self, chunks: Iterable[Chunk], done: Done) -> list[str]:
        """Scan every chunk that is not yet on disk; returns each one's data file. `done` hears of every chunk."""
        files: list[str] = []
        todo = self._todo(chunks, files, done)
        if self._engine == "ray":
            _by_ray(todo, self._settings, self._folder, done)
        elif self._num_workers > 1:
            with self._processes():
                for chunk, _ in self._share_out(_scan, todo):
                    done(chunk)
        else:
            with without_garbage_collection():
                for chunk in todo:
                    save(self._scanner.scan(chunk), self._folder, chunk.number)
                    done(chunk)
        return files

    def compare_all(self, doubtful: Iterable[Doubtful], num_pairs: int) -> Verified:
        """Which of the pairs are near-duplicates."""
        if self._num_workers > 1 and num_pairs >= MANY_PAIRS:
            with self._processes():
                parts = [found for _, found in self._share_out(_compare, doubtful)]
        else:
            parts = [_verified(some, self._scanner) for some in doubtful]
        return Verified.together(parts)

    @cached_property
    def _scanner(self) -> Scanner:
        return Scanner(self._settings)

    def _todo(self, chunks: Iterable[Chunk], files: list[str], done: Done) -> Iterator[Chunk]:
        """The chunks that are still to be scanned; notes every chunk's file."""
        for chunk in chunks:
            files.append(str(chunk.source.path))
            if is_saved(self._folder, chunk.number):
                done(chunk)
            else:
                yield chunk

    def _share_out(self, task: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Results in the order of the tasks; few wait at a time, so that a file larger than memory is cut lazily."""
        assert self._pool
        waiting: deque[tuple[Task, Future[Result]]] = deque()
        try:
            for one in tasks:
                with _undisturbed():
                    waiting.append((one, self._pool.submit(task, one)))
                if len(waiting) > 2 * self._num_workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool:
            hint = (
                "it may have run out of memory: try --workers 1; a rerun goes on where this one stopped "
                '(in a script of your own, call it under `if __name__ == "__main__":`)'
            )
            raise RunError("a worker process died", hint=hint) from None


def _verified(doubtful: Doubtful, scanner: Scanner) -> Verified:
    outputs = read_outputs(doubtful.whereabouts)
    turns = [turns_of(output) for output in outputs]
    return verify(doubtful.pairs, doubtful.rows, turns, doubtful.similarity, scanner.boilerplate)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Processes that are started in here never see a Ctrl-C, not even while they import; the parent does, later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_scanner: Scanner
_folder: Path


def _start(settings: ScanSettings, folder: Path) -> None:
    """What a fresh worker process does first."""
    global _scanner, _folder
    # Ctrl-C reaches the whole group; the parent decides, and what is begun is finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _scanner, _folder = Scanner(settings), folder
    gc.disable()  # as in without_garbage_collection


def _scan(chunk: Chunk) -> None:
    save(_scanner.scan(chunk), _folder, chunk.number)


def _compare(doubtful: Doubtful) -> Verified:
    return _verified(doubtful, _scanner)


def _by_ray(chunks: Iterable[Chunk], settings: ScanSettings, folder: Path, done: Done) -> None:
    """Ray Data maps the same scan over the chunks; `folder` and the data files must be visible to every node."""
    try:
        import ray
    except ImportError:
        raise RunError("the engine ray is not installed", hint='pip install "dsr1-tune[ray]"') from None

    class ScanOnNode:
        """One scanner per Ray actor."""

        def __init__(self) -> None:
            self.scanner = Scanner(settings)

        def __call__(self, row: dict[str, Chunk]) -> dict[str, int]:
            chunk = row["chunk"]
            save(self.scanner.scan(chunk), folder, chunk.number)
            return {"number": chunk.number}

    todo = {chunk.number: chunk for chunk in chunks}
    if not todo:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    num_cpus = int(ray.cluster_resources().get("CPU", os.cpu_count() or 1))
    tasks = ray.data.from_items([{"chunk": chunk} for chunk in todo.values()])
    scanned = tasks.repartition(len(todo)).map(ScanOnNode, concurrency=(1, max(1, num_cpus)))
    for row in scanned.iter_rows():
        done(todo[row["number"]])
