"""What loading a base takes: by one process, and by each of several that share the experts out.

    python benchmarks/loading.py [--layers 21] [--processes 2]

A sharded bfloat16 checkpoint is loaded in 4 bits and in 16, a block-FP8 one in 4 bits. Each load runs in a process of
its own, which samples its anonymous memory every few milliseconds; pages of mapped files count apart, as the kernel
takes them back when memory is wanted, and so do the bytes that are read without a map. The claims: peak ≤ what the
model takes + 2 × the largest weight as it is computed with (a layer's fused gate and up projections) + a constant; and
one of N processes holds and reads 1/N of the experts, and what belongs to no expert.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path

MIB = 2**20
LOADS = (("bfloat16", "4 bits"), ("bfloat16", "16 bits"), ("block-FP8", "4 bits"))
COLUMNS = "model", "experts", "largest", "peak", "over", "mapped", "read"


def main() -> None:
    """Write, load and tell, for each kind of checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=21, help="202 MB each in bfloat16")
    parser.add_argument("--processes", type=int, default=2, help="among which the experts are shared out")
    parser.add_argument("--kinds", nargs="+", choices=("bfloat16", "block-FP8"), default=["bfloat16", "block-FP8"])
    parser.add_argument("--load", nargs=3, metavar=("FOLDER", "BITS", "RANK/SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(*options.load)))
        return
    from synthetic import write_checkpoint

    print("checkpoint  on disk in      process" + "".join(f"{name:>9}" for name in COLUMNS) + "  seconds   (MiB)")
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "base"
            num_bytes = write_checkpoint(folder, options.layers, fp8=kind != "bfloat16")
            for bits in (bits for stored, bits in LOADS if stored == kind):
                for share in ("0/1", f"0/{options.processes}", f"{options.processes - 1}/{options.processes}"):
                    told = _measured(folder, bits, share)
                    line = "".join(f"{told[name] / MIB:9,.0f}" for name in COLUMNS)
                    print(f"{kind:10} {num_bytes / MIB:8,.0f} {bits:7} {share:>7}{line} {told['seconds']:8.0f}")


def _measured(folder: Path, bits: str, share: str) -> dict[str, float]:
    """What the load takes, in a process of its own."""
    command = [sys.executable, __file__, "--load", str(folder), bits, share]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told | {"over": told["peak"] - told["model"] - 2 * told["largest"]}


def load(folder: str, bits: str, share: str) -> dict[str, float]:
    """Load the base; bytes of anonymous memory above what the imports took, and bytes read."""
    import transformers

    from dsr1_tune.models.load import Located, load_located
    from dsr1_tune.moe.anatomy import find_experts
    from dsr1_tune.moe.expert_shard import ExpertParallel
    from dsr1_tune.moe.quantized_experts import audit_bits, memory_of

    sys.path.append(str(Path(__file__).parents[1]))
    tokenizer = import_module("tests.conftest").byte_tokenizer()
    base = Located(Path(folder), "synthetic", None, tokenizer, transformers.AutoConfig.from_pretrained(folder))
    rank, size = map(int, share.split("/"))
    parallel = ExpertParallel(rank, size) if size > 1 else None
    before = _status("RssAnon")
    peak = {"RssAnon": before, "RssFile": 0}
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(0.005):
            for name in peak:
                peak[name] = max(peak[name], _status(name))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start, read = time.perf_counter(), _status("rchar", "io")
    loaded = load_located(base, "bfloat16", quantized=bits == "4 bits", expert_parallel=parallel)
    seconds, read = time.perf_counter() - start, _status("rchar", "io") - read
    is_done.set()
    watcher.join()
    if bits == "4 bits":
        audit_bits(loaded.model)
    return {
        "model": memory_of(loaded.model),
        "experts": sum(memory_of(block.module) for block in find_experts(loaded.model)),
        "largest": max(p.numel() * p.element_size() for p in loaded.model.parameters()),
        "peak": peak["RssAnon"] - before,
        "mapped": peak["RssFile"],
        "read": read,
        "seconds": seconds,
    }


def _status(name: str, file: str = "status") -> int:
    """A number of bytes that the kernel says of this process."""
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * (1 if file == "io" else 1024)
    raise KeyError(name)


if __name__ == "__main__":
    main()
