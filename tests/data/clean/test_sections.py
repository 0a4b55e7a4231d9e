"""The sections of report.json that `data clean` fills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsr1_tune.config import CleanRun, Data
from dsr1_tune.data.clean.sections import settings_of


def test_sections_say_lengths_languages_and_strata(tmp_path: Path, rows: Any, write_lines: Any, run: Any) -> None:
    _, report = run(tmp_path, write_lines(tmp_path / "rows.jsonl", rows(200)), eval_share=0.2)
    assert report["languages"] == {"latin": 100, "zh": 100} and report["kinds"] == {"record": 200}
    lengths = report["lengths"]
    assert (lengths["unit"], lengths["tokenizer"], lengths["num_sampled"]) == ("characters", None, 200)
    for part in ("question", "answer", "conversation"):
        assert sum(lengths[part]["counts"]) == 200 and len(lengths[part]["edges"]) == len(lengths[part]["counts"]) + 1
        assert lengths[part]["median"] <= lengths[part]["p95"] <= lengths[part]["max"]
    strata = report["split"]["strata"]
    assert sum(one["num_train"] for one in strata) == report["split"]["num_train"] == 160
    assert {one["name"].split(", ")[1] for one in strata} == {"latin", "zh"}


def test_sections_count_what_fell_out_by_file(tmp_path: Path, rows: Any, write_lines: Any, run: Any) -> None:
    good = rows(40)
    a = write_lines(tmp_path / "a.jsonl", [*good[:20], {"foo": 1}])
    b = write_lines(tmp_path / "b.jsonl", [*good[10:], {"foo": 1}, {"foo": 2}])
    _, report = run(tmp_path, a, b)
    counts = [[file[f"num_{name}"] for name in ("rows", "kept", "merged", "dropped")] for file in report["files"]]
    assert counts == [[21, 20, 0, 1], [32, 20, 10, 2]]
    assert report["dropped"] == {"exact_duplicate": 10, "unknown_fields": 3}
    assert [example["line"] for example in report["examples"]["exact_duplicate"]] == [1, 2, 3]


def test_settings_leave_out_what_changes_no_result(tmp_path: Path) -> None:
    data = Data(files=(tmp_path / "a.jsonl",))
    one, other = CleanRun(data=data, workers=1, out=tmp_path / "x"), CleanRun(data=data, workers=2)
    assert settings_of(one) == settings_of(other) != settings_of(CleanRun(data=data, seed=7))
