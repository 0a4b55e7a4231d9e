"""What an export starts from: runs and adapters are found, and what is neither is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dsr1_tune.config import Merge
from dsr1_tune.errors import TuneError
from dsr1_tune.export import merge
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import TinyRun, copied, merged, quiet


@pytest.mark.parametrize("what", ["nothing", "base", "unfinished", "cut off"])
def test_source_that_cannot_be_merged_is_refused(tiny_run: TinyRun, what: str, tmp_path: Path) -> None:
    run = tiny_run()
    path, expected = tmp_path / "gone", "is no finished run and no adapter"
    if what == "base":
        path = run.path.parent / "base"
    if what == "unfinished":
        path, expected = copied(run, tmp_path / "run").path, "is a run that is not finished"
        RunFolder(path).update(status="interrupted")
    if what == "cut off":
        path, expected = copied(run, tmp_path / "run").path, "is damaged: it is cut off"
        file = path / "adapter" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TuneError, match=expected):
        merge.run(path, tmp_path / "merged", Merge(), quiet())
    assert not (tmp_path / "merged").exists()


def test_source_may_be_an_adapter_without_its_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run("mixtral").adapter, tmp_path / "adapter")
    certificate = merged(tmp_path / "adapter", tmp_path / "merged")
    assert certificate["loss"] is None
    assert certificate["tensors"]["trained_by_part"] is None
    assert certificate["outputs"]["max_difference"] <= 1e-4
