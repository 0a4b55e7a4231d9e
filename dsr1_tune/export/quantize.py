"""`quantize`: a model, or a run merged while it is read, in a format of fewer bits; every expert is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from dsr1_tune.atomic import new_folder
from dsr1_tune.config.export import Quantise
from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.export import lineage
from dsr1_tune.export.formats import fp8, gptq, int8, nf4, w4a16
from dsr1_tune.export.gguf import write as gguf
from dsr1_tune.export.lineage import Stage
from dsr1_tune.export.weights.accounting import Group, Quantised, chosen
from dsr1_tune.export.weights.progress import num_bytes
from dsr1_tune.export.weights.source import Source, open_source
from dsr1_tune.models.folder import local_path
from dsr1_tune.runs.console import Narrator, quiet_libraries
from dsr1_tune.runs.environment import package_versions

Write = Callable[[Source, Path, Quantise, Narrator], Quantised]
WRITERS: dict[str, Write] = {
    "nf4": nf4.write,
    "int8": int8.write,
    "fp8": fp8.write,
    "w4a16": w4a16.write,
    "gguf": gguf.write,
}
"""How each format of `--to` is written."""


def run(source: Path | str, out: Path | None, quantise: Quantise, console: Console | None = None) -> Path:
    """Write the model or run at `source` to the folder `out`, quantised; without `out` beside it, named by the format.

    Whole or not at all. Raises TuneError for a source that cannot be used, a format that cannot take it, an `out` that
    is there already, and where fewer matrices of routed experts were quantised than there are.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    if quantise.to == "none":
        raise ConfigError("quantise.to: none leaves the model as it is", hint="give --to nf4, int8, w4a16, fp8 or gguf")
    opened = open_source(source, narrator.say)
    folder = out or _beside(source, quantise)
    _check_parts(opened, quantise)
    what = "every layer" if quantise.all else "routed experts"
    narrator.stage(f"Quantise {what} of {opened.name} to {_format(quantise)}")
    write = gptq.write if (quantise.to, quantise.method) == ("w4a16", "gptq") else WRITERS[quantise.to]
    with new_folder(folder) as part:
        quantised = write(opened, part, quantise, narrator)
        _check_experts(quantised.groups, quantise)
        before, after = num_bytes(opened.weights), _size_of(part)
        lineage.write(part, (*opened.stages, _stage(quantise, quantised, before, after)))
    _show(narrator, quantised.groups)
    narrator.say(f"{before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} MiB after ({after / before:.0%})")
    return folder


NEXT = {
    "nf4": "It is for dsr1-tune, which holds it in 4 bits; transformers alone refuses experts in this layout.\n"
    "Talk to it with: dsr1-tune chat {folder}",
    "int8": "It is for dsr1-tune, which holds it in 8 bits; transformers alone fails on experts in this layout.\n"
    "Talk to it with: dsr1-tune chat {folder}",
    "w4a16": "Serve it with vLLM or SGLang: vllm serve {folder}",
    "fp8": "vLLM, SGLang and transformers read it. First: dsr1-tune check-serve {folder} --engine vllm",
    "gguf": "It is for llama.cpp and Ollama; the Modelfile lies beside it.",
}


def _format(quantise: Quantise) -> str:
    """For people, and the end of a folder's name: nf4, int8, fp8, w4a16, w4a16-gptq, gguf-q4_k_m."""
    if quantise.to == "gguf":
        return f"gguf-{quantise.gguf}"
    return f"{quantise.to}-{quantise.method}" if quantise.to == "w4a16" and quantise.method != "rtn" else quantise.to


def _beside(source: Path | str, quantise: Quantise) -> Path:
    place = local_path(str(source))
    if not place.exists():  # a model on the Hub
        return Path(f"{place.name}-{_format(quantise)}")
    if place.name in ("", ".."):  # a folder named by where it lies
        place = place.resolve()
    return place.with_name(f"{place.name}-{_format(quantise)}")


def _check_parts(source: Source, quantise: Quantise) -> None:
    """Refuse, before anything is written, a model that has nothing of what is to be quantised."""
    if quantise.to != "gguf" and not chosen(source.layout, quantise.all):
        raise ModelError(
            f"{source.name}: has no routed experts, and only those are quantised unless told otherwise",
            hint="add --all: every layer but router, embeddings, norms and output head",
        )


def _check_experts(groups: tuple[Group, ...], quantise: Quantise) -> None:
    """Raise ModelError if matrices of routed experts were left out."""
    for group in groups:
        is_as_it_was = quantise.to == "gguf" and quantise.gguf in ("bf16", "f16")
        if group.part == "routed_experts" and group.num_quantised < group.num_tensors and not is_as_it_was:
            raise ModelError(
                f"{group.num_tensors - group.num_quantised} of {group.num_tensors} matrices of routed experts "
                "were not quantised",
                hint="please report it with the model's name",
            )


def _size_of(folder: Path) -> int:
    """Bytes of the weights that were written."""
    files = (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".gguf"))
    return sum(path.stat().st_size for path in files)


def _stage(quantise: Quantise, quantised: Quantised, before: int, after: int) -> Stage:
    groups = [
        {**asdict(group), "bits": round(group.bits, 3), "share": round(group.share, 4)} for group in quantised.groups
    ]
    facts = {"settings": quantise.model_dump(mode="json"), "bytes_before": before, "bytes_after": after}
    return Stage("quantize", {"to": quantise.to, **facts, "groups": groups, **quantised.facts,
                              "versions": package_versions()})  # fmt: skip


def _show(narrator: Narrator, groups: tuple[Group, ...]) -> None:
    """What was done to each part."""
    table = Table(title="What is quantised", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("part", no_wrap=True)
    for name in ("matrices", "quantised", "bits", "error", "worst error"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        numbers = (f"{group.bits:.2f}", f"{group.relative_error:.2%}", f"{group.worst_error:.2%}")
        table.add_row(
            *(group.part.replace("_", " "), f"{group.num_tensors:,}", f"{group.share:.0%}"),
            *(numbers if group.num_quantised else ("", "", "")),
            style="" if group.num_quantised else "dim",
        )
    narrator.console.print(table)
