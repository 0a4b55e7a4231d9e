"""adapt.json: what a rerun takes as done, and what may have changed since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.adapt.run import run
from dsr1_tune.adapt.state import State, begun_with
from dsr1_tune.errors import DataError, RunError
from tests.adapt.conftest import quiet, settings


def test_state_gives_back_the_settings_it_began_with(whole: tuple[Path, str], qwen: Path, short: Path) -> None:
    begun = begun_with(whole[0])
    assert begun == settings(qwen, short.absolute(), whole[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"schedule": {"max_steps": 3, "max_tokens": 128}}, "schedule.max_steps=2, now it is 3"),
     ({"method": "full"}, 'method="auto", now it is "full"'),
     ({"quantize": {"to": "none"}}, "quantize.to")],
)  # fmt: skip
def test_state_refuses_other_settings(
    whole: tuple[Path, str], qwen: Path, short: Path, change: dict[str, Any], said: str
) -> None:
    before = (whole[0] / "adapt.json").read_bytes()
    with pytest.raises(RunError, match="was begun with") as refused:
        run(settings(qwen, short, whole[0], **change), quiet())
    assert said in refused.value.message and "another --out" in refused.value.hint
    assert (whole[0] / "adapt.json").read_bytes() == before


def test_state_refuses_changed_data(whole: tuple[Path, str], qwen: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"input": "what is one?", "output": "it is one"}]))
    state = State(tmp_path / "out")
    (tmp_path / "out").mkdir()
    from dsr1_tune.adapt.state import begin

    begin(state, settings(qwen, data, tmp_path / "out"))
    data.write_text(json.dumps([{"input": "what is one?", "output": "it is two"}]))
    with pytest.raises(RunError, match=r"data\.json: has changed since"):
        begin(state, settings(qwen, data, tmp_path / "out"))


def test_stage_that_was_whole_before_it_was_noted_is_taken(
    whole: tuple[Path, str], qwen: Path, short: Path, tmp_path: Path
) -> None:
    """Killed between the last file of a stage and its entry."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    state = State(out)
    stages = {name: facts for name, facts in state.read()["stages"].items() if name in ("plan", "clean")}
    state.write(stages={**stages, "train": {"status": "begun"}})
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    run(settings(qwen, short, out), quiet())
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before


@pytest.mark.parametrize("leaves", ["strangers", "damaged", "file"])
def test_state_refuses_an_out_that_is_something_else(qwen: Path, short: Path, tmp_path: Path, leaves: str) -> None:
    out = tmp_path / "out"
    if leaves == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("adapt.json" if leaves == "damaged" else "mine.txt")).write_text("{")
    before = {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(RunError) as refused:
        run(settings(qwen, short, out), quiet())
    assert "another --out" in refused.value.hint
    assert {file: file.read_text() for file in before} == before


def test_state_takes_nothing_back_once_a_stage_is_whole(whole: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "out")
    State(tmp_path / "out").withdraw()
    assert State(tmp_path / "out").is_done("card") and (tmp_path / "out" / "plan.json").is_file()


@pytest.mark.parametrize("is_there", [False, True])
def test_state_leaves_the_out_free_after_refused_input(qwen: Path, tmp_path: Path, is_there: bool) -> None:
    out = tmp_path / "out"
    if is_there:
        out.mkdir()
    with pytest.raises(DataError, match="no such file"):
        run(settings(qwen, tmp_path / "nope.json", out), quiet())
    assert list(out.iterdir()) == [] if is_there else not out.exists()
