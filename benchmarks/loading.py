"""Peak memory of loading a base in 4 bits, from a sharded bfloat16 checkpoint and from a block-FP8 one.

    python benchmarks/loading.py [--layers 21]

Each load runs in a process of its own, which samples its anonymous memory every few milliseconds; pages of the mapped
files count apart, as the kernel takes them back when memory is wanted. The claim: peak ≤ what the 4-bit model takes
+ 2 × the largest weight as it is computed with (a layer's fused gate and up projections) + a constant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 2**20


def main() -> None:
    """Write, load and tell, for each kind of checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=21, help="202 MB each in bfloat16")
    parser.add_argument("--kinds", nargs="+", choices=("bfloat16", "block-FP8"), default=["bfloat16", "block-FP8"])
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(Path(options.load))))
        return
    from synthetic import write_checkpoint

    print("checkpoint  on disk  4-bit model  largest  peak  above model + 2 x largest  files mapped  seconds")
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "base"
            num_bytes = write_checkpoint(folder, options.layers, fp8=kind != "bfloat16")
            done = subprocess.run(
                [sys.executable, __file__, "--load", str(folder)], capture_output=True, text=True, check=True
            )
            told = json.loads(done.stdout.splitlines()[-1])
        over = told["peak"] - told["model"] - 2 * told["largest"]
        print(
            f"{kind:10} {num_bytes / MIB:7,.0f} {told['model'] / MIB:9,.0f} {told['largest'] / MIB:9,.0f} "
            f"{told['peak'] / MIB:9,.0f} {over / MIB:9,.0f} MiB {told['mapped'] / MIB:9,.0f} {told['seconds']:9.0f}"
        )


def load(folder: Path) -> dict[str, float]:
    """Load the base in 4 bits; bytes of anonymous memory above what the imports took."""
    import transformers

    from dsr1_tune.models.load import Located, load_located
    from dsr1_tune.moe.quantized_experts import audit_bits, memory_of

    config = transformers.AutoConfig.from_pretrained(folder)
    base = Located(folder, "synthetic", None, None, config)
    before = _status("RssAnon")
    peak = {"RssAnon": before, "RssFile": 0}
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(0.005):
            for name in peak:
                peak[name] = max(peak[name], _status(name))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    loaded = load_located(base, quantized=True)
    seconds = time.perf_counter() - start
    is_done.set()
    watcher.join()
    audit_bits(loaded.model)
    largest = max(p.numel() * p.element_size() for p in loaded.model.parameters())
    return {
        "model": memory_of(loaded.model),
        "largest": largest,
        "peak": peak["RssAnon"] - before,
        "mapped": peak["RssFile"],
        "seconds": seconds,
    }


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


if __name__ == "__main__":
    main()
