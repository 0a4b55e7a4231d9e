"""Data files on the fly, and the real ones where they lie next to the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REAL = Path(__file__).parents[2].parent / "shared" / "data"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("a.json", rows) dumps; write("a.csv", "text") and write("a.bin", b"bytes") write as they are."""

    def write_(name: str, content: Any, encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
            return path
        if name.endswith((".jsonl", ".jsonl.gz")) and not isinstance(content, str):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        elif not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False, indent=1)
        path.write_bytes(content.encode(encoding))
        return path

    return write_


@pytest.fixture
def real() -> Callable[[str], Path]:
    """A real public data file; the test is skipped where it is not there."""

    def real_(name: str) -> Path:
        path = REAL / name
        if not path.exists():
            pytest.skip(f"no {name} next to the repository")
        return path

    return real_
