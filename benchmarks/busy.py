"""What waiting OpenMP threads cost: training steps alone, beside one busy process, and at load 4, by how they wait.

python benchmarks/busy.py [--steps 6] [--rounds 3] [--settings default,count:1000,passive]

Each setting is a process of its own, as it counts only before torch is loaded; the settings take turns in every
round, so that what else happens on the machine hits all of them alike. Printed are medians and ratios to `default`.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "count:100": {"GOMP_SPINCOUNT": "100"},
    "count:1000": {"GOMP_SPINCOUNT": "1000"},
    "count:10000": {"GOMP_SPINCOUNT": "10000"},
    "count:100000": {"GOMP_SPINCOUNT": "100000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_SPIN = "while True: pass"
_THREADS = "import torch\nwhile True: torch.randn(700, 700) @ torch.randn(700, 700)"
SCENES = {"alone": (), "one busy": (_SPIN,), "load 4": (_THREADS, _THREADS)}


def steps(number: int) -> None:
    """Time so many LoRA-like steps of a small mixture; prints the seconds."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=768, moe_intermediate_size=256, num_hidden_layers=8,
        num_attention_heads=6, num_key_value_heads=6, head_dim=64, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    ids = torch.randint(0, 8192, (4, 128))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    began = time.perf_counter()
    for _ in range(number):
        step()
    print(time.perf_counter() - began)


@contextmanager
def beside(programs: tuple[str, ...]) -> Iterator[None]:
    """Other programs that keep the processors busy."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    others = [subprocess.Popen([sys.executable, "-c", program], env=plain) for program in programs]
    try:
        time.sleep(5 if others else 0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(setting: str, number: int) -> float:
    """The seconds of the steps in a process with this setting."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--child", str(number)]
    done = subprocess.run(command, env=plain | SETTINGS[setting], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the other programs end, too
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--scenes", default=",".join(SCENES))
    parser.add_argument("--child", type=int)
    given = parser.parse_args()
    if given.child:
        steps(given.child)
        return
    quiet = 0.0
    for scene in given.scenes.split(","):
        taken: dict[str, list[float]] = {}
        with beside(SCENES[scene]):
            for _ in range(given.rounds):
                for setting in given.settings.split(","):
                    taken.setdefault(setting, []).append(seconds(setting, given.steps))
        usual = statistics.median(taken["default"])
        quiet = quiet or usual
        for setting, found in taken.items():
            middle = statistics.median(found)
            shown = " ".join(f"{one:.2f}" for one in found)
            print(f"{scene:9} {setting:13} {middle:7.2f} s  {middle / usual:5.2f} of default  "
                  f"{middle / quiet:5.2f} of default alone  ({shown})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
