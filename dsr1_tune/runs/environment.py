"""What this machine is and what works on it: versions, memory, and training's kernels, each really tried."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dsr1_tune.models import embedded
from dsr1_tune.models.memory import GIB, main_memory

if TYPE_CHECKING:
    import torch

PACKAGE = "dsr1-tune"
# Not ours to require, but they decide what numbers come out.
_BENEATH = ("numpy", "tokenizers", "triton")
_REINSTALL_TORCH = "pip install --force-reinstall torch"
_FEW_GIB = 4.0
_ELSEWHERE = "make it writable, or work elsewhere: set DSR1_TUNE_CACHE for the cache, --out for what runs make"


@dataclass(frozen=True)
class Requirement:
    """A package that the toolkit needs: the version it asks for, and the one that is there (None: none)."""

    name: str
    wanted: str
    installed: str | None
    is_met: bool

    @property
    def mend(self) -> str:
        """The command that installs it."""
        return f'pip install "{self.name}{self.wanted}"'

    @property
    def unmet(self) -> str:
        """What is wrong with the one that is there."""
        if self.installed is None:
            return f"{self.name} is not installed"
        return f"{self.name} {self.installed} is installed, {self.wanted} is needed"


@dataclass(frozen=True)
class Trial:
    """Whether something works here, and if not what it said."""

    works: bool
    said: str = ""


@dataclass(frozen=True)
class Device:
    """A place to compute, and what works on it."""

    name: str
    model: str
    total_gib: float
    free_gib: float
    bf16: Trial
    four_bit: Trial
    grouped_mm: Trial
    has_fused_groups: bool | None = None
    """Of a GPU: whether grouped products in bfloat16 are one kernel, or a loop over experts that waits for their sizes.
    """


@dataclass(frozen=True)
class Problem:
    """Something that is missing here, and the command or step that mends it; a fatal one keeps `lora` from running."""

    said: str
    mend: str
    is_fatal: bool


@dataclass(frozen=True)
class Capabilities:
    """Everything that decides what can run here."""

    python: str
    system: str
    num_cores: int
    devices: tuple[Device, ...]
    disk_free_gib: dict[str, float]
    """Of the folders that can be written to."""
    read_only: tuple[str, ...]
    """The other ones."""


def package_versions() -> dict[str, str]:
    """The installed version of Python, of this toolkit and of all it rests on, by name."""
    names = [PACKAGE, *(requirement.name for requirement in requirements()), *_BENEATH]
    found = {name: _version(name) for name in names}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


def requirements() -> list[Requirement]:
    """The packages that this toolkit's own metadata requires; empty if it runs without having been installed."""
    from packaging.requirements import Requirement as Parsed

    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for need in (Parsed(line) for line in lines if "extra ==" not in line):
        if not need.marker or need.marker.evaluate():
            installed = _version(need.name)
            is_met = installed is not None and need.specifier.contains(installed, prereleases=True)
            found.append(Requirement(need.name, str(need.specifier), installed, is_met))
    return found


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def capabilities() -> Capabilities:
    """Look at the machine and try the kernels on every device, in a few seconds. Needs torch."""
    import torch

    memory = main_memory()
    devices = [_device("cpu", _cpu_model(), memory.free, memory.total)]
    for name in (f"cuda:{index}" for index in range(torch.cuda.device_count())):
        devices.append(_device(name, torch.cuda.get_device_name(name), *torch.cuda.mem_get_info(name)))
    places = {str(place): _on_disk(place) for place in (Path.cwd(), embedded.cache_dir())}
    free = {name: shutil.disk_usage(folder).free / GIB for name, folder in places.items() if _can_write(folder)}
    read_only = tuple(name for name in places if name not in free)
    return Capabilities(platform.python_version(), _system(), num_cores(), tuple(devices), free, read_only)


def _on_disk(place: Path) -> Path:
    """The folder itself, or that in which it would be made."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.exists())


def _can_write(folder: Path) -> bool:
    """Tried, as permissions do not tell of a disk that is mounted for reading alone."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def problems(here: Capabilities | None) -> list[Problem]:
    """What keeps something from running, the fatal first; `here` is None where torch cannot be imported."""
    needs = requirements()
    found = [Problem(need.unmet, need.mend, need.name != "bitsandbytes") for need in needs if not need.is_met]
    if not needs:
        found.append(Problem(f"{PACKAGE} is not installed, it runs from its folder", "pip install -e .", False))
    if here is None:
        if all(need.is_met for need in needs):
            found.append(Problem("torch is installed but cannot be imported", _REINSTALL_TORCH, True))
    else:
        found += [problem for device in here.devices for problem in _ailing(device)]
        if has_idle_gpu():
            found.append(Problem("there is a GPU, but this torch is built for the CPU", _REINSTALL_TORCH, False))
        found += [
            Problem(f"{folder}: only {free:.1f} GiB of disk are free", "free some space", False)
            for folder, free in here.disk_free_gib.items()
            if free < _FEW_GIB
        ]
        found += [Problem(f"{folder}: cannot be written to", _ELSEWHERE, False) for folder in here.read_only]
    if embedded.find() is None and embedded.wheel_file() is None:
        found.append(Problem("the embedded base is not here, so --model must name one", embedded.MEND, False))
    return sorted(found, key=lambda problem: not problem.is_fatal)


def _ailing(device: Device) -> list[Problem]:
    """The kernels that fail on a device; all training needs is grouped_mm."""
    trials = (
        ("grouped matrix products", device.grouped_mm, _REINSTALL_TORCH, True),
        ("bfloat16", device.bf16, "use --set base.dtype=float32", False),
        ("4-bit kernels", device.four_bit, "pip install --force-reinstall bitsandbytes", False),
    )
    return [
        Problem(f"{device.name}: {what} do not work: {trial.said}", mend, is_fatal)
        for what, trial, mend, is_fatal in trials
        if not trial.works
    ]


def machine() -> dict[str, str]:
    """Where a run is trained, in a few words. Needs torch."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "system": _system(),
        "cores": str(num_cores()),
        "memory": f"{main_memory().total / GIB:.1f} GiB",
        "gpus": ", ".join(gpus) or "none",
    }


def has_idle_gpu() -> bool:
    """Whether there is an NVIDIA GPU that the installed torch cannot use because it is built for the CPU."""
    import torch

    return torch.version.cuda is None and torch.version.hip is None and Path("/proc/driver/nvidia/version").exists()


def num_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _device(name: str, model: str, free: int, total: int) -> Device:
    bf16, four_bit, grouped_mm = (_try(partial(one, name)) for one in (try_bf16, try_four_bit, try_grouped_mm))
    return Device(name, model, total / GIB, free / GIB, bf16, four_bit, grouped_mm, _has_fused_groups(name))


def _has_fused_groups(device: str) -> bool | None:
    """As torch's `_grouped_mm_cuda` decides: Hopper (9.x) and Blackwell for data centres (10.x) have the kernel."""
    import torch

    return torch.cuda.get_device_capability(device)[0] in (9, 10) if device.startswith("cuda") else None


def _try(step: Callable[[], None]) -> Trial:
    try:
        step()
    except Exception as error:  # whatever a missing kernel raises: it is what this asks for
        return Trial(False, next(iter(str(error).splitlines()), "") or type(error).__name__)
    return Trial(True)


def try_bf16(device: str) -> None:
    """Multiply two small bfloat16 matrices. Raises whatever says that it does not work here."""
    import torch

    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    product = x.to(device, torch.bfloat16) @ x.to(device, torch.bfloat16)
    _agree(product, x @ x, tolerance=0.05)


def try_four_bit(device: str) -> None:
    """Round a matrix to NF4 by bitsandbytes' kernels and back. Raises whatever says that it does not work here."""
    import torch

    # On a CPU it complains that an optional matrix product is not there, which we do not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(device)
    packed, state = quantize_4bit(x, blocksize=64, quant_type="nf4")
    _agree(dequantize_4bit(packed, state), x, tolerance=0.2)


def try_grouped_mm(device: str) -> None:
    """Multiply groups of rows by a matrix each, and back-propagate. Raises what says that it does not work here."""
    import torch

    chance = torch.Generator().manual_seed(0)
    number = torch.bfloat16 if device.startswith("cuda") else torch.float32
    rows = torch.randn(8, 32, generator=chance).to(device, number).requires_grad_()
    experts = torch.randn(2, 32, 16, generator=chance).to(device, number).requires_grad_()
    ends = torch.tensor([3, 8], dtype=torch.int32, device=device)
    product = torch.nn.functional.grouped_mm(rows, experts, offs=ends)
    product.backward(torch.ones_like(product))
    _agree(product, torch.cat([rows[:3] @ experts[0], rows[3:] @ experts[1]]), tolerance=0.02)
    _agree(rows.grad[:3], experts[0].sum(1).expand(3, -1), tolerance=0.02)


def _agree(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Raise ArithmeticError if `got` is further from `want` than `tolerance`, relative to its size."""
    got, want = got.detach().float().cpu(), want.detach().float().cpu()
    error = float((got - want).norm() / want.norm())
    if not error <= tolerance:  # NaN does not either
        raise ArithmeticError(f"wrong result: relative error {error:.2g}")
