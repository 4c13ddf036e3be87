"""Fusing chains of elementwise operations into one kernel, where that pays."""

from collections.abc import Callable
from functools import wraps

import mlx.core as mx

from .backend import on_gpu


def fused(function: Callable) -> Callable:
    """Compiles `function` for the GPU and calls it as it is on the CPU.

    On the CPU ``mx.compile`` builds each kernel with a C++ compiler at run time: slow to start and
    not there on every machine. ``mx.disable_compile()`` switches the fusing off everywhere.
    """
    compiled = mx.compile(function)

    @wraps(function)
    def call(*arrays):
        return compiled(*arrays) if on_gpu() else function(*arrays)

    return call
