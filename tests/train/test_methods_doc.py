"""The commands of docs/methods.md run as they are written there, on small data and a tiny model."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from dsr1_tune import cli
from dsr1_tune.runs.folder import FINISHED, RunFolder

DOC = Path(__file__).parents[2] / "docs" / "methods.md"
COMMANDS = re.findall(r"^dsr1-tune .+$", DOC.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_method_is_shown() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"lora", "qlora", "full", "experts", "esft"}


@pytest.mark.slow
def test_they_run_one_after_the_other(
    tiny_base: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(sums, tmp_path / "medical.json")
    monkeypatch.chdir(tmp_path)
    trained = 0
    for command in COMMANDS:
        small = ["--model", str(tiny_base), "--set", "schedule.max_steps=1", "--set", "samples=0"]
        if "--out" not in command:
            small += ["--out", f"run-{trained}"]
        monkeypatch.setattr(sys, "argv", [*shlex.split(command), *small])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code, command
        if "--out" not in command:
            assert RunFolder(tmp_path / f"run-{trained}").manifest()["status"] == FINISHED
            trained += 1
    assert (tmp_path / "experts.json").exists() and (tmp_path / "experts.png").exists()
    assert trained == len(COMMANDS) - 1
