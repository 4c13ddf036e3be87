"""Fusion of chains of elementwise operations into one kernel, on a GPU."""

from collections.abc import Callable
from functools import wraps

import mlx.core as mx

from .backend import on_gpu


def fused(function: Callable) -> Callable:
    """Compiles `function` for the GPU, and calls it uncompiled on the CPU.

    On the CPU ``mx.compile`` builds each kernel with a C++ compiler at run time: this is slow to
    start, and not every machine has one. ``mx.disable_compile()`` switches fusion off everywhere.
    """
    compiled = mx.compile(function)

    @wraps(function)
    def call(*arrays):
        return compiled(*arrays) if on_gpu() else function(*arrays)

    return call
