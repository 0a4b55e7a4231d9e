"""Ray Data does what the local engine does."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsr1_tune.config import CleanRun, Data
from dsr1_tune.data.clean import run
from dsr1_tune.errors import RunError

MEDICAL = Path(__file__).parents[3] / "examples" / "medical" / "medical.json"


def cleaned(out: Path, engine: str) -> dict[str, bytes]:
    folder = run.run(CleanRun(data=Data(files=(MEDICAL,)), out=out, workers=1, engine=engine)).folder
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_result_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='needs pip install "dsr1-tune[ray]"')
    assert cleaned(tmp_path / "local", "local") == cleaned(tmp_path / "ray", "ray")


def test_without_ray_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(RunError, match="the engine ray is not installed"):
        cleaned(tmp_path / "out", "ray")
