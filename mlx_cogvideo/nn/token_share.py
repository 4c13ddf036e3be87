"""The rows of a token sequence that one of several processes computes.

Everything in a block but attention treats each token by itself. For attention a process needs the
keys and values of all tokens, which the processes give each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class TokenShare:
    """A process's rows of the tokens, and how it gets what the others have.

    Attributes:
        counts: rows of each process that has some, in the order of the tokens.
        index: the position of this process among them.
        gather: takes an array of this process and returns those of all in `counts`, one after
            another on the first axis. The arrays must have the same shape.
    """

    counts: Sequence[int]
    index: int
    gather: Callable[[mx.array], mx.array]

    @property
    def first(self) -> int:
        return sum(self.counts[: self.index])

    @property
    def end(self) -> int:
        return self.first + self.counts[self.index]

    def keys_values_of_all(
        self, keys: mx.array, values: mx.array, meanwhile: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Keys and values of all tokens, from those of this process's.

        Memory: those of all tokens twice, while they are exchanged.

        Args:
            keys, values: ``[batch, heads, tokens, head_dim]``.
            meanwhile: what the device computes while the processes exchange.
        """
        heads, largest = keys.shape[1], max(self.counts)
        own = mx.concatenate([x.transpose(2, 0, 1, 3) for x in (keys, values)], axis=2)
        own = padded(own, largest)
        mx.async_eval(own)
        mx.async_eval(meanwhile)
        joined = self.gather(own)
        if any(count < largest for count in self.counts):
            starts = range(0, len(joined), largest)
            rows = zip(starts, self.counts, strict=True)
            joined = mx.concatenate([joined[start : start + count] for start, count in rows])
        joined = joined.transpose(1, 2, 0, 3)
        return joined[:, :heads], joined[:, heads:]


def padded(x: mx.array, length: int) -> mx.array:
    """`x` with zeros behind its first axis, so that it has this length."""
    missing = length - len(x)
    return mx.concatenate([x, mx.zeros((missing, *x.shape[1:]), x.dtype)]) if missing else x
