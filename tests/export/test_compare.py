"""Two models held against each other: the numbers against plain ones, the gates, the files, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.runs.folder import RunFolder


def test_compare_leaves_everything_in_its_files(trained: tuple[Comparison, Path], run: RunFolder) -> None:
    found, out = trained
    tree = json.loads((out / "compare.json").read_text())
    assert tree == json.loads(json.dumps(found.as_json()))
    assert (
        tree["b"]["num_bytes"] > tree["a"]["num_bytes"] and tree["a"]["stored_bytes"] and not tree["b"]["stored_bytes"]
    )
    assert tree["a"]["writes_per_second"] > 0 < tree["a"]["reads_per_second"]
    assert len(tree["answers"]["rows"]) == 2
    page = (out / "compare.html").read_text()
    assert "held-out rows of" in page and "what is" in page and "<script" not in page
    assert f"{found.general.increase.value:+.2%}" in page


def test_compare_replaces_nothing_but_an_earlier_comparison(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    ran: list[Path] = []

    def reached(*given: Any) -> Any:
        ran.append(given[4])
        raise ModelError("as far as this", hint="no further")

    monkeypatch.setattr("dsr1_tune.export.compare.run", reached)

    def ask(out: Path) -> Any:
        return CliRunner().invoke(cli.app, ["compare", str(base), str(base), "--out", str(out)])

    before = sorted(base.iterdir())
    said = ask(base).exception
    assert isinstance(said, ConfigError) and "holds other things than a comparison" in said.message and said.hint
    other = tmp_path / "other"
    other.mkdir()
    (other / "compare.json").write_text('{"of": "somebody else"}')
    assert "not of a comparison of ours" in str(ask(other).exception)
    assert "is a file" in str(ask(other / "compare.json").exception)
    assert not ran and sorted(base.iterdir()) == before
    (other / "compare.json").write_text('{"format": "dsr1-tune comparison 1"}')
    assert "earlier comparison" in ask(other).stderr
    assert "earlier comparison" not in ask(tmp_path / "new").stderr
    assert ran == [other, tmp_path / "new"]


def test_compare_command_line_exits_1_for_a_missed_gate(
    base: Path, run: RunFolder, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--set", "compare.answers=0", "--set", "compare.max_rows=3", "--json"]
    gate = ["--min-agreement", "100%", "--max-loss-increase", "50%"]
    monkeypatch.setattr(sys, "argv", ["dsr1-tune", "compare", str(base), str(run.path), *quick, *gate])
    with pytest.raises(SystemExit) as left:
        cli.main()
    printed = capsys.readouterr()
    tree = json.loads(printed.out)
    assert left.value.code == 1 and len(tree["missed"]) == 1
    assert "missed: agreement is" in printed.err and tree["asked"]["max_loss_increase"] == 0.5
