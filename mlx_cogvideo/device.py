"""The memory of this machine, how much of it MLX may keep, and the room on its disks."""

import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlx.core as mx

from .errors import OutputError
from .nn.backend import backend, chip, kernel_operations, uses_winograd

GIB = 2**30

VM_STAT = "/usr/bin/vm_stat"
_FREE_PAGES = ("free", "inactive", "purgeable", "speculative")


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that estimates of memory depend on.

    Attributes:
        backend: ``"metal"``, ``"cuda"`` or ``"cpu"``.
        chip: the device's name, such as ``Apple M2 Max``.
        memory: bytes that a run can use at most.
        winograd: whether convolutions use Metal's Winograd kernels.
        free: returns the bytes that a run can use now; None means all of `memory`.
    """

    backend: str
    chip: str
    memory: int
    winograd: bool = False
    free: Callable[[], int] | None = None

    @property
    def available(self) -> int:
        """Bytes that a run can use now."""
        return self.memory if self.free is None else min(self.free(), self.memory)

    @property
    def kernel_operations(self) -> float:
        """Number of operations that one kernel may take on this machine."""
        return kernel_operations(self.chip) if self.backend == "metal" else math.inf


def this_machine() -> Machine:
    """The machine that computes arrays in this process."""
    return Machine(backend(), chip(), machine_memory(), uses_winograd(), available_memory)


def mac(gigabytes: int, chip: str = "") -> Machine:
    """A Mac with this much memory in GB, and a chip such as ``M2 Max``: by default the slowest."""
    share = 3 / 4 if gigabytes >= 36 else 2 / 3  # what Metal recommends for the GPU
    return Machine("metal", chip, int(share * gigabytes * GIB))


def machine_memory() -> int:
    """Bytes that a run can use at most: a constant of the machine.

    On a Mac this is the part of the shared memory that Metal recommends for the GPU.
    """
    if backend() != "cpu":
        info = mx.device_info()
        # Metal's name, then CUDA's.
        for name in ("max_recommended_working_set_size", "total_memory"):
            if name in info:
                return info[name]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes that a run can use now, including those that this process holds."""
    if backend() == "cuda":
        info = mx.device_info()
        return info.get("free_memory", machine_memory())
    mine = mx.get_active_memory() + mx.get_cache_memory()
    return min(machine_memory(), free_memory(int(time.monotonic())) + mine)


@lru_cache(maxsize=1)
def free_memory(second: int) -> int:
    """Bytes that the system has free; read once per second at most."""
    try:
        if sys.platform == "darwin":
            ended = subprocess.run([VM_STAT], capture_output=True, text=True, check=True, timeout=5)
            return free_in_vm_stat(ended.stdout)
        lines = Path("/proc/meminfo").read_text().splitlines()
        meminfo = dict(line.split(":", 1) for line in lines)
        return int(meminfo["MemAvailable"].split()[0]) * 1024
    except (OSError, subprocess.SubprocessError, KeyError, ValueError):
        return machine_memory()


def free_in_vm_stat(text: str) -> int:
    """Bytes that macOS can free at once, from the output of ``vm_stat``.

    These are free pages and pages whose contents can be dropped: read ahead, purgeable or inactive.

    Raises:
        ValueError: the text isn't the output of ``vm_stat``.
    """
    page = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^Pages (\w+):\s+(\d+)\.", text, re.MULTILINE))
    if page is None or "free" not in pages:
        raise ValueError("this isn't what vm_stat prints")
    return int(page[1]) * sum(int(pages.get(name, 0)) for name in _FREE_PAGES)


def size(count: float) -> str:
    """A number of bytes as text, such as ``16 KiB``, ``466 MiB`` or ``9.2 GiB``."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1023.5:
            return f"{count:.0f} {unit}"
    return f"{count / 1024:.1f} GiB"


def manage_memory(limit: int | None = None, wired: int | None = None) -> None:
    """Sets the limits of MLX's memory for a run.

    MLX caches freed memory for the next use, up to an eighth of the available memory.

    Args:
        limit: bytes that the run should not exceed, which MLX treats as a guideline; None sets no
            limit.
        wired: bytes that macOS keeps resident, whatever other programs need. None leaves that to
            the system. Such a limit starves other programs and has ended in kernel panics
            (ml-explore/mlx#3186, #3346), and a run of long kernels gains nothing from it.
    """
    available = available_memory()
    if limit is not None:
        mx.set_memory_limit(limit)
        available = min(available, limit)
    mx.set_cache_limit(available // 8)
    if wired is not None and backend() == "metal":
        mx.set_wired_limit(min(wired, machine_memory()))


@dataclass(frozen=True)
class Need:
    """Bytes that a command is about to write.

    Attributes:
        folder: where they go; it need not exist yet.
        bytes: how many.
        what: what they are, such as ``the download``.
        instead: what to do where the disk is too full, beside making room.
    """

    folder: Path
    bytes: int
    what: str
    instead: str


def free_space(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be on."""
    return shutil.disk_usage(_existing(folder)).free


def on_one_disk(*folders: Path) -> bool:
    """Whether folders are, or will be, on the same disk."""
    return len({_existing(folder).stat().st_dev for folder in folders}) == 1


def check_room(needs: Iterable[Need]) -> None:
    """Checks that each disk has room for all that goes to it.

    Raises:
        OutputError: one has not.
    """
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for together in disks.values():
        free, total = free_space(together[0].folder), sum(need.bytes for need in together)
        if total > free:
            first = max(together, key=lambda need: need.bytes)
            parts = " and ".join(f"{need.what} needs {size(need.bytes)}" for need in together)
            more = f" ({size(total - free)} are missing)" if total - free >= 1024 else ""
            raise OutputError(
                f"the disk of {first.folder} has {size(free)} free and {parts}{more}: make room, "
                f"or {first.instead}"
            )


def _existing(folder: Path) -> Path:
    """The folder, or the first one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def user_cache() -> Path:
    """This package's folder among the user's caches, whether or not it is there."""
    return _own_folder("XDG_CACHE_HOME", "~/Library/Caches", "~/.cache")


def user_data() -> Path:
    """This package's folder for what took long to find out, whether or not it is there."""
    return _own_folder("XDG_DATA_HOME", "~/Library/Application Support", "~/.local/share")


def _own_folder(variable: str, on_macos: str, elsewhere: str) -> Path:
    """A folder of this package in the one that a variable of the XDG specification names."""
    parent = Path(os.environ.get(variable, ""))
    if not parent.is_absolute():  # the specification ignores a relative path
        own = on_macos if sys.platform == "darwin" else elsewhere
        parent = Path(os.path.expanduser(own))
    return parent / "mlx_cogvideo"
