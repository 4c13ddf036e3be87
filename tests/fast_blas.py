"""Gives the tests a fast BLAS on Linux, where MLX's CPU build brings the slow reference one.

Importing this module before MLX loads it: symbols of a library that is loaded globally come before
those of MLX's own. Macs use Accelerate. `BLAS` is the line about it that pytest prints.
"""

import ctypes
import os
import site
import sys
from pathlib import Path

# The system's OpenBLAS, then the one inside opencv-python-headless, which the extra `test` brings.
SYSTEM = ["/usr/lib/*/openblas*/libblas.so.3", "/usr/lib*/libopenblas.so.0"]
WHEEL = "opencv_python_headless.libs/libopenblas*.so*"


def preload() -> str:
    """Loads OpenBLAS for this process and those that it starts, and returns a line about it."""
    if sys.platform != "linux":
        return "BLAS: the system's"
    if hasattr(ctypes.CDLL(None), "cblas_sgemm"):
        return f"BLAS: {os.environ.get('LD_PRELOAD', 'loaded before the tests')}"
    choose_kernels()  # not of one that is loaded already: children would have other kernels
    for library in libraries():
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        set_for_children(library)
        return f"BLAS: {library}"
    return "BLAS: MLX's own, which is slow; `pip install opencv-python-headless` brings a fast one"


def libraries() -> list[Path]:
    """Lists the OpenBLAS libraries of this machine with plain 32-bit symbols, best first."""
    system = [path for pattern in SYSTEM for path in sorted(Path("/").glob(pattern[1:]))]
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    return system + [path for folder in folders for path in sorted(Path(folder).glob(WHEEL))]


def choose_kernels() -> None:
    """Names the processor's kernels: OpenBLAS takes the slowest for one newer than itself."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"} <= words:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    elif {"avx2", "fma"} <= words:
        os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")


def set_for_children(library: Path) -> None:
    """Preloads the library in processes that tests start; the loader's list is cut at spaces."""
    if not set(" :") & set(str(library)):
        preloaded = os.environ.get("LD_PRELOAD")
        os.environ["LD_PRELOAD"] = f"{preloaded}:{library}" if preloaded else str(library)


BLAS = preload()
