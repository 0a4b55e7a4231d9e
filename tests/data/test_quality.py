"""A small edition of benchmarks/data_quality.py: the same faults and the same fine rows, in fewer rows."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmarks are not next to the tests")

SMALL = {"v1_sft": 12, "alpaca_en": 60, "alpaca_zh": 80, "cmtmedqa": 40, "example": 0}
SPARED = {"v1_sft": 40, "alpaca_en": 130, "alpaca_zh": 190, "cmtmedqa": 60, "example": 60}


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    """benchmarks/data_quality.py and the modules beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import data_quality

        yield data_quality
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def own(quality: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Our own texts: examples/medical, spoilt, and the rows that look odd and are fine."""
    rows = quality.labelled_set(Path("nowhere"), each=6, drawn={"example": 30}, spared={"example": 999})
    return quality.evaluate(rows, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def public(quality: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Rows of public files, where they lie next to the repository."""
    real = Path(__file__).parents[2].parent / "shared" / "data"
    if not (real / "LLaMA-Factory" / "alpaca_zh_demo.json").exists():
        pytest.skip("no public files next to the repository")
    rows = quality.labelled_set(real, each=6, drawn=SMALL, spared=SPARED)
    return quality.evaluate(rows, tmp_path_factory.mktemp("public"))


@pytest.fixture(params=["own", "public"])
def judged(request: pytest.FixtureRequest) -> list[Any]:
    """What became of each labelled row, of our own texts and of public ones."""
    return request.getfixturevalue(request.param)


def test_the_set_is_the_same_for_a_seed(quality: ModuleType) -> None:
    once, again, other = (
        quality.labelled_set(Path("nowhere"), seed, 2, {"example": 5}, {"example": 60}) for seed in (3, 3, 4)
    )
    assert once == again
    assert once != other


def test_faults_are_found(quality: ModuleType, judged: list[Any]) -> None:
    ones = [
        one for one in judged if one.row.is_faulty and one.row.kind not in quality.COPIES and _has_floor(quality, one)
    ]
    missed = [one for one in ones if not one.is_found]
    assert len({one.row.kind for one in ones}) >= 15
    assert len(missed) <= (1 - quality.FOUND_FLOOR) * len(ones), _listed(quality, missed)


def test_no_kind_of_fault_is_overlooked(quality: ModuleType, judged: list[Any]) -> None:
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for one in judged:
        if one.row.is_faulty and one.row.kind not in quality.COPIES and _has_floor(quality, one):
            by_kind[one.row.kind].append(one)
    # A dozen rows of a kind cannot tell 95 % from 90 %.
    weak = {kind: quality.share(one.is_found for one in ones) for kind, ones in by_kind.items()}
    assert {kind: found for kind, found in weak.items() if found < 0.8} == {}


def test_fine_rows_are_kept(quality: ModuleType, judged: list[Any]) -> None:
    fine = [one for one in judged if not one.row.is_faulty]
    dropped = [one for one in fine if one.code]
    assert len(dropped) <= quality.FALSE_FLOOR * len(fine), _listed(quality, dropped)


def test_mended_rows_are_what_they_were(quality: ModuleType, judged: list[Any]) -> None:
    ones = [one for one in judged if one.row.kind == "mojibake, mendable"]
    assert ones
    assert [quality.excerpt(one.row.talk) for one in ones if not one.is_mended] == []


@pytest.mark.parametrize("kind", ["exact duplicate", "near-duplicate"])
def test_of_copies_one_is_left(quality: ModuleType, judged: list[Any], kind: str) -> None:
    groups: dict[str, list[Any]] = defaultdict(list)
    for one in judged:
        if one.row.kind == kind:
            groups[one.row.group].append(one)
    left = Counter(sum(not one.code for one in ones) for ones in groups.values())
    assert len(groups) >= 6
    assert left[0] == 0
    assert left[1] >= quality.RECALL_FLOOR * len(groups) - 1, dict(left)


def _has_floor(quality: ModuleType, one: Any) -> bool:
    return one.row.kind not in quality.KINDS or quality.KINDS[one.row.kind].floor


def _listed(quality: ModuleType, ones: list[Any]) -> str:
    return "\n".join(f"{one.row.kind}: {one.code or 'kept'}: {quality.excerpt(one.row.talk)}" for one in ones)
