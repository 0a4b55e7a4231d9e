"""Merging: memory and time of `dsr1-tune merge`, of PEFT's merge_and_unload, and of copying the base's files.

    python benchmarks/merge.py [--layers 50] [--times 3] [--bases embedded]

Two bases: the embedded one (float32, 1.8 GB) and a sharded checkpoint in DeepSeek-V3's shape (bfloat16, 0.2 GB a
layer), each with an adapter of random numbers on attention, dense layers, shared and routed experts. Every way runs in
a process of its own, turn by turn; the time is that from reading to files that lie safely on the disk (fsync), without
Python's imports; memory is all that the process ever held, Python and its libraries (about 0.4 GB) included. The
certificate, which neither of the others has, is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20
WAYS = ("copy", "merge", "certified", "merge_and_unload")


def main() -> None:
    """Make both bases and adapters, and let every way take its turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--bases", nargs="+", choices=("embedded", "synthetic"), default=["embedded", "synthetic"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, base, adapter, out = options.one
        print(json.dumps(measure(way, Path(base), Path(adapter), Path(out))))
        return
    for kind in options.bases:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            base = embedded() if kind == "embedded" else synthetic(Path(scratch) / "base", options.layers)
            adapter = write_adapter(base, Path(scratch) / "adapter")
            compare(kind, base, adapter, Path(scratch) / "out", options.ways, options.times)


def compare(kind: str, base: Path, adapter: Path, out: Path, ways: list[str], times: int) -> None:
    """Print a line for each way: seconds, megabytes a second against the copy's, and peak memory."""
    from dsr1_tune.models.weights.checkpoint import Checkpoint

    checkpoint = Checkpoint(base)
    largest = max(checkpoint.spec(name).num_bytes for name in checkpoint.names)
    print(f"{kind}: {checkpoint.num_bytes / MIB:,.0f} MiB in {len(checkpoint.shards)} shards, ", end="")
    print(f"the largest tensor {largest / MIB:,.0f} MiB", flush=True)
    told: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(times):
        for way in ways:
            command = [sys.executable, __file__, "--one", way, str(base), str(adapter), str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            shutil.rmtree(out, ignore_errors=True)
            if done.returncode:
                print(f"  {way}: failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            told[way].append(json.loads(done.stdout.splitlines()[-1]))
    copy = statistics.median(one["seconds"] for one in told.get("copy", [])) if told.get("copy") else None
    for way, runs in told.items():
        if not runs:
            continue
        seconds = statistics.median(one["seconds"] for one in runs)
        ratio = f"{copy / seconds:5.2f} x the copy's speed" if copy else ""
        peak = max(one["peak"] for one in runs) / MIB
        rest = ", ".join(f"{one['seconds']:.1f}" for one in runs)
        print(f"  {way:17} {seconds:7.1f} s  {ratio}  peak {peak:8,.0f} MiB  (each: {rest})", flush=True)


def measure(way: str, base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """One way once, in this process."""
    work = {"copy": _copy, "merge": _merge, "certified": _certified, "merge_and_unload": _by_peft}[way]
    go = work(base, adapter, out)
    start = time.perf_counter()
    seconds = go()
    took = time.perf_counter() - start if seconds is None else seconds
    return {"seconds": took, "peak": peak_bytes()}


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _copy(base: Path, adapter: Path, out: Path) -> Callable[[], float | None]:
    def go() -> None:
        shutil.copytree(base, out)
        for file in out.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())

    return go


def _merge(base: Path, adapter: Path, out: Path) -> Callable[[], float | None]:
    import torch

    from dsr1_tune.export.weights.source import open_source
    from dsr1_tune.models.weights.checkpoint import write_weights

    def go() -> None:
        out.mkdir()
        write_weights(open_source(adapter).weights, out, num_threads=torch.get_num_threads())

    return go


def _certified(base: Path, adapter: Path, out: Path) -> Callable[[], float | None]:
    from dsr1_tune.export import merge

    return lambda: merge.run(adapter, out) and None


def _by_peft(base: Path, adapter: Path, out: Path) -> Callable[[], float | None]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def go() -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(out)
        for file in out.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())

    return go


def embedded() -> Path:
    """The folder of the embedded base."""
    from dsr1_tune.models.embedded import ensure

    return ensure()


def synthetic(folder: Path, num_layers: int) -> Path:
    """A checkpoint of random numbers, with the embedded base's tokenizer."""
    from synthetic import write_checkpoint

    write_checkpoint(folder, num_layers)
    for file in embedded().iterdir():
        if "token" in file.name or "template" in file.name:
            shutil.copyfile(file, folder / file.name)
    return folder


def write_adapter(base: Path, folder: Path) -> Path:
    """An adapter of rank 8 with small random numbers on everything that `lora` trains."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from dsr1_tune.config import Adapter
    from dsr1_tune.models.meta import meta_model
    from dsr1_tune.models.trained.lora import add_lora

    with torch.device("meta"):
        model: Any = add_lora(meta_model(AutoConfig.from_pretrained(base)), Adapter())
    state = get_peft_model_state_dict(model)
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    factors = {name: torch.randn(shape.shape, generator=generator) * 0.01 for name, shape in state.items()}
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    return folder


if __name__ == "__main__":
    main()
