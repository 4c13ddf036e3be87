"""Handing lazy work to the device piece by piece, so that what one piece leaves is freed."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import mlx.core as mx

from .backend import kernels

PUSH_ELEMENTS = 2**25
"""A device gets its work in portions of at least so many elements: small layers go together."""


class EvalSchedule:
    """The work of one pass through a network, in the order in which it is put together.

    A lazy graph that is computed at once keeps the temporaries of all its parts on some devices.
    In portions it keeps those of one or two, and while the device computes them the next is put
    together.
    """

    def __init__(self, *, evaluate: bool = True, prefetch: int = 1):
        """
        Args:
            prefetch: portions that the device is given before one is done. With none it waits for a
                moment before each, 5 % of a step (docs/benchmarks.md); more only hold more memory.
            evaluate: False leaves all work lazy, as gradients need it, and the memory unbounded.
        """
        self.evaluate = evaluate
        self._waiting: list[mx.array] = []
        self._waiting_elements = 0
        self._prefetch = prefetch
        self._running: list[mx.array] = []

    def hold(self, x: mx.array) -> mx.array:
        """`x`, to be computed before what it is made of is let go."""
        if self.evaluate:
            self._waiting.append(x)
        return x

    def push(self, x: mx.array, elements: int | None = None) -> mx.array:
        """`x`, which is about to be computed unless all is lazy.

        Its memory is taken when all before it are done, but for `ahead` of them.

        Args:
            elements: of the largest array that `x` is made of, where that isn't its own size.
        """
        if self.evaluate:
            self._waiting.append(x)
            self._waiting_elements += elements or x.size
            if self._waiting_elements >= PUSH_ELEMENTS:
                while len(self._running) > self._prefetch:
                    mx.eval(self._running.pop(0))
                mx.async_eval(self._waiting)
                self._running.append(x)
                self._waiting, self._waiting_elements = [], 0
        return x

    def push_all(self, arrays: Sequence[mx.array], elements: int | None = None) -> list[mx.array]:
        """The arrays, which are about to be computed together; see `done`."""
        *others, last = arrays
        return [*map(self.hold, others), self.push(last, elements)]

    def flush(self, x: mx.array) -> mx.array:
        """`x`, the last piece, computed with all that waits."""
        if self.evaluate:
            mx.eval(x, self._waiting)
            self._running, self._waiting, self._waiting_elements = [], [], 0
        return x


LAZY = EvalSchedule(evaluate=False)
"""Computes nothing by itself."""


def in_kernels(layer: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """``layer(x)`` of a linear layer as wide as its input, in as many products as a Mac wants."""
    count = kernels(2 * x.size * x.shape[-1])
    if count == 1:
        return layer(x)
    rows = x.flatten(0, -2)
    count = min(count, len(rows))
    edges = [i * len(rows) // count for i in range(count + 1)]
    return mx.concatenate([layer(rows[a:b]) for a, b in pairwise(edges)]).reshape(x.shape)


def in_passes(passes: int, *batch: mx.array) -> Iterator[tuple[mx.array, ...]]:
    """The arrays of a batch in equal parts, which are computed one after another."""
    return zip(*(mx.split(array, passes) for array in batch), strict=True)
