"""How much memory this process may still use, on the machine or in its container."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes there are and bytes that can be had without swapping."""

    total: int
    free: int


def give_back() -> None:
    """Give the system back what was freed; the C library keeps the gaps between tensors, in all as much as a model."""
    with suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


def main_memory(cgroup: Path = _CGROUP) -> Memory:
    """The machine's memory, or its container's (cgroup v2) where that is less."""
    import psutil

    machine = psutil.virtual_memory()
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return Memory(machine.total, machine.available)
    # Files that were read count as used, but go when memory is wanted.
    free = limit - used + int(stat.get("inactive_file", 0))
    return Memory(min(limit, machine.total), max(0, min(free, machine.available)))
