"""Whatever was done to a data file: no crash, and every row is kept or dropped."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dsr1_tune.config import CleanRun, Data
from dsr1_tune.data.clean import run
from dsr1_tune.errors import TuneError

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
    ("seed", "number"), [(2025, 300), pytest.param(0, 5_000, marks=pytest.mark.slow)], ids=["some", "many"]
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
    monkeypatch.setattr(fuzz, "read_chunk", lambda chunk: ([], None))
    with pytest.raises(AssertionError, match="chunks differ"):
        fuzz.outcome_of(path)


@pytest.mark.parametrize(
    ("seed", "number"), [(7, 60), pytest.param(11, 1000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_damaged_files_through_the_whole_pipeline(fuzz, tmp_path, seed, number):
    """`data clean` on them: an error for the user, or every row in exactly one file."""
    num_cleaned = 0
    for fuzzed in fuzz.fuzzed_files(seed, number, tmp_path):
        config = CleanRun(data=Data(files=(fuzzed.path,)), out=tmp_path / "out", workers=1)
        try:
            facts = run.run(config).report
        except TuneError:
            continue
        num_cleaned += 1
        written = [(tmp_path / "out" / f"{name}.jsonl").read_bytes() for name in ("train", "eval", "rejected")]
        rows = [json.loads(line) for text in written for line in text.split(b"\n")[:-1]]
        indices = [row["source"]["index"] if "source" in row else row["index"] for row in rows]
        assert sorted(indices) == list(range(facts["num_rows"])), fuzzed
        assert facts["num_kept"] + facts["num_merged"] + facts["num_dropped"] == facts["num_rows"]
    assert num_cleaned > number / 4
