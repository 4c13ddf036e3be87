"""Describes this machine: chip, system, versions, and known problems with them."""

import platform
import re
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import mlx.core as mx

from ..device import available_memory, machine_memory
from ..nn.backend import backend, chip, uses_winograd
from ..version import __version__

_ACCELERATED_MACOS = (26, 2)
_ACCELERATED_WHEEL = 26
_ACCELERATED_GENERATION = 17  # generation of Apple's GPUs in MLX's numbering: the M5


def describe() -> dict[str, Any]:
    """Chip, memory, system and versions, as JSON holds them."""
    macos = platform.mac_ver()[0]
    system = f"macOS {macos}" if macos else f"{platform.system()} {platform.release()}"
    return {
        "mlx_cogvideo": __version__,
        "mlx": mx.__version__,
        "wheel": metal_wheel(),
        "python": platform.python_version(),
        "device": f"{backend()} {chip() or platform.processor()}",
        "architecture": str(mx.device_info().get("architecture", "")),
        "system": system,
        "memory": machine_memory(),
        "available": available_memory(),
        "winograd": uses_winograd(),
        "neural_accelerators": neural_accelerators(),
        "notes": notes(),
    }


def metal_wheel() -> str | None:
    """The platform that MLX's Metal library was built for, such as ``macosx_26_0_arm64``."""
    try:
        text = distribution("mlx-metal").read_text("WHEEL") or ""
    except PackageNotFoundError:
        return None
    tags = re.findall(r"^Tag: \S+-(\S+)$", text, re.MULTILINE)
    return tags[0] if tags else None


def neural_accelerators() -> bool | None:
    """Whether products can use the neural accelerators of the GPU; None if it has none.

    This is inferred from the chip, macOS and the wheel, because MLX doesn't report it.
    """
    if not _has_accelerators():
        return None
    return _macos() >= _ACCELERATED_MACOS and _wheel_version() >= _ACCELERATED_WHEEL


def notes() -> list[str]:
    """Known problems of this machine, a sentence each."""
    found = []
    if neural_accelerators() is False:
        found.append(
            "this GPU's neural accelerators aren't used, and products take three to four times as "
            f"long: they need macOS 26.2 (this is {platform.mac_ver()[0]}) and the macosx_26_0 "
            f"wheel of mlx-metal (this is {metal_wheel()}); update macOS and pip, and reinstall mlx"
        )
    if _has_accelerators():
        found.append(
            "with --dtype float32, products are TF32 on this GPU, about as exact as float16, "
            "unless MLX_ENABLE_TF32=0 is set (as this check does)"
        )
    if uses_winograd():
        found.append(
            "MLX_CONV_WINOGRAD is set: the VAE is less exact in 16 bits, and needs more memory"
        )
    return found


def _has_accelerators() -> bool:
    found = re.search(r"applegpu_g(\d+)", str(mx.device_info().get("architecture", "")))
    return backend() == "metal" and found is not None and int(found[1]) >= _ACCELERATED_GENERATION


def _macos() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.mac_ver()[0])[:2]) or (0,)


def _wheel_version() -> int:
    found = re.match(r"macosx_(\d+)_", metal_wheel() or "")
    return int(found[1]) if found else 0
