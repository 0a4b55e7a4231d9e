"""What a GPU must show of training a mixture: the CPU's numbers, no waiting, and how fast, in how much memory.

    python benchmarks/gpu_check.py                        # one large GPU, some minutes; 8 GB of disk for a while
    python benchmarks/gpu_check.py --device cpu --tiny    # tries the script itself

Layers of experts are computed on the GPU and on the CPU, as they are and in NF4, and what makes the host wait is
counted. Then a random mixture of Qwen3-30B's widths, of a few layers, is trained: LoRA over bfloat16, LoRA over NF4;
and its base alone is run. With `--device cpu` the GPU's way of grouping rows runs on the CPU, and nothing is told of
memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GIB = 2**30
FAMILIES = ("qwen3_moe", "gpt_oss")
STEPS = 3


@dataclass(frozen=True)
class Shape:
    """Of the model whose speed is measured."""

    layers: int
    experts: int
    width: int
    inner: int
    tokens: int


LARGE = Shape(layers=6, experts=128, width=2048, inner=768, tokens=8192)
TINY = Shape(layers=2, experts=8, width=128, inner=64, tokens=64)


def main() -> None:
    """Check, measure, and print a line for each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers")
    options = parser.parse_args()
    if options.device == "cpu":
        from dsr1_tune.moe import expert_rows

        expert_rows._is_grouped = lambda device: True
    device, shape = torch.device(options.device), TINY if options.tiny else LARGE
    say("check", "found", "limit")
    say("device", _named(device))
    with tempfile.TemporaryDirectory() as scratch:
        for family in FAMILIES:
            compare_layers(family, Path(scratch) / family, device)
        compare_quantizing(device)
        measure(Path(scratch) / "base", shape, device)


MISSED: list[str] = []
"""What is beyond its limit."""


def say(what: str, found: str, limit: str = "", is_right: bool = True) -> None:
    """A line of the table."""
    print(f"{what:58} {found:>30}  {limit}{'' if is_right else '  MISSED'}", flush=True)
    if not is_right:
        MISSED.append(what)


def _named(device: torch.device) -> str:
    from dsr1_tune.moe.expert_rows import is_fused

    if device.type == "cpu":
        return "CPU, rows grouped as on a GPU"
    kernel = "fused" if is_fused(device, torch.bfloat16) else "loop"
    return f"{torch.cuda.get_device_name(device)}, grouped_mm: {kernel}"


# --- a layer of experts ----------------------------------------------------------------------------------------------


def compare_layers(family: str, folder: Path, device: torch.device) -> None:
    """A layer's output and gradients on both devices, and what waits on the GPU."""
    from transformers import AutoModelForCausalLM

    from dsr1_tune.models.weights.load_nf4 import Nf4Config
    from dsr1_tune.moe.anatomy import find_experts
    from dsr1_tune.moe.expert_rows import is_fused

    tests = import_module("tests.families")
    tests.save_family(folder, import_module("tests.conftest").byte_tokenizer(), family, intermediate_size=64)
    for kind, more in (("plain", {}), ("NF4", {"quantization_config": Nf4Config()})):
        for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": "cpu"}, **more)
            experts = find_experts(model)[0].module
            there = deepcopy(experts).to(device)
            given = given_to(there)
            layer_step(there, *given)  # what is made once, is made
            with _waits(device) as waits:
                got = layer_step(there, *given)
            with _on_a_cpu():
                want = layer_step(experts, *given_to(experts))
            worst = max(_relative(one.cpu(), other) for one, other in zip(got, want, strict=True))
            name = f"{family}, {kind}, {str(dtype).removeprefix('torch.')}"
            say(f"{name}: off from the CPU", f"{worst:.1e}", f"≤ {limit:g}", worst <= limit)
            waited = "not told" if waits is None else str(len(waits))
            say(f"{name}: waits in a layer", waited, "0 if fused", not waits or not is_fused(device, dtype))


def given_to(experts: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """What a layer of four experts is given: inputs, the router's choice and its weights, and LoRA of rank 8."""
    from dsr1_tune.moe.expert_lora import PackedLora

    weight = experts.down_proj
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int, size: float = 1.0) -> Tensor:
        made = (torch.randn(shape, generator=draw) * size).to(weight.dtype)
        return made.to(weight.device).requires_grad_()

    index = torch.randint(4, (96, 2), generator=draw).to(weight.device)
    x, chosen_by = leaf(96, 64), leaf(96, 2, size=0.5)
    updates = {}
    for name in ("gate_up_proj", "down_proj"):
        outputs, inputs = getattr(experts, name).shape[1:]
        if experts.is_transposed:
            outputs, inputs = inputs, outputs
        updates[name] = PackedLora(leaf(32, inputs, size=0.1), leaf(outputs, 32, size=0.1), 0.5)
    return x, index, chosen_by, updates


def layer_step(experts: Any, x: Tensor, index: Tensor, chosen_by: Tensor, updates: dict[str, Any]) -> list[Tensor]:
    """The layer's output, and every gradient."""
    from dsr1_tune.moe.expert_lora import apply_experts

    out = apply_experts(experts, x, index, chosen_by, updates)
    factors = [factor for one in updates.values() for factor in (one.packed_a, one.packed_b)]
    return [out, *torch.autograd.grad(out.float().square().sum(), [x, chosen_by, *factors])]


@contextmanager
def _on_a_cpu() -> Iterator[None]:
    """Inside, a CPU groups rows as it does."""
    from dsr1_tune.moe import expert_rows

    usual = expert_rows._is_grouped
    expert_rows._is_grouped = lambda device: device.type != "cpu"
    yield
    expert_rows._is_grouped = usual


@contextmanager
def _waits(device: torch.device) -> Iterator[list[str] | None]:
    """What made the host wait for the GPU; None where there is none."""
    if device.type == "cpu":
        yield None
        return
    found: list[str] = []
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        yield found
        torch.cuda.set_sync_debug_mode("default")
    found += [str(one.message) for one in said if "synchroniz" in str(one.message)]


def compare_quantizing(device: torch.device) -> None:
    """Whether a matrix is rounded to the same 4 bits."""
    from dsr1_tune.quant import nf4

    weight = torch.randn(2, 512, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    here, there = nf4.quantize(weight), nf4.quantize(weight.to(device))
    same = float((here["packed"] == there["packed"].cpu()).float().mean())
    say("NF4: bytes of packed weights that are the CPU's", f"{same:.3%}", "≥ 99.9 %", same >= 0.999)


def _relative(got: Tensor, want: Tensor) -> float:
    got, want = got.detach().double(), want.detach().double()
    assert bool(torch.isfinite(got).all())
    return float((got - want).norm() / want.norm().clamp_min(1e-300))


# --- a model ---------------------------------------------------------------------------------------------------------


def measure(folder: Path, shape: Shape, device: torch.device) -> None:
    """Speed and memory of training over bfloat16 and over NF4."""
    write_checkpoint = import_module("benchmarks.synthetic").write_checkpoint
    write_checkpoint(folder, shape.layers, shape.experts, shape.width, shape.inner)
    import_module("tests.conftest").byte_tokenizer().save_pretrained(folder)
    speeds, losses = {}, {}
    for method in ("lora", "qlora"):
        model, held = _loaded(folder, method == "qlora")
        kind = "NF4" if method == "qlora" else "bfloat16"
        say(f"{kind}: GiB of weights", f"{held / GIB:.2f}")
        ids = torch.randint(256, (1, shape.tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
        with torch.no_grad():
            losses[kind] = float(model(input_ids=ids, labels=ids).loss)
            frozen = _tokens_a_second(lambda model=model, ids=ids: model(input_ids=ids), shape, device)
        say(f"{kind}: tokens/s of the base alone, forward", f"{frozen:,.0f}")
        speeds[kind], peak = _trained(model, ids, shape, device)
        say(f"{method}: tokens/s of a step", f"{speeds[kind]:,.0f}")
        told = f"{peak / GIB:.2f}" if peak else "not told"
        say(f"{method}: GiB at the peak", told, f"planned {_planned(folder, method, shape):.2f}")
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    say("a step over NF4, of one over bfloat16", f"{speeds['NF4'] / speeds['bfloat16']:.2f} × as fast")
    say("loss, NF4 less bfloat16", f"{losses['NF4'] - losses['bfloat16']:+.4f}")


def _loaded(folder: Path, quantized: bool) -> tuple[Any, int]:
    """The base for training, and the bytes that its weights take."""
    from dsr1_tune.config import Base
    from dsr1_tune.models.load import load_located, locate
    from dsr1_tune.moe.quantized_experts import audit_bits, memory_of

    located = locate(Base(model=str(folder), dtype="bfloat16"), quantized=quantized)
    model = load_located(located, "bfloat16", for_training=True, quantized=quantized).model
    if quantized:
        audit_bits(model)
    return model, memory_of(model)


def _trained(model: nn.Module, ids: Tensor, shape: Shape, device: torch.device) -> tuple[float, int]:
    """Tokens a second of steps of LoRA with gradient checkpointing, and bytes at the peak."""
    from dsr1_tune.config import Adapter
    from dsr1_tune.models.trained.lora import add_lora

    wrapped: Any = add_lora(model, Adapter(rank=8))
    wrapped.enable_input_require_grads()
    wrapped.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([one for one in wrapped.parameters() if one.requires_grad], lr=1e-4)

    def step() -> None:
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    speed = _tokens_a_second(step, shape, device)
    return speed, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def _tokens_a_second(do: Any, shape: Shape, device: torch.device) -> float:
    do()
    _wait(device)
    start = time.perf_counter()
    for _ in range(STEPS):
        do()
    _wait(device)
    return STEPS * shape.tokens / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _planned(folder: Path, method: str, shape: Shape) -> float:
    """GiB that `plan` says of such a step, without what libraries take."""
    settings = ("device=cuda", f"schedule.max_tokens={shape.tokens}", "schedule.batch_size=1", "adapter.rank=8",
                "schedule.gradient_checkpointing=true", "schedule.optimizer=adamw")  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    asked = [sys.executable, "-m", "dsr1_tune", "plan", "--model", str(folder), "--memory", "1000GiB", "--json", *sets]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    told = json.loads(said)["methods"][method]
    return float(told["phases"]["step"] - told["parts"]["libraries"]) / GIB


if __name__ == "__main__":
    main()
    sys.exit(1 if MISSED else 0)
