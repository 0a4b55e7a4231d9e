"""Whole or not at all: what a failed write leaves is what was there before."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dsr1_tune.atomic import atomic_folder, atomic_write, is_disk_full


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as file:
        file.write("感冒")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "感冒"
    assert names(path.parent) == ["a.txt"]


def test_binary(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.bin", binary=True) as file:
        file.write(b"\xff\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\xff\n"


def test_a_file_is_replaced_in_one_go(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with path.open() as reader, atomic_write(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failed_file_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as file:
        file.write("half")
        file.flush()
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_failed_write_names_its_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="No space") as caught, atomic_write(path) as file:
        file.write("new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_gets_the_usual_permissions(tmp_path: Path, umask: int) -> None:
    with atomic_write(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask
    assert os.umask(umask) == umask


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model"
    with atomic_folder(path) as part:
        (part / "a.txt").write_text("a")
        assert part.parent == path.parent
        assert not path.exists()
    assert (path / "a.txt").read_text() == "a"
    assert names(path.parent) == ["model"]


def test_a_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with atomic_folder(path) as part:
        (part / "new.txt").write_text("new")
        assert names(path) == ["old.txt"]
    assert names(path) == ["new.txt"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failed_folder_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(type(error)), atomic_folder(path) as part:
        (part / "deep").mkdir()
        (part / "deep" / "new.txt").write_text("half")
        raise error
    assert (path / "old.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, move = tmp_path / "model", Path.replace
    path.mkdir()
    (path / "old.txt").write_text("old")

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, "Input/output error")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(path) as part:
        (part / "new.txt").touch()
    assert (path / "old.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_folder_and_all_in_it_get_the_usual_permissions(tmp_path: Path, umask: int) -> None:
    with atomic_folder(tmp_path / "model") as part:
        (part / "deep").mkdir(mode=0o700)
        (part / "deep" / "weights").touch(mode=0o600)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]}
    folder, file = 0o777 & ~umask, 0o666 & ~umask
    assert modes == {"model": folder, "deep": folder, "weights": file}


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EIO, "os error 28"), False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 52928 vs 52820"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (SafetensorError("Error while deserializing header: header too small"), False),
    ],
    ids=str,
)
def test_what_a_full_disk_looks_like(error: Exception, is_full: bool) -> None:
    assert is_disk_full(error) is is_full
