"""What is at the path, or behind the name, that a user gives as a model: asked once, answered by type."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, NoReturn

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded
from dsr1_tune.models.weights.index import read_json

ADAPTER_CONFIG, EXPERTS_CONFIG, REWARD_CONFIG = "adapter_config.json", "experts_config.json", "reward_config.json"
"""The file that makes a folder a PEFT adapter, trained experts, or a reward model."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def local_path(name: str) -> Path:
    """`name` as a path here, ~ meaning home; one that names an unknown user (~nobody) stays as it is."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's raises for an unknown user


def beside(name: Path | str, label: str) -> Path:
    """Where what is made of a model goes, if nothing else is said: beside its folder, `label` behind the name."""
    place = local_path(str(name))
    if not place.exists():  # a model on the Hub
        return Path(f"{place.name}-{label}")
    if place.name in ("", ".."):  # a folder named by where it lies
        place = place.resolve()
    return place.with_name(f"{place.name}-{label}")


def copy_command(name: Path | str) -> str:
    """The command that makes a 16-bit copy of a quantized model."""
    return f"dsr1-tune dequantize {quote(str(name))} --out {quote(str(beside(name, 'bf16')))}"


@dataclass(frozen=True)
class ModelRef:
    """A model as the user names it, and where it is; `ModelRef.resolve` gives one of the classes below."""

    name: str
    path: Path
    """The folder (or .gguf file) that was found; of a Hub id or a missing path the name itself."""

    @staticmethod
    def resolve(model: str | Path | None) -> ModelRef:
        """Find out what `model` is from the names of files alone; None is the embedded base.

        What a run left (a reward model, an adapter, experts) is looked for in its subfolders too, and comes before
        a .gguf file in the same folder.
        """
        if model is None:
            return Embedded(embedded.NAME, Path(embedded.NAME))
        name, path = str(model), local_path(str(model))
        for kind, file, folders in _LEFT_BY_RUNS:
            for place in (path, *(path / folder for folder in folders)):
                if (place / file).is_file():
                    return kind(name, place)
        holds_gguf = path.is_dir() and not any(path.glob("*.safetensors")) and any(path.glob("*.gguf"))
        if holds_gguf or (path.suffix == ".gguf" and path.is_file()):
            return Gguf(name, path)
        if (path / "manifest.json").is_file():
            has_model, is_model = ((place / "config.json").is_file() for place in (path / "model", path))
            if has_model or not is_model:
                return Run(name, path)
        if path.exists():
            return Folder(name, path)
        if name == embedded.NAME:
            return Embedded(name, path)
        is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or not _HUB_ID.fullmatch(name)
        return Missing(name, path) if is_path else Hub(name, path)


class Embedded(ModelRef):
    """The base that comes with the toolkit."""


class Hub(ModelRef):
    """A name that may be a model's on the Hugging Face Hub; the Hub has not been asked."""


class Missing(ModelRef):
    """A name that can only be meant as a path, where there is nothing."""


class Folder(ModelRef):
    """A folder (or file) that is none of the others: a model, if it has a config.json."""


class Gguf(ModelRef):
    """A .gguf file, or a folder that holds weights only as .gguf."""

    @property
    def file(self) -> Path:
        """The one .gguf file. Raises ModelError if the folder holds several."""
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.gguf"))
        if len(files) > 1:
            hint = f"name one of them, such as {files[0]}"
            raise ModelError(f"{self.path}: holds {len(files)} .gguf files", hint=hint)
        return files[0]


class Trained(ModelRef):
    """What a run trained over a base that is stored elsewhere."""

    @property
    def base(self) -> Base:
        """The base that it was trained on. Raises ModelError where nothing says which."""
        return base_of(self.path)


class Adapter(Trained):
    """A PEFT adapter's folder, by itself or in a run folder."""


class Experts(Trained):
    """A folder of trained experts, by itself or in a run folder."""


class RewardModel(ModelRef):
    """A reward model's folder, by itself or in a run folder: it scores answers and writes none."""

    def refuse(self) -> NoReturn:
        """Raise the ModelError for a command that needs a model that writes answers."""
        raise ModelError(
            f"{self.name}: is a reward model: it scores answers, and writes none",
            hint=f"score rows with it: dsr1-tune score {self.name} rows.jsonl",
        )


class Run(ModelRef):
    """A run folder that holds neither adapter nor experts: that of a full fine-tuning, or of an unfinished run."""

    @property
    def model(self) -> Path | None:
        """The folder of the whole model that was trained; None if there is none (yet)."""
        return self.path / "model" if (self.path / "model" / "config.json").is_file() else None


_LEFT_BY_RUNS: tuple[tuple[type[ModelRef], str, tuple[str, ...]], ...] = (
    (RewardModel, REWARD_CONFIG, ("adapter", "model")),  # its adapter alone would write answers that it never learned
    (Adapter, ADAPTER_CONFIG, ("adapter",)),
    (Experts, EXPERTS_CONFIG, ("experts",)),
)


def find_adapter(model: str | Path | None) -> Adapter | None:
    """The adapter that `model` is or holds; None for anything else. Raises ModelError for a reward model."""
    ref = ModelRef.resolve(model)
    if isinstance(ref, RewardModel):
        ref.refuse()
    return ref if isinstance(ref, Adapter) else None


def manifest_in(folder: Path) -> dict[str, Any]:
    """What a run folder's manifest says; nothing where there is none. Raises ModelError for a damaged one."""
    file = folder / "manifest.json"
    return read_json(file) if file.is_file() else {}


def template_kwargs_of(place: Path) -> dict[str, Any]:
    """The chat template's arguments with which a model was trained to be asked; {} where nothing is known of that.

    `place` is a run folder, an adapter or model in one, a folder that was exported, or a file in one.
    """
    if not place.exists():
        return {}
    place = place.resolve()
    folder = place if place.is_dir() else place.parent
    told: Any = {}
    with suppress(ModelError):  # what is no run's is not for us to judge
        told = manifest_in(folder) or manifest_in(folder.parent)
    if not (isinstance(told, dict) and told.get("command")) and (file := folder / "lineage.json").is_file():
        stages = read_json(file).get("stages")
        facts = [stage.get("facts") for stage in stages if stage.get("name") == "train"] if stages else []
        told = facts[-1] if facts and isinstance(facts[-1], dict) else {}
    kwargs = told.get("template_kwargs") if isinstance(told, dict) else None
    return dict(kwargs) if isinstance(kwargs, dict) else {}


def base_of(folder: Path) -> Base:
    """The base that an adapter, or experts, were trained on: as the run's manifest says, else as their config does."""
    manifest = manifest_in(folder.parent)
    base = manifest.get("base")
    if isinstance(base, dict) and isinstance(base.get("name"), str):
        # A folder has no revision, and may have been named from another working directory.
        name = base["name"] if base.get("revision") else str(base.get("folder") or base["name"])
        return _base(name, base.get("revision"), **_settings_in(manifest))
    own = (folder / name for name in (ADAPTER_CONFIG, EXPERTS_CONFIG))
    config = next((read_json(file) for file in own if file.is_file()), {})
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{folder}: does not say which base it belongs to",
            hint=f"write the base's folder or Hub id as base_model_name_or_path into its {ADAPTER_CONFIG}",
        )
    return _base(name, config.get("revision"))


def _settings_in(manifest: dict[str, Any]) -> dict[str, Any]:
    """The number format and the context that a run used its base with, where its manifest says so."""
    config = manifest.get("config")
    base = config.get("base") if isinstance(config, dict) else None
    if not isinstance(base, dict):
        return {}
    dtype, context = base.get("dtype"), base.get("context")
    settings: dict[str, Any] = {"dtype": dtype} if dtype in ("float32", "bfloat16", "float16") else {}
    return settings | ({"context": context} if isinstance(context, int) and context > 0 else {})


def _base(name: str, revision: str | None, **settings: Any) -> Base:
    """A base by the name it was recorded under; the embedded base may be in another cache by now."""
    if Path(name).name.startswith(embedded.FOLDER_PREFIX) or name == embedded.NAME:
        return Base(**settings)
    return Base(model=name, revision=None if Path(name).exists() else revision, **settings)
