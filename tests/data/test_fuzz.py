"""Whatever was done to a data file: no crash, and every row is kept or dropped."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fuzz_data.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_data", BENCHMARK)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up by the module's name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("seed", "number"), [(2025, 300), pytest.param(0, 10_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_damaged_files(fuzz, tmp_path, seed, number):
    outcomes = []
    for fuzzed in fuzz.fuzzed_files(seed, number, tmp_path):
        try:
            outcomes.append(fuzz.outcome_of(fuzzed.path))
        except Exception as error:
            kept = fuzzed.path.rename(tmp_path / f"crashed-{fuzzed.path.name}")
            pytest.fail(f"{kept} ({fuzzed.origin}; {', '.join(fuzzed.mutations)}): {error!r}")
    assert len(outcomes) == number
    # The mutations do harm, and do not ruin all.
    assert {"refused", "all rows dropped", "some rows dropped", "all rows kept"} == set(outcomes)


def test_sound_files_are_kept_whole(fuzz, tmp_path):
    """What the fuzzer mutates is sound, so that its mutations are what is found."""
    for number, (origin, name, data) in enumerate(fuzz.origins()):
        if not origin.startswith("head of"):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / name).write_bytes(data)
            assert fuzz.outcome_of(folder / name) == "all rows kept", origin


def test_the_same_seed_makes_the_same_files(fuzz, tmp_path):
    def made():
        return [(f.path.name, f.mutations, f.path.read_bytes()) for f in fuzz.fuzzed_files(3, 40, tmp_path)]

    assert made() == made()


def test_the_check_notices_a_lost_row(fuzz, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "Q", "output": "A"}\n{"input": "R", "output": "B"}\n' * 20, encoding="utf-8")
    monkeypatch.setattr(fuzz, "read_portion", lambda portion: ([], None))
    with pytest.raises(AssertionError, match="portions differ"):
        fuzz.outcome_of(path)
