"""A tool is installed by real pip, from a wheel in a folder, and runs in a process that alone sees it."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from dsr1_tune.errors import ModelError
from dsr1_tune.models import isolated_env
from dsr1_tune.models.isolated_env import Tool, ensure, folder_of, installed


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the wheel tinytool 1.0, which is all that pip finds; and an empty cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tinytool-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinytool.py", "ANSWER = 42\n")
        wheel.writestr("tinytool-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinytool\nVersion: 1.0\n")
        wheel.writestr("tinytool-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tinytool-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(tmp_path / "cache"))
    return folder


def use(monkeypatch: pytest.MonkeyPatch, *packages: str, tried: str = "import tinytool") -> None:
    monkeypatch.setattr(isolated_env, "TOOLS", {"tiny": Tool(packages, tried, "tests")})


def test_tool_is_made_once_and_only_its_own_process_sees_it(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "tinytool==1.0")
    assert [(tool.folder, tool.num_bytes) for tool in installed()] == [(None, 0)]
    said: list[str] = []
    callers = [threading.Thread(target=ensure, args=("tiny", said.append)) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    environment = ensure("tiny", said.append)
    assert len(said) == 1
    assert "tinytool==1.0" in said[0]
    heard: list[str] = []
    code = "import tinytool, psutil; print(tinytool.ANSWER); print(psutil.__file__)"
    printed = environment.run(["-c", code], heard.append)
    assert heard == printed.splitlines()
    assert heard[0] == "42"
    assert heard[1] == psutil.__file__  # it runs on our own packages
    assert subprocess.run([sys.executable, "-c", "import tinytool"], capture_output=True).returncode == 1
    (found,) = installed()
    assert found.folder == environment.folder == folder_of("tiny")
    assert found.num_bytes > 0


def test_tool_of_other_pins_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "tinytool==1.0")
    before = folder_of("tiny")
    use(monkeypatch, "tinytool==1.1")
    assert folder_of("tiny") != before


def left_over() -> list[str]:
    folder = folder_of("tiny").parent
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_tool_that_cannot_be_installed_leaves_nothing(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "tinytool==2.0")
    with pytest.raises(ModelError, match=r"tinytool==2\.0: cannot be installed: .*No matching distribution") as caught:
        ensure("tiny")
    assert "connect to the internet" in caught.value.hint
    assert left_over() == []


def test_tool_that_does_not_work_is_not_kept(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "tinytool==1.0", tried="import tinytool; tinytool.missing")
    with pytest.raises(ModelError, match=r"tiny: is installed but does not work .*has no attribute 'missing'"):
        ensure("tiny")
    assert left_over() == []


def test_tool_install_clears_away_a_killed_attempt(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "tinytool==1.0")
    folder = folder_of("tiny")
    killed = folder.with_name(f".{folder.name}.abc123.part")
    killed.mkdir(parents=True)
    (killed / "half.py").write_text("")
    ensure("tiny")
    assert left_over() == [folder.name]


def test_tool_install_names_a_cache_that_cannot_be_written(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "tinytool==1.0")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot hold tiny") as caught:
        ensure("tiny")
    assert "DSR1_TUNE_CACHE" in caught.value.hint


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An environment that holds nothing."""
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(tmp_path))
    use(monkeypatch, "tinytool==1.0")
    folder_of("tiny").mkdir(parents=True)
    return ensure("tiny")


def test_tool_process_that_fails_says_why(bare: Any) -> None:
    with pytest.raises(ModelError, match=r"tiny: failed \(exit code 3\); its last lines:\nbefore\nthe reason"):
        bare.run(["-c", "print('before'); raise SystemExit(print('the reason') or 3)"])


def test_tool_process_ends_when_we_are_interrupted(bare: Any) -> None:
    def interrupt(line: str) -> None:
        children.append(psutil.Process(int(line)))
        raise KeyboardInterrupt

    children: list[psutil.Process] = []
    with pytest.raises(KeyboardInterrupt):
        bare.run(["-c", "import os, time; print(os.getpid()); time.sleep(60)"], interrupt)
    assert not children[0].is_running()
