"""The four steps to a served model: each in its own folder, and none taken twice."""

from __future__ import annotations

from pathlib import Path

from dsr1_tune.config import ExportRun
from dsr1_tune.export import lineage
from dsr1_tune.export.steps import Steps
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import quiet


def steps(run: RunFolder, folder: Path, to: str) -> Steps:
    settings = ExportRun.model_validate(
        {"quantize": {"to": to}, "compare": {"max_rows": 3, "answers": 0}, "gates": {"max_general_drop": "500%"}}
    )
    return Steps(run.path, folder / "merged", folder / "model", settings, quiet(), "zh")


def test_steps_leave_a_whole_model_and_take_nothing_twice(run: RunFolder, tmp_path: Path) -> None:
    taken = steps(run, tmp_path, "nf4")
    taken.merge()
    taken.quantize()
    assert taken.is_quantized and taken.made == tmp_path / "model"
    found = taken.compare(("before", "after"))
    assert (found.a.name, found.b.name) == ("before", "after") and found.asked["max_general_drop"] == 5  # type: ignore[index]
    assert "模型" in taken.card().read_text() and 'lang="zh-Hans"' in (taken.made / "compare.html").read_text()
    assert lineage.verify(taken.made) == lineage.verify(taken.merged) == []
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    taken.merge()
    taken.quantize()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == before


def test_steps_without_a_format_serve_the_merged_model(run: RunFolder, tmp_path: Path) -> None:
    taken = steps(run, tmp_path, "none")
    taken.merge()
    taken.quantize()
    assert not taken.is_quantized and taken.made == taken.merged
    found = taken.compare(("run", "merged"))
    assert found.domain is not None and found.domain.agreement is not None and found.domain.agreement.value == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["merged"]
