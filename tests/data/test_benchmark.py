"""The benchmark's rows are what their labels say, and its score counts as it should."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dsr1_tune.data.rules.packs import load_pack

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NUM_ROWS = 1500


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data_rows() -> ModuleType:
    return _load("data_rows")


@pytest.fixture(scope="module")
def benchmark(data_rows: ModuleType) -> ModuleType:
    return _load("data")


@pytest.fixture(scope="module")
def rows(data_rows: ModuleType) -> list[Any]:
    return list(data_rows.make_rows(NUM_ROWS, 7, data_rows.Texts(data_rows.english, data_rows.chinese)))


def _said(row: Any) -> tuple[str, str, str]:
    return row.question, row.context, row.answer


def test_a_row_depends_on_the_seed_and_its_number_only(data_rows: ModuleType, rows: list[Any]) -> None:
    texts = data_rows.Texts(data_rows.english, data_rows.chinese)
    assert list(data_rows.make_rows(300, 7, texts)) == rows[:300]
    assert list(data_rows.make_rows(300, 8, texts)) != rows[:300]


def test_kinds_and_languages_have_their_shares(rows: list[Any], data_rows: ModuleType) -> None:
    kinds = [row.kind for row in rows]
    assert kinds[:100] == ["clean"] * 100
    for kind, share in data_rows.SHARES:
        assert 0.6 * share < kinds.count(kind) / NUM_ROWS < 1.5 * share
    chinese = sum(data_rows._is_chinese(row.question) for row in rows if row.kind == "clean")
    assert 0.45 < chinese / kinds.count("clean") < 0.55


def test_copies_repeat_an_earlier_clean_row(rows: list[Any], data_rows: ModuleType) -> None:
    for row in rows:
        if row.kind not in ("exact", "near"):
            continue
        source = rows[row.of]
        assert source.number < row.number
        assert source.kind == "clean"
        assert (_said(row) == _said(source)) == (row.kind == "exact")
        ours, theirs = data_rows._shingles(row.text), data_rows._shingles(source.text)
        assert len(ours & theirs) >= data_rows.MIN_SIMILARITY * len(ours | theirs), row.how


def test_an_original_has_copies_of_one_kind(rows: list[Any]) -> None:
    exact, near = ({row.of for row in rows if row.kind == kind} for kind in ("exact", "near"))
    assert not exact & near


def test_clean_rows_are_no_duplicates_of_each_other(rows: list[Any], data_rows: ModuleType) -> None:
    shingles = [data_rows._shingles(row.text) for row in rows if row.kind == "clean"][:400]
    pairs = ((a, b) for place, a in enumerate(shingles) for b in shingles[:place])
    assert max(len(a & b) / len(a | b) for a, b in pairs) < 0.6


def test_junk_breaks_what_its_rule_asks(rows: list[Any], data_rows: ModuleType) -> None:
    junk = {row.how: row for row in rows if row.kind == "junk"}
    assert set(junk) == {"too short", "too long", "repeated", "special characters", "no letters"}
    assert len(junk["too short"].text) < 10
    assert len(junk["too long"].text) > data_rows.TOO_LONG
    assert len(set(junk["repeated"].answer)) < 20 < len(junk["repeated"].answer)
    assert not any(map(str.isalpha, junk["special characters"].answer + junk["no letters"].answer))
    assert max(len(row.text) for row in rows if row.kind == "clean") < data_rows.TOO_LONG


@pytest.fixture
def labelled(benchmark: ModuleType, tmp_path: Path) -> Any:
    """Rows 0 to 5: 1 and 2 nearly repeat 0, 4 repeats 3, 5 is junk; 6 is clean."""
    file = tmp_path / "rows.jsonl"
    (tmp_path / "rows.labels.jsonl").write_text(
        '{"row": 1, "kind": "near", "of": 0, "how": ""}\n{"row": 2, "kind": "near", "of": 0, "how": ""}\n'
        '{"row": 4, "kind": "exact", "of": 3, "how": ""}\n{"row": 5, "kind": "junk", "of": null, "how": ""}\n'
    )
    return benchmark.Rows(file, 7, "", {"clean": 3, "near": 2, "exact": 1, "junk": 1})


@pytest.mark.parametrize(
    ("kept", "near", "exact", "junk", "lost", "why"),
    [
        ({0, 3, 6}, 1.0, 1.0, 1.0, 0, "originals stay"),
        ({2, 4, 6}, 1.0, 1.0, 1.0, 0, "any copy may stay in place of its original"),
        ({0, 1, 3, 4, 5, 6}, 0.5, 0.0, 0.0, 0, "what stays beside another copy was not found"),
        ({3}, 1.0, 1.0, 1.0, 2, "a group without a survivor is a lost row, as is a clean row"),
    ],
)
def test_scores(
    benchmark: ModuleType, labelled: Any, kept: set[int], near: float, exact: float, junk: float, lost: int, why: str
) -> None:
    assert benchmark.scored(labelled, kept) == benchmark.Score(len(kept), near, exact, junk, lost), why


def test_a_command_and_its_children_are_measured(benchmark: ModuleType, tmp_path: Path) -> None:
    burn = "import time; x = bytearray(150_000_000); stop = time.process_time() + 0.5\n"
    burn += "while time.process_time() < stop: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)"
    cost = benchmark.run([sys.executable, "-c", parent], tmp_path)
    assert cost.cpu_s >= 0.5
    assert cost.peak_mb > 150


def test_a_failing_command_is_shown(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)exit code 3.*no luck"):
        benchmark.run([sys.executable, "-c", "print('no luck'); raise SystemExit(3)"], tmp_path)


def test_data_juicers_earlier_figures_are_read_back(benchmark: ModuleType, tmp_path: Path) -> None:
    cost, score = benchmark.Cost(9.0, 8.0, 7.0, 6.0), benchmark.Score(5, 0.9, 1.0, 0.8, 3)
    theirs = benchmark.Measure("data-juicer", "data-juicer, 2 workers", 2, 10, "abc", cost, score)
    limit = benchmark.Measure("limit", "limit", 1, 10, "abc", cost, None)
    benchmark.save(tmp_path / "runs.json", [limit, theirs])
    assert benchmark.earlier(tmp_path / "runs.json") == [theirs]


def test_ratios_to_data_juicer_are_of_cpu_seconds(benchmark: ModuleType) -> None:
    def one(name: str, cpu_s: float) -> Any:
        return benchmark.Measure(name, name, 1, 1000, "abc", benchmark.Cost(1, cpu_s, 10, 9), None)

    lines = benchmark.table([one("limit", 2.0), one("four rules", 4.0), one("data-juicer", 400.0)]).splitlines()
    assert lines[3].startswith("| four rules | 250 |")
    assert lines[3].endswith("| 100.0 | 50.0% |")


def test_workers_and_sizes_are_compared_round_by_round(benchmark: ModuleType) -> None:
    def one(rows: int, workers: int, wall_s: float, peak_mb: float) -> Any:
        cost, score = benchmark.Cost(wall_s, 1, peak_mb, peak_mb / 2), benchmark.Score(1, 1, 1, 1, 0)
        return benchmark.Measure("four rules", "", workers, rows, "abc", cost, score)

    # The second round ran on a machine half as fast.
    measures = [one(10, 1, 8, 100), one(10, 2, 4, 200), one(10, 1, 16, 100), one(10, 2, 8, 200), one(90, 2, 50, 260)]
    limit = benchmark.Measure("limit", "limit", 1, 10, "abc", benchmark.Cost(1, 1, 10, 0), None)
    said = list(benchmark.comparisons([limit, *measures], [10, 90]))
    assert said == [
        "four rules, 10 rows: two workers are 2.00 × as fast as one by the clock",
        "four rules, 2 at work: 90 rows take 1.30 × the memory of 10 (1.30 × without files)",
    ]


def test_the_four_rules_are_four(benchmark: ModuleType) -> None:
    rules = load_pack(benchmark.FOUR_RULES).rules
    on = {name for name in type(rules).model_fields if getattr(rules, name).action != "off"}
    assert on == {"lengths", "repeated_text", "repeated_lines", "odd_characters"}
    assert rules.lengths.max_chars == benchmark.data_rows.TOO_LONG
