"""The device that computes arrays, and its limits."""

import math
import os

import mlx.core as mx

KERNEL_SECONDS = 0.4
"""Longest time of one kernel on a Mac, where the system ends work that occupies the GPU for seconds
(ml-explore/mlx#3267)."""

SUSTAINED = 0.7
"""Share of the peak rate that products and attention reach at least."""

PEAK_TERAFLOPS = {
    **{"M1": 2.3, "M1 Pro": 4.6, "M1 Max": 7.8, "M1 Ultra": 15.7},
    **{"M2": 2.9, "M2 Pro": 5.7, "M2 Max": 10.7, "M2 Ultra": 21.5},
    **{"M3": 2.8, "M3 Pro": 5.0, "M3 Max": 10.6, "M3 Ultra": 21.2},
    **{"M4": 3.2, "M4 Pro": 6.5, "M4 Max": 12.9},
    **{"M5": 3.3, "M5 Pro": 6.6, "M5 Max": 13.2},
}
"""Float32 peak of each chip's smallest version: 256 operations per clock and GPU core. The neural
accelerators of the M5 don't count, as not every version of macOS and MLX can use them."""


def has_metal() -> bool:
    """Whether MLX has Metal on this machine, whatever the default device."""
    return mx.metal.is_available()


def backend() -> str:
    """``"metal"``, ``"cuda"`` or ``"cpu"``."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return "cpu"
    return "metal" if has_metal() else "cuda"


def on_gpu() -> bool:
    """Whether arrays are computed on a GPU, by Metal or CUDA."""
    return backend() != "cpu"


def chip() -> str:
    """The name of the device, such as ``Apple M2 Max``; "" if MLX doesn't report it."""
    return str(mx.device_info().get("device_name", ""))


def kernel_operations(of_chip: str | None = None) -> float:
    """Operations that one kernel may take: on a Mac, those of its chip in `KERNEL_SECONDS`.

    A table gives the rate, never a measurement: the division of work changes the rounding, and a
    resumed run must make the same video. Chips that the table lacks count as the slowest one.

    Args:
        of_chip: name of another Mac's chip; None is this machine.
    """
    if of_chip is None:
        if backend() != "metal":
            return math.inf
        of_chip = chip()
    peak = PEAK_TERAFLOPS.get(_chip_name(of_chip), min(PEAK_TERAFLOPS.values()))
    return KERNEL_SECONDS * SUSTAINED * peak * 1e12


def is_known(of_chip: str) -> bool:
    """Whether a table gives the rate of a chip, such as ``Apple M2 Max``."""
    return _chip_name(of_chip) in PEAK_TERAFLOPS


def _chip_name(of_chip: str) -> str:
    return of_chip.removeprefix("Apple ").strip()


def kernels(operations: float) -> int:
    """Number of kernels into which this many operations are divided; see `kernel_operations`."""
    return max(1, math.ceil(operations / kernel_operations()))


def disable_winograd() -> None:
    """Makes MLX compute 3x3 convolutions directly on Metal, unless the user set the variable.

    Its Winograd kernels round their intermediate results to 16 bits, which costs the VAE 14 dB in
    bfloat16 (tools/checks/winograd.py), and take scratch memory of several feature maps. MLX reads
    the variable at each convolution, and evaluation is lazy: call this once, before the first one.
    """
    if has_metal():
        os.environ.setdefault("MLX_CONV_WINOGRAD", "0")


def uses_winograd() -> bool:
    """Whether convolutions use Metal's Winograd kernels."""
    return backend() == "metal" and os.environ.get("MLX_CONV_WINOGRAD", "1") != "0"
