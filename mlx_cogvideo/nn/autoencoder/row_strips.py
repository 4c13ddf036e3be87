"""Feature maps in strips of rows, so that a layer's temporaries are those of one strip.

A map is a list of arrays ``[batch, frames, rows, width, channels]``, from top to bottom. It has a
single strip, the whole frame, if memory isn't bounded.
"""

from collections.abc import Iterable, Iterator
from math import ceil, prod

import mlx.core as mx

from ..eval_schedule import EvalSchedule

RowStrips = list[mx.array]

MAX_ELEMENTS = 2**31
"""MLX refuses arrays of this size in convolutions, or fails to hold them (ml-explore/mlx#3327)."""


class ConvCache(EvalSchedule):
    """The state of one pass of the encoder or the decoder over one clip.

    It carries the last frames that each causal convolution saw from one chunk to the next, and
    bounds the memory of the pass. Make one before the first chunk and pass it with each.
    """

    def __init__(
        self, latent_rows: int, *, evaluate: bool = False, strip_elements: int | None = None
    ):
        """
        Args:
            latent_rows: height of the latents; a strip covers at least one of their rows.
            evaluate: evaluate each strip of each layer before the next; see ``EvalSchedule``.
            strip_elements: most elements of a strip in one frame; None computes whole frames.
        """
        super().__init__(evaluate=evaluate, prefetch=0)
        self._latent_rows = latent_rows
        self._strip_elements = strip_elements
        self._frames: dict[tuple[int, int], mx.array] = {}

    def prepend(self, key: tuple[int, int], x: mx.array, count: int) -> mx.array:
        """Puts the `count` frames before `x` in front of it, and remembers its own last ones.

        Nothing comes before the first chunk: its first frame is repeated.

        Args:
            key: the identity of a convolution, and the number of the strip.
        """
        past = self._frames.get(key)
        if past is None:
            past = mx.repeat(x[:, :1], count, axis=1)
        x = mx.concatenate([past, x], axis=1)
        # The sum is a copy: a slice would keep all of x alive.
        self._frames[key] = self.hold(x[:, -count:] + 0)
        return x

    def cut(self, strips: RowStrips, growth: float = 1) -> RowStrips:
        """Cuts a map anew into strips of nearly equal size, as large as they may be.

        Empties the list that it is given, so that the old strips can be freed.

        Args:
            growth: elements that the next layer makes from each element of the map.
        """
        rows = sum(strip.shape[2] for strip in strips)
        count = 1
        if self._strip_elements is not None:
            elements = rows * prod(strips[0].shape[3:]) * growth
            count = min(ceil(elements / self._strip_elements), self._latent_rows)
        unit = rows // self._latent_rows
        edges = [i * self._latent_rows // count * unit for i in range(count + 1)]
        if len(strips) == count:  # the same cut, which depends on nothing else
            return strips
        cut = [self.push(_rows(strips, *edges[i : i + 2])) for i in range(count)]
        strips.clear()
        return cut


def with_halo(
    strips: Iterable[mx.array], cache: ConvCache, above: int = 1
) -> Iterator[tuple[mx.array, int]]:
    """Extends each strip by the next one's first row and by `above` last rows of the previous one.

    Zeros take the place of rows beyond the frame. A single strip, the whole frame, isn't extended.

    Yields:
        A strip, and the rows of padding that a 3x3 convolution still has to add.
    """
    strips = iter(strips)
    strip, following = next(strips), next(strips, None)
    if following is None:
        yield strip, 1
        return
    zeros = mx.zeros_like(strip[:, :, :1])
    last = zeros
    while strip is not None:
        below = zeros if following is None else following[:, :, :1]
        yield mx.concatenate([last, strip, below][1 - above :], axis=2), 0
        last = cache.hold(mx.contiguous(strip[:, :, -1:]))
        strip, following = following, next(strips, None)


def check_size(x: mx.array) -> mx.array:
    """Raises ValueError for an array that is too large for MLX."""
    if x.size >= MAX_ELEMENTS:
        raise ValueError(
            f"an array of shape {x.shape} has 2**31 elements or more, which is too large for MLX: "
            'use tiling="exact" or "tiled"'
        )
    return x


def _rows(strips: RowStrips, start: int, stop: int) -> mx.array:
    """A copy of the rows from `start` to `stop` of a map."""
    parts, top = [], 0
    for strip in strips:
        bottom = top + strip.shape[2]
        if top < stop and start < bottom:
            parts.append(strip[:, :, max(start - top, 0) : stop - top])
        top = bottom
    return mx.concatenate(parts, axis=2) if len(parts) > 1 else mx.contiguous(parts[0])
