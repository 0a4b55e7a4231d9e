"""Whatever is typed or handed in: a message that names the place and the mend, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune import cli

ROWS = [{"input": f"question {number}", "output": f"answer {number}"} for number in range(20)]
GOOD = json.dumps(ROWS, indent=1)
PREFERENCES = json.dumps([{"prompt": "Q", "chosen": "A", "rejected": "B"}])

Content = str | bytes
Prepare = Callable[[Path], None]
"""Changes the folder `model`, a copy of a tiny base that is sound."""
Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Case:
    """What is typed, what lies in the current folder beside good.json and model/, and what is to be said of it."""

    name: str
    typed: str
    says: str
    mend: str
    files: dict[str, Content] = field(default_factory=dict)
    model: Prepare | None = None
    patch: Patch | None = None
    code: int = 2
    leaves: str = ""


# --- ways to break a model, and a machine ----------------------------------------------------------------------------


def without(*names: str) -> Prepare:
    def remove(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return remove


def with_text(name: str, text: str) -> Prepare:
    def write(model: Path) -> None:
        (model / name).write_text(text)

    return write


def cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def an_adapter(model: Path) -> None:
    for file in model.iterdir():
        file.unlink()
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def offline(patch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def unreadable(patch: pytest.MonkeyPatch) -> None:
    """Root, as whom tests often run, may read everything."""

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    patch.setattr("dsr1_tune.data.read.files._open_bytes", refuse)


def unwritable(number: int) -> Patch:
    """Whatever folder is to be made below `place`, the system refuses."""

    def patch_mkdir(patch: pytest.MonkeyPatch) -> None:
        make = Path.mkdir

        def refuse(self: Path, *given: Any, **more: Any) -> None:
            if "place" in self.parts:
                raise OSError(number, os.strerror(number), str(self))
            make(self, *given, **more)

        patch.setattr(Path, "mkdir", refuse)

    return patch_mkdir


def full_after(num_files: int) -> Patch:
    """The disk takes so many files and no more."""

    def patch_fsync(patch: pytest.MonkeyPatch) -> None:
        written: list[int] = []

        def sync(handle: int) -> None:
            written.append(handle)
            if len(written) > num_files:
                raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", sync)

    return patch_fsync


def full_at_the_adapter(patch: pytest.MonkeyPatch) -> None:
    """What safetensors says when there is no room."""
    from peft import PeftModel
    from safetensors import SafetensorError

    save = PeftModel.save_pretrained

    def refuse(self: Any, folder: str, **given: Any) -> None:
        save(self, folder, **given)
        if ".part" in folder:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    patch.setattr(PeftModel, "save_pretrained", refuse)


# --- the cases -------------------------------------------------------------------------------------------------------

ON = "lora --model model --out run --data"
WITH = "lora --data good.json --out run --model"
SET = "lora --data good.json --model model --out run --set"
OUT = "lora --data good.json --model model --out"
TYPED = [
    Case("an unknown command", "lorra", "No such command 'lorra'", "--help"),
    Case("an unknown flag", f"{OUT} run --learning-rate 1", "No such option: --learning-rate", "--help"),
    Case("a flag's value of a wrong type", f"{OUT} run --epochs many", "'--epochs'", "valid number"),
    Case("a flag's value that cannot work", f"{OUT} run --epochs 0", "schedule.epochs", "greater than 0"),
    Case("no data", "lora --model model --out run", "no data is given", "--data medical.json"),
    Case("an unknown setting", f"{SET} adapter.rnak=3", "adapter.rnak: there is no such", "known here: rank"),
    Case("a setting without a value", f"{SET} adapter.rank", "--set adapter.rank: not of the form", "adapter.rank=32"),
    Case("a setting of a wrong type", f"{SET} adapter.rank=big", "adapter.rank: ", "correct the value"),
    Case("a setting beyond its bounds", f"{SET} schedule.seed=99999999999", "schedule.seed: ", "less than 4294967296"),
    Case("a setting below a value", f"{SET} samples=1 --set samples.x=1", "samples is a value", "dsr1-tune settings"),
    Case("a group that is none", f"{SET} adapter.groups=[router]", "adapter.groups.0", "'routed_experts'"),
    Case("no group", f"{SET} adapter.groups=[]", "adapter: ", "name at least one of attention"),
    Case("several wrong settings", f"{SET} samples=-1 --set foo=1", "foo: there is no such", "samples: Input should"),
    Case("no such YAML", "lora --config no.yaml", "no.yaml: cannot be read", "existing YAML file"),
    Case("broken YAML", "lora --config a.yaml", "a.yaml: is not YAML", "lora.yaml", {"a.yaml": "a: [1, 2"}),
    Case("an impossible date", "lora --config a.yaml", "a.yaml: is not YAML", "lora.yaml", {"a.yaml": "a: 2024-13-45"}),
    Case("YAML of a list", "lora --config a.yaml", "a.yaml: holds no settings", "lora.yaml", {"a.yaml": "- a\n- b"}),
    Case("an empty YAML", "lora --config a.yaml", "a.yaml: holds no settings", "lora.yaml", {"a.yaml": ""}),
    Case("a folder as YAML", "lora --config model", "model: cannot be read", "existing YAML file"),
    Case("YAML with a wrong name", "lora --config a.yaml", "a.yaml: lr: ", "known here", {"a.yaml": "lr: 1"}),
    Case("a malformed mapping", f"{ON} good.json --map answer", "--map answer: not of", "question=title,answer=reply"),
    Case("a mapping of an unknown name", f"{ON} good.json --map anwser=output", "no name 'anwser'", "answer=output"),
    Case("a mapping to no column", f"{ON} good.json --map answer=reply", "--map answer=reply: no row", "input, output"),
]
DATA = [
    Case("a missing file", f"{ON} god.json", "god.json: no such file", "did you mean good.json"),
    Case("a file in no folder", f"{ON} no/a.json", "a.json: ", "no folder"),
    Case("a name that is too long", f"{ON} {'x' * 300}", "too long", "check the"),
    Case("a directory", f"{ON} model", "model: is a folder", "name the files"),
    Case("a pipe", f"{ON} pipe", "pipe: is no regular file", "file"),
    Case("a file that may not be read", f"{ON} good.json", "good.json: permission denied", "chmod", patch=unreadable),
    Case("the same file twice", f"{ON} good.json --data ./good.json", "named twice", "once"),
    Case("an empty file", f"{ON} a.json", "a.json: is empty (0 bytes)", "write the rows", {"a.json": ""}),
    Case("truncated JSON", f"{ON} a.json", "a.json:50: the file ends", "allow_damaged", {"a.json": GOOD[:700]}),
    Case("a list of numbers", f"{ON} a.json", "3 not_an_object", "data check a.json", {"a.json": "[1, 2, 3]"}),
    Case(
        "nested nulls",
        f"{ON} a.json",
        "is null",
        "write the text",
        {"a.json": '[{"messages": [{"role": "user", "content": null}]}]'},
    ),
    Case(
        "no usable row",
        f"{ON} a.json",
        "of 1 row none can be used",
        "data check",
        {"a.json": '[{"input": "Q", "output": null}]'},
    ),
    Case(
        "binary data",
        f"{ON} a.json",
        "a.json: is binary",
        "UTF-8",
        {"a.json": b"\x89PNG\r\n\x1a\n" + bytes(range(256))},
    ),
    Case("half UTF-16", f"{ON} a.json", "a.json: is not the text", "UTF-8", {"a.json": GOOD.encode("utf-16")[:-1]}),
    Case("no Parquet", f"{ON} a.parquet", "no readable Parquet", "again", {"a.parquet": "hello"}),
    Case(
        "a cut gzip", f"{ON} a.json.gz", "damaged or cut short", "fetch", {"a.json.gz": b"\x1f\x8b\x08\x00" + b"\0" * 9}
    ),
    Case(
        "a field of 5 MB",
        f"{ON} a.json",
        "5,000,000 characters",
        "split",
        {"a.json": json.dumps([{"input": "Q", "output": "A" * 5_000_000}])},
    ),
    Case("unknown columns", f"{ON} a.csv", "'name', 'age'", "--map question=NAME", {"a.csv": "name,age\nx,3\n"}),
    Case("preferences only", f"{ON} a.json", "no row has an answer", "supervised", {"a.json": PREFERENCES}),
    Case(
        "records that are all too long",
        f"{ON} good.json --set schedule.max_tokens=16",
        "of 20 records none",
        "raise schedule.max_tokens",
    ),
]
CHECKED = [
    Case("checking a missing file", "data check god.json", "god.json: no such file", "did you mean good.json"),
    Case("checking an empty file", "data check a.json", "a.json: is empty", "write the rows", {"a.json": ""}),
    Case("checking with an unknown flag", "data check good.json --fix", "No such option: --fix", "--help"),
    Case("checking numbers", "data check a.json", "not_an_object", '{"input"', {"a.json": "[1, 2]"}, code=1),
    Case("checking truncated JSON", "data check a.json", "json_truncated", "mend", {"a.json": GOOD[:700]}, code=1),
    Case(
        "checking a blank answer",
        "data check a.json",
        "empty_answer",
        "write the answer",
        {"a.json": '[{"input": "Q", "output": " "}]'},
        code=1,
    ),
    Case(
        "rejects that cannot be written",
        "data check a.json --rejects good.json/r",
        "good.json/r: ",
        "--rejects",
        {"a.json": "[1]"},
    ),
    Case(
        "rejects over the data",
        "data check a.json --rejects a.json",
        "would be written over this data file",
        "another name",
        {"a.json": "[1]"},
    ),
]
MODEL = [
    Case("no such folder", f"{WITH} ./no", "./no: there is no such folder", "a folder with config.json"),
    Case(
        "no such model, offline",
        f"{WITH} no-such/model",
        "no-such/model: is no folder here",
        "HF_HUB_OFFLINE",
        patch=offline,
    ),
    Case("a model's name that is too long", f"{WITH} {'x' * 300}", "File name too long", "shorten"),
    Case("no model's name", f"{WITH} 'no model!'", "no model!: ", "a folder with config.json"),
    Case("a GGUF file", f"{WITH} a.gguf", "a.gguf: is a GGUF file", "safetensors", {"a.gguf": b"GGUF"}),
    Case(
        "a model without config",
        f"{WITH} model",
        "model: has no config.json",
        "give a folder",
        model=without("config.json"),
    ),
    Case(
        "a broken config",
        f"{WITH} model",
        "config.json: cannot be read",
        "copy the file again",
        model=with_text("config.json", "{"),
    ),
    Case(
        "an unknown architecture",
        f"{WITH} model",
        "model: is of a family (no_such) that transformers",
        "a newer transformers may know it",
        model=with_text("config.json", '{"model_type": "no_such"}'),
    ),
    Case(
        "no causal language model",
        f"{WITH} model",
        "is a vit",
        "DeepSeek",
        model=with_text("config.json", '{"model_type": "vit"}'),
    ),
    Case(
        "a model without weights", f"{WITH} model", "model: has no weights", "model", model=without("model.safetensors")
    ),
    Case("pickled weights", f"{WITH} model", "only as .bin", "convert it to safetensors", model=pickled),
    Case("truncated weights", f"{WITH} model", "model.safetensors: is damaged", "copy or download", model=cut_short),
    Case(
        "no tokenizer",
        f"{WITH} model",
        "has no tokenizer",
        "tokenizer.json",
        model=without("tokenizer.json", "tokenizer_config.json"),
    ),
    Case(
        "no chat template",
        f"{WITH} model",
        "has no chat template",
        "chat_template.jinja",
        model=without("chat_template.jinja"),
    ),
    Case("an adapter as base", f"{WITH} model", "model: is an adapter", "its base is org/base", model=an_adapter),
]
OUTPUT = [
    Case("out is a file", f"{OUT} good.json", "good.json: is a file", "another --out"),
    Case("out lies in a file", f"{OUT} good.json/run", "good.json/run: Not a directory", "--out"),
    Case("out holds something else", f"{OUT} notes", "notes: is not empty", "another --out", {"notes/a.txt": "mine"}),
    Case(
        "out holds a run",
        f"{OUT} old",
        "old: already holds a run",
        "--resume old",
        {"old/manifest.json": '{"status": "failed"}'},
    ),
    Case("out has too long a name", f"{OUT} {'x' * 300}", "File name too long", "shorten"),
    Case(
        "a read-only file system",
        f"{OUT} place/run",
        "place/run: Read-only file system",
        "--out",
        patch=unwritable(errno.EROFS),
    ),
    Case(
        "a folder of somebody else",
        f"{OUT} place/run",
        "place/run: Permission denied",
        "--out",
        patch=unwritable(errno.EACCES),
    ),
    Case(
        "a full disk at once",
        f"{OUT} run",
        "run/.lock: No space left",
        "free some disk space",
        patch=full_after(0),
    ),
    Case(
        "a full disk a little later",
        f"{OUT} run",
        "run: no room is left",
        "--resume run",
        patch=full_after(4),
        leaves="run",
    ),
    Case(
        "a full disk in the end",
        f"{OUT} run --set samples=0",
        "run: no room is left",
        "--resume run",
        patch=full_at_the_adapter,
        leaves="run",
    ),
]
RESUMED = [
    Case("resuming nothing", "lora --resume nowhere", "nowhere: holds no run", "the folder of a run"),
    Case("resuming a model", "lora --resume model", "model: holds no run", "the folder of a run"),
    Case(
        "resuming with other settings",
        "lora --resume old --epochs 3",
        "--resume goes on with the run's own",
        "lora --resume old",
        {"old/manifest.json": "{}"},
    ),
    Case(
        "resuming what is finished",
        "lora --resume old",
        "old: this run is finished",
        "dsr1-tune chat old",
        {"old/manifest.json": '{"status": "finished"}'},
    ),
    Case(
        "resuming a corrupt manifest",
        "lora --resume old",
        "old/manifest.json: cannot be read",
        "start a new one",
        {"old/manifest.json": '{"status'},
    ),
    Case(
        "resuming a manifest of numbers",
        "lora --resume old",
        "old/manifest.json: is not an object",
        "start a new one",
        {"old/manifest.json": "[1]"},
    ),
    Case(
        "resuming without a config",
        "lora --resume old",
        "old/manifest.json: has no valid config",
        "start a new run",
        {"old/manifest.json": "{}"},
    ),
    Case(
        "resuming with changed data",
        "lora --resume old",
        "good.json: has changed",
        "restore the file",
        {"old/manifest.json": '{"config": {"data": {"files": ["good.json"]}}, "data_sha256": {"CWD/good.json": "0"}}'},
    ),
]
CASES = [*TYPED, *DATA, *CHECKED, *MODEL, *OUTPUT, *RESUMED]


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_says_where_and_how_to_mend_it(
    case: Case,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(tiny_base, "model")
    os.mkfifo("pipe")
    for name, content in {"good.json": GOOD, **case.files}.items():
        Path(name).parent.mkdir(exist_ok=True)
        content = content.replace("CWD", str(tmp_path)) if isinstance(content, str) else content
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if case.model:
        case.model(Path("model"))
    before = contents()
    monkeypatch.setattr(sys, "argv", ["dsr1-tune", *shlex.split(case.typed)])
    with monkeypatch.context() as patch:
        if case.patch:
            case.patch(patch)
        with pytest.raises(SystemExit) as left:  # anything else would be a traceback
            cli.main()
    printed = capsys.readouterr()
    said = printed.err if case.code == 2 else printed.out
    assert left.value.code == case.code, said
    assert case.says in said and case.mend in said, said
    assert "Traceback" not in printed.err
    if "Usage:" not in said and "error: " in said.lower():
        assert said.startswith(("error: ", "Error: "))
    expected = "a.rejects.jsonl" if case.code == 1 else case.leaves
    written = {name for name in contents().keys() - before.keys() if Path(name).parts[0] != expected}
    assert not written
    assert {name: text for name, text in contents().items() if name in before} == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".part", ".old"))]
    assert not Path("run/adapter").exists()


def test_there_are_more_than_30_kinds() -> None:
    assert len(CASES) == len({case.name for case in CASES}) > 60
