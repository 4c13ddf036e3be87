"""Evaluation of a lazy graph piece by piece, so that the temporaries of a piece are freed early."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import mlx.core as mx

from .backend import kernels

PUSH_ELEMENTS = 2**25
"""Least number of elements that is evaluated at a time: small layers are evaluated together."""


class EvalSchedule:
    """Decides when the arrays of one pass through a network are evaluated.

    A lazy graph that is evaluated as a whole keeps the temporaries of all its layers on some
    devices. A schedule evaluates it in pieces, asynchronously: it holds the temporaries of one or
    two, and while the device computes them, Python builds the next.
    """

    def __init__(self, *, evaluate: bool = True, prefetch: int = 1):
        """
        Args:
            evaluate: False leaves everything lazy, as gradients need it; memory is then unbounded.
            prefetch: pieces that the device gets before the current one is done. With 0 it idles
                for a moment before each, 5 % of a step (docs/benchmarks.md). More than 1 only takes
                more memory.
        """
        self.evaluate = evaluate
        self._waiting: list[mx.array] = []
        self._waiting_elements = 0
        self._prefetch = prefetch
        self._running: list[mx.array] = []

    def hold(self, x: mx.array) -> mx.array:
        """Evaluates `x` with the next piece, so that its inputs can be freed. Returns `x`."""
        if self.evaluate:
            self._waiting.append(x)
        return x

    def push(self, x: mx.array, elements: int | None = None) -> mx.array:
        """Adds `x` to the current piece, and starts the piece once it is large enough.

        Starting a piece waits until at most `prefetch` earlier ones are left to compute.

        Args:
            elements: size of the largest array that `x` is computed from, if not that of `x`.

        Returns:
            `x`.
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
        """Adds arrays to the same piece; see `push`. Returns them."""
        *others, last = arrays
        return [*map(self.hold, others), self.push(last, elements)]

    def flush(self, x: mx.array) -> mx.array:
        """Evaluates `x`, the last array of the pass, and everything that waits. Returns `x`."""
        if self.evaluate:
            mx.eval(x, self._waiting)
            self._running, self._waiting, self._waiting_elements = [], [], 0
        return x


class RecordedSchedule(EvalSchedule):
    """Notes what a traced function would evaluate, for another schedule.

    Attributes:
        arrays: what was held or pushed, in order.
        elements: the elements of each pushed array, 0 for one that was held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arrays: list[mx.array] = []
        self.elements: list[int] = []

    def hold(self, x: mx.array) -> mx.array:
        self.arrays.append(x)
        self.elements.append(0)
        return x

    def push(self, x: mx.array, elements: int | None = None) -> mx.array:
        self.arrays.append(x)
        self.elements.append(elements or x.size)
        return x


def replay(arrays: list[mx.array], elements: Sequence[int], schedule: EvalSchedule) -> None:
    """Gives recorded arrays to a schedule. Empties `arrays`."""
    for count in elements:
        if count:
            schedule.push(arrays.pop(0), count)
        else:
            schedule.hold(arrays.pop(0))


LAZY = EvalSchedule(evaluate=False)
"""A schedule that evaluates nothing."""


def in_kernels(layer: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """``layer(x)`` of a linear layer as wide as its input, in as many products as a Mac needs."""
    return in_parts(layer, x, kernels(2 * x.size * x.shape[-1]))


def in_parts(function: Callable[[mx.array], mx.array], x: mx.array, count: int) -> mx.array:
    """``function(x)``, which treats each row ``x[..., :]`` by itself, in `count` calls."""
    if count == 1:
        return function(x)
    rows = x.flatten(0, -2)
    count = min(count, len(rows))
    edges = [i * len(rows) // count for i in range(count + 1)]
    return mx.concatenate([function(rows[a:b]) for a, b in pairwise(edges)]).reshape(x.shape)


def in_passes(passes: int, *batch: mx.array) -> Iterator[tuple[mx.array, ...]]:
    """Splits the arrays of a batch into `passes` equal parts, to be computed one after another."""
    return zip(*(mx.split(array, passes) for array in batch), strict=True)
