"""What is at a path: every kind of model by the files that make it one, and which kind comes first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded, ref
from dsr1_tune.models.ref import ModelRef, base_of, find_adapter, local_path


def put(file: Path, content: str = "{}") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("files", "kind", "place"),
    [
        ((), ref.Folder, "."),
        (("config.json", "model.safetensors"), ref.Folder, "."),
        (("config.json", "manifest.json"), ref.Folder, "."),
        (("manifest.json",), ref.Run, "."),
        (("manifest.json", "model/config.json"), ref.Run, "."),
        (("manifest.json", "adapter/adapter_config.json"), ref.Adapter, "adapter"),
        (("adapter_config.json", "adapter_model.safetensors"), ref.Adapter, "."),
        (("manifest.json", "experts/experts_config.json"), ref.Experts, "experts"),
        (("experts_config.json",), ref.Experts, "."),
        (("manifest.json", "adapter/adapter_config.json", "adapter/reward_config.json"), ref.RewardModel, "adapter"),
        (("manifest.json", "model/config.json", "model/reward_config.json"), ref.RewardModel, "model"),
        (("a.gguf", "tokenizer.json"), ref.Gguf, "."),
        (("a.gguf", "model.safetensors", "config.json"), ref.Folder, "."),
        # What the run left, and not what was put beside it.
        (("manifest.json", "adapter/adapter_config.json", "a.gguf"), ref.Adapter, "adapter"),
    ],
)
def test_resolve_tells_each_kind_by_its_files(
    tmp_path: Path, files: tuple[str, ...], kind: type[ModelRef], place: str
) -> None:
    for name in files:
        put(tmp_path / name)
    found = ModelRef.resolve(tmp_path)
    assert type(found) is kind and found.path == tmp_path / place and found.name == str(tmp_path)
    assert (find_adapter(tmp_path) == found) if kind is ref.Adapter else True


@pytest.mark.parametrize("name", ["./nothing", "/nothing", "~nobody/x", "a/b/c", "a\\b", "two words"])
def test_resolve_takes_what_can_only_be_a_path_for_one(name: str) -> None:
    assert type(ModelRef.resolve(name)) is ref.Missing


def test_resolve_leaves_names_without_files_to_the_hub() -> None:
    assert type(ModelRef.resolve("deepseek-ai/DeepSeek-V3")) is type(ModelRef.resolve("gpt2")) is ref.Hub
    assert type(ModelRef.resolve(None)) is type(ModelRef.resolve("embedded")) is ref.Embedded


def test_resolve_expands_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "run" / "adapter" / "adapter_config.json")
    assert ModelRef.resolve("~/run") == ref.Adapter("~/run", tmp_path / "run" / "adapter")
    assert local_path("~nobody-here/x") == Path("~nobody-here/x")


def test_gguf_is_the_one_file_of_its_folder_or_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "one" / "a.gguf", "GGUF")
    for given in (file, file.parent, str(file)):
        found = ModelRef.resolve(given)
        assert isinstance(found, ref.Gguf) and found.file == file
    put(tmp_path / "one" / "b.gguf", "GGUF")
    several = ModelRef.resolve(tmp_path / "one")
    assert isinstance(several, ref.Gguf)
    with pytest.raises(ModelError, match=r"holds 2 \.gguf files") as caught:
        _ = several.file
    assert str(file) in str(caught.value.hint)


def test_run_has_its_whole_model_or_none(tmp_path: Path) -> None:
    put(tmp_path / "manifest.json")
    assert ModelRef.resolve(tmp_path).model is None  # type: ignore[attr-defined]
    put(tmp_path / "model" / "config.json")
    assert ModelRef.resolve(tmp_path).model == tmp_path / "model"  # type: ignore[attr-defined]


def test_find_adapter_refuses_a_reward_model_with_the_command_for_it(tmp_path: Path) -> None:
    put(tmp_path / "adapter_config.json")
    put(tmp_path / "reward_config.json")
    with pytest.raises(ModelError, match="is a reward model: it scores answers") as caught:
        find_adapter(tmp_path)
    assert caught.value.hint == f"score rows with it: dsr1-tune score {tmp_path} rows.jsonl"


def test_base_of_an_adapter_is_what_manifest_or_config_say(tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "adapter"
    put(adapter / "adapter_config.json", json.dumps({"base_model_name_or_path": "org/base", "revision": "abc"}))
    found = ModelRef.resolve(adapter)
    assert isinstance(found, ref.Adapter) and found.base == Base(model="org/base", revision="abc")
    base = {"name": "models/base", "revision": None, "folder": str(tmp_path)}
    settings = {"base": {"dtype": "float16", "context": 4096}}
    put(adapter.parent / "manifest.json", json.dumps({"base": base, "config": settings}))
    assert base_of(adapter) == Base(model=str(tmp_path), dtype="float16", context=4096)
    put(adapter.parent / "manifest.json", json.dumps({"base": {"name": "embedded", "revision": "recipe1-x"}}))
    assert base_of(adapter) == Base()


def test_base_of_refuses_an_adapter_that_names_none(tmp_path: Path) -> None:
    put(tmp_path / "adapter_config.json")
    with pytest.raises(ModelError, match="does not say which base it belongs to"):
        base_of(tmp_path)


@pytest.mark.parametrize(
    ("recorded", "model"),
    [
        ({"name": "somebody/tiny", "revision": "c0ffee", "folder": "/cache/tiny"}, "somebody/tiny"),
        ({"name": "models/tiny", "revision": None, "folder": "/home/me/models/tiny"}, "/home/me/models/tiny"),
        ({"name": "embedded", "revision": "recipe1", "folder": "/cache/tiny"}, None),
    ],
    ids=["hub", "folder", "embedded"],
)
def test_base_of_is_known_better_to_the_manifest(
    adapter_run: tuple[Path, torch.Tensor], recorded: dict[str, str | None], model: str | None
) -> None:
    folder, _ = adapter_run
    (folder / "manifest.json").write_text(json.dumps({"base": recorded}))
    base = base_of(folder / "adapter")
    assert (base.model, base.revision) == (model, recorded["revision"] if model == "somebody/tiny" else None)


@pytest.mark.parametrize("name", ["embedded", f"/elsewhere/{embedded.FOLDER_PREFIX}wheel-1"])
def test_base_of_finds_the_embedded_base_wherever_it_is(adapter_run: tuple[Path, torch.Tensor], name: str) -> None:
    folder, _ = adapter_run
    put(folder / "adapter/adapter_config.json", json.dumps({"base_model_name_or_path": name}))
    assert base_of(folder / "adapter") == Base()


def test_base_of_is_stretched_as_its_run_says(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (tmp_path / "manifest.json").write_text(
        '{"base": {"name": "org/base", "revision": "abc"}, "config": {"base": {"dtype": "bfloat16", "context": 32768}}}'
    )
    assert base_of(adapter) == Base(model="org/base", revision="abc", dtype="bfloat16", context=32_768)
    (tmp_path / "manifest.json").write_text('{"base": {"name": "org/base", "revision": "abc"}, "config": {"base": {}}}')
    assert base_of(adapter) == Base(model="org/base", revision="abc")
