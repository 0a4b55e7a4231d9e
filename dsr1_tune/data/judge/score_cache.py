"""A model's scores, cached on disk by the content of what was scored, and safe against kill -9."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson

Pair = tuple[str, str]


class Memo:
    """A file with a line for every pair that one model has scored; a line that was cut off is scored again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[float | None]] = {}
        self._ends: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            with suppress(orjson.JSONDecodeError):
                match orjson.loads(line):
                    case {"pair": pair, "scores": scores}:
                        self._known[pair] = scores
                    case {"end": work, "rows": rows}:
                        self._ends[work] = rows
        self._file = path.open("ab")
        self._file.write(b"\n")  # so that a line that was cut off ends here
        self.num_new = 0

    def scores(self, pairs: Sequence[Pair], compute: Callable[[list[Pair]], np.ndarray]) -> np.ndarray:
        """[N, S] scores of the pairs; `compute` is asked for those that are not known yet."""
        keys = [digest(*pair) for pair in pairs]
        new = list({key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._known}.items())
        if new:
            # Rounded, so that the company in which a pair is computed leaves no trace.
            found = np.round(compute([pair for _, pair in new]).astype(float), 4)
            for (key, _), scores in zip(new, found.tolist(), strict=True):
                self._known[key] = scores = [None if score != score else score for score in scores]
                self._append({"pair": key, "scores": scores})
            self._file.flush()
        self.num_new += len(new)
        return np.array([self._known[key] for key in keys], dtype=float)

    def end(self, work: str) -> int | None:
        """After how many rows this work ended for want of time when it was done before."""
        return self._ends.get(work)

    def set_end(self, work: str, rows: int) -> None:
        """Remember how far this work came, so that doing it again gives the same."""
        if self._ends.get(work) != rows:
            self._ends[work] = rows
            self._append({"end": work, "rows": rows})
            self._file.flush()

    def __enter__(self) -> Memo:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(entry) + b"\n")


def digest(*texts: str) -> str:
    """A short name for these texts."""
    found = hashlib.blake2b(digest_size=12)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(b"%d " % len(data) + data)
    return found.hexdigest()
