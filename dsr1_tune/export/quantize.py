"""`quantize`: a model, or a run merged while it is read, in a format of fewer bits; every expert is accounted for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from dsr1_tune.atomic import new_folder
from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.export import lineage
from dsr1_tune.export.formats import registry
from dsr1_tune.export.lineage import Stage
from dsr1_tune.export.weights.accounting import Group, Quantized, chosen
from dsr1_tune.export.weights.progress import num_bytes
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.ref import beside
from dsr1_tune.runs.console import Narrator, plain_table, quiet_libraries
from dsr1_tune.runs.environment import package_versions


def run(source: Path | str, out: Path | None, quantize: Quantize, console: Console | None = None) -> Path:
    """Write the model or run at `source` to the folder `out`, quantized; without `out` beside it, named by the format.

    Whole or not at all. Raises TuneError for a source that cannot be used, a format that cannot take it, an `out` that
    is there already, and where fewer matrices of routed experts were quantized than there are.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    form = registry.pick(quantize)
    if form is None:
        names = ", ".join(registry.formats())
        raise ConfigError("quantize.to: none leaves the model as it is", hint=f"give --to one of {names}")
    opened = open_source(source, narrator.say)
    folder = out or beside(source, form.label(quantize))
    if not form.takes_every_model and not chosen(opened.layout, quantize.all):
        raise ModelError(
            f"{opened.name}: has no routed experts, and only those are quantized unless told otherwise",
            hint="add --all: every layer but router, embeddings, norms and output head",
        )
    what = "every layer" if quantize.all else "routed experts"
    narrator.stage(f"Quantize {what} of {opened.name} to {form.label(quantize)}")
    with new_folder(folder) as part:
        quantized = form.write(opened, part, quantize, narrator)
        _check_experts(quantized.groups, are_kept=form.keeps(quantize))
        files = (path for path in part.rglob("*") if path.suffix in (".safetensors", ".gguf"))
        before, after = num_bytes(opened.weights), sum(path.stat().st_size for path in files)
        lineage.write(part, (*opened.stages, _stage(quantize, quantized, before, after)))
    _show(narrator, quantized.groups)
    narrator.say(f"{before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} MiB after ({after / before:.0%})")
    return folder


def next_step(quantize: Quantize, folder: Path) -> str:
    """What to do with the result."""
    form = registry.pick(quantize)
    return form.next_step.format(folder=folder) if form else ""


def _check_experts(groups: tuple[Group, ...], are_kept: bool) -> None:
    """Raise ModelError if matrices of routed experts were left out, unless all are kept in 16 bits."""
    for group in groups:
        if group.part == "routed_experts" and group.num_quantized < group.num_tensors and not are_kept:
            raise ModelError(
                f"{group.num_tensors - group.num_quantized} of {group.num_tensors} matrices of routed experts "
                "were not quantized",
                hint="please report it with the model's name",
            )


def _stage(quantize: Quantize, quantized: Quantized, before: int, after: int) -> Stage:
    groups = [
        {**asdict(group), "bits": round(group.bits, 3), "share": round(group.share, 4)} for group in quantized.groups
    ]
    facts = {"settings": quantize.model_dump(mode="json"), "bytes_before": before, "bytes_after": after}
    return Stage("quantize", {"to": quantize.to, **facts, "groups": groups, **quantized.facts,
                              "versions": package_versions()})  # fmt: skip


def _show(narrator: Narrator, groups: tuple[Group, ...]) -> None:
    """What was done to each part."""
    columns = ("matrices", "quantized", "bits", "error", "worst error")
    table = plain_table("What is quantized", "part", *columns)
    table.columns[0].no_wrap = True
    for group in groups:
        numbers = (f"{group.bits:.2f}", f"{group.relative_error:.2%}", f"{group.worst_error:.2%}")
        table.add_row(
            *(group.part.replace("_", " "), f"{group.num_tensors:,}", f"{group.share:.0%}"),
            *(numbers if group.num_quantized else ("", "", "")),
            style="" if group.num_quantized else "dim",
        )
    narrator.console.print(table)
