"""Made-up rows, and `data clean` run over files of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import CleanRun, Data
from dsr1_tune.data.clean import chunks
from dsr1_tune.data.clean import run as clean

WORDS = [
    f"{a}{b}" for a in ("kar", "lo", "mi", "nu", "pe", "so", "ta", "vi") for b in ("ban", "dor", "fel", "gim", "hus")
]
HAN = "患者医生药物血糖饮食运动检查诊断症状治疗手术康复睡眠心脏肝肾肺胃骨皮肤眼耳鼻喉发热咳嗽疼痛"


def _sentence(rng: random.Random, num: int = 30) -> str:
    return " ".join(rng.choices(WORDS, k=num)).capitalize() + "."


def _chinese(rng: random.Random, num: int = 60) -> str:
    return "".join(rng.choices(HAN, k=num)) + "。"


def _rows(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Good rows, Chinese and English in turn, of which no two are alike."""
    rng = random.Random(seed)
    said = [(_sentence(rng, 8), _sentence(rng)) if n % 2 else (_chinese(rng, 12), _chinese(rng)) for n in range(num)]
    return [{"instruction": question, "output": answer} for question, answer in said]


def _write(path: Path, some: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), encoding="utf-8")
    return path


def _run(tmp_path: Path, *files: Path, name: str = "out", **settings: Any) -> tuple[Path, dict[str, Any]]:
    share, rules = settings.pop("eval_share", 0.1), settings.pop("rules", None)
    data = settings.pop("data", Data(files=files, eval_share=share, rules=rules))
    settings.setdefault("workers", 1)
    cleaned = clean.run(CleanRun(data=data, out=tmp_path / name, **settings))
    return cleaned.folder, cleaned.report


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def _messy(tmp_path: Path) -> list[Path]:
    """Files in several layouts, with duplicates across them."""
    some = _rows(400, seed=5)
    _write(tmp_path / "a.jsonl", [*some[:200], *some[50:60], {"bad": 1}])
    (tmp_path / "b.json").write_text(json.dumps(some[150:300], ensure_ascii=False, indent=1), encoding="utf-8")
    turns = [[{"from": "human", "value": r["instruction"]}, {"from": "gpt", "value": r["output"]}] for r in some[290:]]
    (tmp_path / "c.json").write_text(json.dumps([{"conversations": one} for one in turns]), encoding="utf-8")
    return [tmp_path / name for name in ("a.jsonl", "b.json", "c.json")]


def _digest(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def rows() -> Callable[..., Any]:
    """rows(300): good rows, of which no two are alike."""
    return _rows


@pytest.fixture
def write_lines() -> Callable[..., Any]:
    """write_lines(path, rows): a file of JSON lines."""
    return _write


@pytest.fixture
def run() -> Callable[..., Any]:
    """run(tmp_path, *files, **settings): the folder that `data clean` leaves, and its report."""
    return _run


@pytest.fixture
def lines() -> Callable[..., Any]:
    """lines(path): the rows of a file of JSON lines."""
    return _lines


@pytest.fixture
def messy() -> Callable[..., Any]:
    """messy(tmp_path): files in several layouts, with duplicates across them."""
    return _messy


@pytest.fixture
def digest() -> Callable[..., Any]:
    """digest(folder): the bytes of all its files."""
    return _digest


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every few rows, so that small files have many chunks."""
    original = chunks.cut
    monkeypatch.setattr(clean, "cut", lambda sources, mapping=None: original(sources, mapping, 2000))
