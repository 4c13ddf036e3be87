"""The memory of this machine: how much there is, how much is free, and what MLX may keep."""

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlx.core as mx

from .nn.backend import backend, chip, kernel_operations, uses_winograd

GIB = 2**30

_VM_STAT = "/usr/bin/vm_stat"
_FREE_PAGES = ("free", "inactive", "purgeable", "speculative")


@dataclass(frozen=True)
class Machine:
    """What estimates of memory depend on.

    Attributes:
        backend: ``"metal"``, ``"cuda"`` or ``"cpu"``.
        chip: the device's name, such as ``Apple M2 Max``.
        memory: bytes that a run can have at most.
        winograd: whether convolutions go through Metal's Winograd kernels.
        free: what gives the bytes that a run can have now; None is all of `memory`.
    """

    backend: str
    chip: str
    memory: int
    winograd: bool = False
    free: Callable[[], int] | None = None

    @property
    def available(self) -> int:
        """Bytes that a run can have now."""
        return self.memory if self.free is None else min(self.free(), self.memory)

    @property
    def kernel_operations(self) -> float:
        """Operations that one kernel may take there."""
        return kernel_operations(self.chip) if self.backend == "metal" else math.inf


def this_machine() -> Machine:
    """The machine that arrays are computed on."""
    return Machine(backend(), chip(), machine_memory(), uses_winograd(), available_memory)


# The share of a Mac's memory that Metal recommends for the GPU.
_SMALL_SHARE, _LARGE_SHARE, _LARGE_GB = 2 / 3, 3 / 4, 36


def mac(gigabytes: int, chip_name: str = "") -> Machine:
    """A Mac with so much memory; unless its chip is named, the slowest."""
    share = _LARGE_SHARE if gigabytes >= _LARGE_GB else _SMALL_SHARE
    return Machine("metal", chip_name, int(share * gigabytes * GIB))


def machine_memory() -> int:
    """Bytes that a run can have at most: a constant of the machine.

    On a Mac, what Metal recommends that the GPU use of the memory that it shares with the rest.
    """
    if backend() != "cpu":
        info = mx.device_info()
        # Metal's name, then CUDA's.
        for name in ("max_recommended_working_set_size", "total_memory"):
            if name in info:
                return info[name]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes that a run can have now, what this process holds included."""
    if backend() == "cuda":
        info = mx.device_info()
        return info.get("free_memory", machine_memory())
    mine = mx.get_active_memory() + mx.get_cache_memory()
    return min(machine_memory(), _free_memory(int(time.monotonic())) + mine)


@lru_cache(maxsize=1)
def _free_memory(second: int) -> int:
    """Bytes that the system can give; asked for once a second at most."""
    try:
        if sys.platform == "darwin":
            told = subprocess.run([_VM_STAT], capture_output=True, text=True, check=True, timeout=5)
            return free_in_vm_stat(told.stdout)
        lines = Path("/proc/meminfo").read_text().splitlines()
        meminfo = dict(line.split(":", 1) for line in lines)
        return int(meminfo["MemAvailable"].split()[0]) * 1024
    except (OSError, subprocess.SubprocessError, KeyError, ValueError):
        return machine_memory()


def free_in_vm_stat(text: str) -> int:
    """Bytes that macOS can give at once, from what ``vm_stat`` prints.

    Those that are free, and those that hold what can be dropped: read ahead, purgeable, or not used
    for a while.

    Raises:
        ValueError: the text is something else.
    """
    page = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^Pages (\w+):\s+(\d+)\.", text, re.MULTILINE))
    if page is None or "free" not in pages:
        raise ValueError("this isn't what vm_stat prints")
    return int(page[1]) * sum(int(pages.get(name, 0)) for name in _FREE_PAGES)


def size(count: float) -> str:
    """Bytes as ``16 KiB``, ``466 MiB`` or ``9.2 GiB``."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1023.5:
            return f"{count:.0f} {unit}"
    return f"{count / 1024:.1f} GiB"


def manage_memory(limit: int | None = None, wired: int | None = None) -> None:
    """Tells MLX what to hold on to while a video is made.

    What has been freed is kept for the next use up to an eighth of the memory.

    Args:
        limit: bytes that the run is to keep to, which MLX takes for a guideline.
        wired: bytes that macOS is to keep resident, whatever other programs need. None leaves that
            to the system: such a limit starves other programs and has ended in kernel panics
            (ml-explore/mlx#3186, #3346), and a run of long kernels gains nothing from it.
    """
    available = available_memory()
    if limit is not None:
        mx.set_memory_limit(limit)
        available = min(available, limit)
    mx.set_cache_limit(available // 8)
    if wired is not None and backend() == "metal":
        mx.set_wired_limit(min(wired, machine_memory()))
