"""What an export starts from: a model's weights read one tensor at a time, and all that is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError, RunError
from dsr1_tune.export import lineage
from dsr1_tune.export.lineage import Stage
from dsr1_tune.export.weights.base_copy import check_copy
from dsr1_tune.export.weights.merged import Merged, Plain, Together
from dsr1_tune.export.weights.updates import Updates, of_adapter, of_experts, of_model
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.load import Located, locate, with_weights
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import (
    Adapter,
    Experts,
    ModelRef,
    RewardModel,
    base_of,
    beside,
    copy_command,
    local_path,
)
from dsr1_tune.models.weights.apart import Apart
from dsr1_tune.models.weights.checkpoint import Checkpoint, Weights
from dsr1_tune.models.weights.index import read_json
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.models.weights.stored_format import StoredFormat, quant_method
from dsr1_tune.moe.anatomy import router_words
from dsr1_tune.runs.folder import FINISHED, RunFolder

MERGED_INTO = (StoredFormat.PLAIN, StoredFormat.BLOCK_FP8)
"""The formats that what was trained can be added to."""


@dataclass(frozen=True)
class Source:
    """A model that is stored in a folder, or is made of a base and what a run trained while it is read."""

    name: str
    """For people: the folder or the run."""
    weights: Weights
    """Its tensors in 16 or 32 bits, under the names that they have on disk; block-FP8 is dequantized."""
    folder: Path
    """Where config.json, tokenizer and the like are."""
    config: Mapping[str, Any]
    """What its config.json is to say, but for what a quantizer adds."""
    meta_model: nn.Module
    """The model without weights."""
    layout: Layout
    """Which stored tensor is which part of it: `layout.part(name)`, `layout.is_matrix(name)`."""
    stages: tuple[Stage, ...]
    """Where it came from, so far."""
    run: RunFolder | None
    """The run that its training and held-out rows come from, where it is known and still there."""

    def taken_apart(self, say: Callable[[str], None]) -> Source:
        """The same with a matrix for each expert, where one tensor holds those of a layer."""
        if not self.layout.together:
            return self
        say(
            f"{self.config.get('model_type')} stores the experts of a layer in one tensor; they are written one by one "
            f"({self.layout.together[0].matrices[0].stored}): dsr1-tune check-serve says which engine reads that."
        )
        return replace(self, weights=Apart(self.weights, self.layout), layout=self.layout.taken_apart())


def open_source(path: Path | str, progress: Callable[[str], None] | None = None) -> Source:
    """A model folder as it is, or a finished run (or its adapter) merged into its base while it is read.

    Raises ModelError for anything that is neither, or is quantized already, and RunError for a run that is not
    finished.
    """
    if trained := find_trained(path):
        return _merged_source(trained, progress)
    folder = local_path(str(path))
    located = locate(Base(model=str(path)), progress, is_loaded=False)
    base = open_base(located)
    earlier = lineage.read(folder) if folder.is_dir() else None
    stages = earlier.stages if earlier else (Stage("model", {"name": located.name, "revision": located.revision}),)
    return Source(str(path), base.plain, base.folder, base.config, base.meta_model, base.layout, stages, run_of(stages))


def _merged_source(trained: Trained, progress: Callable[[str], None] | None) -> Source:
    """What a run trained, merged into its base while it is read."""
    base, updates = open_trained(trained, progress)
    if trained.run and (changed := trained.run.changed_outputs()):
        raise RunError(
            f"{trained.run.path / changed[0]}: is not what the run saved", hint="copy the run's folder again"
        )
    # Only a merge that was written can be certified.
    stages = (*stages_of(trained), Stage("merge", {"certificate": None, "remark": "merged while it was read"}))
    weights = Merged(base.plain, updates)
    return Source(
        str(trained.path), weights, base.folder, base.config, base.meta_model, base.layout, stages, trained.run
    )


def stages_of(trained: Trained) -> tuple[Stage, ...]:
    """Where what was trained came from."""
    if trained.run:
        return lineage.of_run(trained.run)
    return (Stage("adapter", {"folder": str(trained.folder.absolute())}),)


@dataclass(frozen=True)
class Trained:
    """What a run left: the folder of an adapter, of experts or of a whole model, and the run if it is known."""

    path: Path
    kind: Literal["adapter", "experts", "model"]
    folder: Path
    run: RunFolder | None

    @property
    def is_qlora(self) -> bool:
        """Whether it was trained over a base in 4 bits."""
        return self.run is not None and self.run.manifest().get("command") == "qlora"


def find_trained(path: Path | str) -> Trained | None:
    """What was trained at `path`: a run folder, an adapter, or trained experts; None for anything else.

    Raises RunError for a run that is not finished.
    """
    place = local_path(str(path))
    run = RunFolder(place)
    if run.manifest_file.is_file():
        manifest = run.manifest()
        if "status" in manifest and manifest["status"] != FINISHED:
            raise RunError(
                f"{path}: is a run that is not finished ({manifest['status']})",
                hint=f"go on with it: dsr1-tune {manifest.get('command', 'lora')} --resume {path}",
            )
    found = ModelRef.resolve(place)
    if isinstance(found, RewardModel):
        found.refuse()
    if isinstance(found, Adapter | Experts):
        kind: Literal["adapter", "experts"] = "adapter" if isinstance(found, Adapter) else "experts"
        around = RunFolder(found.path.parent)
        return Trained(place, kind, found.path, around if around.manifest_file.is_file() else None)
    if run.manifest_file.is_file() and (run.model / "config.json").is_file():
        return Trained(place, "model", run.model, run)
    if run.manifest_file.is_file() and "command" in run.manifest():
        raise RunError(f"{path}: this run left neither adapter, experts nor model", hint="copy the run's folder again")
    return None


def run_of(stages: Sequence[Stage]) -> RunFolder | None:
    """The run that a lineage tells of, where its folder is still there."""
    for stage in stages:
        if stage.name == "train" and (run := RunFolder(Path(str(stage.facts.get("run"))))).manifest_file.is_file():
            return run
    return None


@dataclass(frozen=True)
class OpenBase:
    """A base, opened for reading tensor by tensor."""

    located: Located
    plain: Plain
    folder: Path
    config: Mapping[str, Any]
    """What the config.json of a model in 16 bits is to say."""
    stored_config: Mapping[str, Any]
    """What config.json says."""
    meta_model: nn.Module
    layout: Layout


def open_base(located: Located) -> OpenBase:
    """Open the weights of a base; they are downloaded where they are only on the Hub.

    Raises ModelError if it is stored in a quantized format other than block-FP8, or its tensors are not known.
    """
    folder = with_weights(located)
    config = read_json(folder / "config.json")
    stored = ModelFolder(folder, located.name).stored_format
    if stored not in MERGED_INTO:
        raise ModelError(
            f"{located.name}: is quantized already ({quant_method(config)})",
            hint=f"give the run that it came from, or make a 16-bit copy of it: {copy_command(located.name)}",
        )
    block_size = None
    if stored is StoredFormat.BLOCK_FP8:
        rows, cols = config["quantization_config"]["weight_block_size"]
        block_size = (int(rows), int(cols))
    plain = Plain(Checkpoint(folder), block_size)
    model = meta_model(located.config)
    told = router_words(located.config) | _as_stretched(config, located.config)
    layout = Layout.of(model, plain.base.names)
    if layout.apart:
        plain, layout = Together(plain.base, block_size, layout), layout.put_together()
    return OpenBase(located, plain, folder, told, config, model, layout)


def open_trained(
    trained: Trained, progress: Callable[[str], None] | None = None, copy: str | None = None
) -> tuple[OpenBase, Updates]:
    """The base of what was trained, and the updates to it. Raises ModelError where they do not go together.

    Of a quantized base it is `copy`, its 16-bit copy, that is opened; one of another base is refused.
    """
    recorded = base_of(trained.folder)
    located = locate(recorded, progress, is_loaded=False)
    if copy is not None:
        quantized = located
        located = locate(recorded.model_copy(update={"model": copy, "revision": None}), progress, is_loaded=False)
        check_copy(quantized, located, progress or (lambda line: None))
    elif StoredFormat.of(located.config) not in MERGED_INTO:
        raise ModelError(
            f"{trained.path}: was trained over {located.name}, which is quantized ({quant_method(located.config)})",
            hint=f"merge it into a 16-bit copy of that: {copy_command(located.name)}, then dsr1-tune merge "
            f"{trained.path} --base {beside(located.name, 'bf16')}",
        )
    base = open_base(located)
    # PEFT changes the model that it is given.
    model = meta_model(base.located.config)
    if trained.kind == "adapter":
        settings = trained.run.manifest().get("config", {}) if trained.run else {}
        routers_move = settings.get("router", {}).get("mode") in ("train", "aux_loss")
        return base, of_adapter(trained.folder, model, base.layout, routers_move)
    if trained.kind == "experts":
        return base, of_experts(trained.folder, model, base.layout)
    return base, of_model(trained.folder, base.plain, base.layout, model)


def _as_stretched(config: dict[str, Any], read: Any) -> dict[str, Any]:
    """config.json as it is to be: without block-FP8, and with the context that a run stretched its base to."""
    tree = {name: value for name, value in config.items() if name != "quantization_config"}
    known = config.get("max_position_embeddings")
    if known is None or known == read.max_position_embeddings:
        return tree
    tree |= {"max_position_embeddings": read.max_position_embeddings, "rope_parameters": dict(read.rope_parameters)}
    # Older engines read the one name, newer ones the other.
    scaling = {name: value for name, value in read.rope_parameters.items() if name != "rope_theta"}
    return tree | {"rope_scaling": scaling, "rope_theta": read.rope_parameters["rope_theta"]}
