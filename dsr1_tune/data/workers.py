"""Portions shared out to processes: on this machine, or by Ray on many.  What comes of each is left on disk."""

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
from pathlib import Path

from dsr1_tune.data.portions import Portion
from dsr1_tune.data.scan import Scanner, Settings
from dsr1_tune.data.spill import is_saved, save
from dsr1_tune.errors import RunError

Done = Callable[[Portion], None]


def scan_all(
    portions: Iterable[Portion], settings: Settings, folder: Path, num_workers: int, engine: str, done: Done
) -> list[str]:
    """Scan every portion that is not yet in `folder`; returns each one's data file. `done` hears of every portion.

    Raises RunError where a process dies.
    """
    files: list[str] = []
    numbered = _numbered(portions, folder, files, done)
    if engine == "ray":
        _by_ray(numbered, settings, folder, done)
    elif num_workers == 1:
        scanner = Scanner(settings)
        with _without_cycles():
            for number, portion in numbered:
                save(scanner.scan(portion), folder, number)
                done(portion)
    else:
        _by_processes(numbered, settings, folder, num_workers, done)
    return files


def _numbered(portions: Iterable[Portion], folder: Path, files: list[str], done: Done) -> Iterable[tuple[int, Portion]]:
    """The portions that are still to be scanned, with their numbers; notes every portion's file."""
    for number, portion in enumerate(portions):
        files.append(str(portion.source.path))
        if is_saved(folder, number):
            done(portion)
        else:
            yield number, portion


def _by_processes(
    numbered: Iterable[tuple[int, Portion]], settings: Settings, folder: Path, num_workers: int, done: Done
) -> None:
    """A pool of processes; few portions wait at a time, so that a file larger than the memory can be cut lazily."""
    # Spawned, not forked: the parent may hold threads, and a fresh process is the same on every system.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[Portion, Future[None]]] = deque()
    pool = ProcessPoolExecutor(num_workers, context, _start, (settings, folder))
    try:
        for number, portion in numbered:
            waiting.append((portion, pool.submit(_scan, number, portion)))
            if len(waiting) > 2 * num_workers:
                _finish(*waiting.popleft(), done)
        while waiting:
            _finish(*waiting.popleft(), done)
    except BrokenProcessPool:
        hint = (
            "it may have run out of memory: try --workers 1; a rerun goes on where this one stopped "
            '(in a script of your own, call it under `if __name__ == "__main__":`)'
        )
        raise RunError("a worker process died", hint=hint) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_cycles() -> Iterator[None]:
    """Rows refer to nothing that refers to them: looking for cycles among a hundred thousand objects is in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _finish(portion: Portion, future: Future[None], done: Done) -> None:
    future.result()
    done(portion)


_scanner: Scanner
_folder: Path


def _start(settings: Settings, folder: Path) -> None:
    """What a fresh worker process does first."""
    global _scanner, _folder
    # Ctrl-C reaches the whole group; the parent decides, and what is begun is finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _scanner, _folder = Scanner(settings), folder
    gc.disable()  # as in _without_cycles


def _scan(number: int, portion: Portion) -> None:
    save(_scanner.scan(portion), _folder, number)


def _by_ray(numbered: Iterable[tuple[int, Portion]], settings: Settings, folder: Path, done: Done) -> None:
    """Ray Data maps the same scan over the portions; `folder` and the data files must be visible to every node."""
    try:
        import ray
    except ImportError:
        raise RunError("the engine ray is not installed", hint='pip install "dsr1-tune[ray]"') from None

    class ScanOnNode:
        """One scanner per Ray actor."""

        def __init__(self) -> None:
            self.scanner = Scanner(settings)

        def __call__(self, row: dict[str, object]) -> dict[str, object]:
            number, portion = row["number"], row["portion"]
            assert isinstance(number, int) and isinstance(portion, Portion)
            save(self.scanner.scan(portion), folder, number)
            return {"number": number}

    todo = list(numbered)
    if not todo:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    portions = dict(todo)
    num_cpus = int(ray.cluster_resources().get("CPU", os.cpu_count() or 1))
    tasks = ray.data.from_items([{"number": number, "portion": portion} for number, portion in todo])
    scanned = tasks.repartition(len(todo)).map(ScanOnNode, concurrency=(1, max(1, num_cpus)))
    for row in scanned.iter_rows():
        done(portions[row["number"]])
