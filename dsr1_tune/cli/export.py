"""`dsr1-tune merge`, `quantize`, `dequantize`, `export`, `convert-adapter`: what makes a model or adapter of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import ConfigFile, MaxGeneralDrop, MaxLossIncrease, MinAgreement, Sets, To, compose, gates


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or an adapter's folder.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write. [default: RUN-merged]")] = None,
    base: Annotated[str | None, typer.Option(help="The 16-bit copy of a quantized base, to merge into.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Merge a run into its base, tensor by tensor in a gigabyte of memory, and certify that nothing was lost.

    A merge that fails its certificate leaves nothing. What was trained over a quantized base goes into a copy of that,
    which dsr1-tune dequantize makes. Settings: merge.fp8, merge.rows, merge.streamed, as `dsr1-tune settings` tells.
    """
    from dsr1_tune.config import ExportRun

    settings = compose(ExportRun, config, sets, {"merge.base": base})

    from dsr1_tune.export.merge import run as run_merge

    run = run if run.name not in ("", "..") else run.resolve()  # a folder named by where it lies
    folder = run_merge(run, out or run.with_name(f"{run.name}-merged"), settings.merge)
    typer.echo(f"\nThe merged model is in {folder}. Fewer bits: dsr1-tune quantize {folder} --to nf4")


def quantize(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model's folder or Hub id, or a finished run.")],
    to: Annotated[
        str | None, typer.Option(metavar="nf4|int8|w4a16|fp8|gguf", help="The format. [default: nf4]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write. [default: SOURCE-FORMAT]")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every layer, not only the routed experts.")] = False,
    method: Annotated[str | None, typer.Option(metavar="rtn|gptq", help="For w4a16. [default: rtn]")] = None,
    gguf: Annotated[str | None, typer.Option(metavar="TYPE", help="For gguf, such as q8_0. [default: q4_k_m]")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Quantize the routed experts (with --all every layer) of a model; a run is merged into its base on the way.

    nf4 and int8 are for dsr1-tune itself, w4a16 and fp8 for vLLM and SGLang, gguf for llama.cpp and Ollama. Router,
    embeddings, norms and output head stay as they are; in gguf what is not quantized takes 8 bits, but for router and
    norms. --set quantize.group_size=64 and --config say the rest.
    """
    from dsr1_tune.config import ExportRun

    flags = {"quantize.to": to, "quantize.all": all_ or None, "quantize.method": method, "quantize.gguf": gguf}
    settings = compose(ExportRun, config, sets, flags)

    from dsr1_tune.export.quantize import next_step, run

    folder = run(source, out, settings.quantize)
    typer.echo(f"\nThe model is in {folder}. {next_step(settings.quantize, folder)}")


def dequantize(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A quantized model's folder or Hub id.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write. [default: SOURCE-bf16]")] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="bfloat16|float16|float32", help="[default: as its config.json says]")
    ] = None,
) -> None:
    """Write a 16-bit copy of a quantized model, one tensor at a time; it can be trained and merged into.

    Reads GPTQ, AWQ, MXFP4 (gpt-oss), NVFP4, FP8 and int8 with scales for tensors, rows, groups or blocks,
    compressed-tensors' and ModelOpt's layouts of those, and what dsr1-tune quantize writes. All other files are kept.
    """
    from dsr1_tune.errors import ConfigError

    if dtype not in (None, "bfloat16", "float16", "float32"):
        raise ConfigError(f"--dtype: {dtype} is unknown", hint="--dtype bfloat16, float16 or float32")

    from dsr1_tune.export.dequantize import run
    from dsr1_tune.models.ref import beside

    folder = run(source, out or beside(source, "bf16"), dtype)
    typer.echo(f"\nThe model is in {folder}. Train it: dsr1-tune lora --model {folder} --data FILE")


def export(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="The folder of a finished run.")] = None,
    to: To = None,
    out: Annotated[Path | None, typer.Option(help="Where versions are kept. [default: exports/<run>]")] = None,
    max_loss_increase: MaxLossIncrease = None,
    min_agreement: MinAgreement = None,
    max_general_drop: MaxGeneralDrop = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Merge, quantize, compare and write the card; only what passes the gates becomes OUT/current.

    Exit code 1 if a gate is missed: the version goes, its comparison stays in OUT/missed. Whatever happens, the
    version that was current stays current until a better one is whole.
    """
    from dsr1_tune.config import ExportRun

    flags = {"run": run, "quantize.to": to, "out": out, **gates(max_loss_increase, min_agreement, max_general_drop)}
    settings = compose(ExportRun, config, sets, flags)

    from dsr1_tune.export.export import run as run_export

    run_export(settings)


def convert_adapter(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or the run that holds it.")],
    to: Annotated[
        str, typer.Option(help="per-expert for vLLM, SGLang and older PEFT; peft-fused for PEFT with transformers 5.")
    ] = "per-expert",
    out: Annotated[Path | None, typer.Option(help="The folder to write. [default: ADAPTER-<to>]")] = None,
) -> None:
    """Unfuse an adapter's LoRA A and B of fused experts into a pair for each expert, or fuse them again, bit for bit.

    Of the base only its files' names, config.json and tokenizer are read.
    """
    from dsr1_tune.errors import ConfigError

    if to not in ("per-expert", "peft-fused"):
        raise ConfigError(f"--to: {to} is unknown", hint="--to per-expert or --to peft-fused")

    from dsr1_tune.export.convert_adapter import run

    run(adapter, to, out or adapter.with_name(f"{adapter.absolute().name}-{to}"))  # type: ignore[arg-type]
