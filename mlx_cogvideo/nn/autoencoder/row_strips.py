"""Feature maps in strips of rows, so that a layer's temporaries are those of one strip.

A map is a list of arrays ``[batch, frames, rows, width, channels]``, from top to bottom. Where
memory doesn't matter it is one array, the whole frame.
"""

from collections.abc import Iterable, Iterator
from math import ceil, prod

import mlx.core as mx

from ..eval_schedule import EvalSchedule

RowStrips = list[mx.array]

MAX_ELEMENTS = 2**31
"""MLX refuses arrays of this size in convolutions, or fails to hold them (ml-explore/mlx#3327)."""


class ConvCache(EvalSchedule):
    """One pass of the encoder or the decoder over one clip.

    It carries the last frames that the causal convolutions saw from one chunk to the next, and
    says how the work is bounded. Make one before the first chunk and hand it to each.
    """

    def __init__(
        self, latent_rows: int, *, evaluate: bool = False, strip_elements: int | None = None
    ):
        """How a clip passes.

        Args:
            latent_rows: height of the latents; no strip is less than one of their rows.
            evaluate: compute each strip of each layer before the next; see ``EvalSchedule``.
            strip_elements: of a strip in one frame, at most; None takes frames as a whole.
        """
        super().__init__(evaluate=evaluate, prefetch=0)
        self._latent_rows = latent_rows
        self._band_elements = strip_elements
        self._frames: dict[tuple[int, int], mx.array] = {}

    def prepend(self, key: tuple[int, int], x: mx.array, count: int) -> mx.array:
        """`x` with the `count` frames before it; remembers its last ones for the next chunk.

        Before the first chunk there is nothing, and its first frame is repeated.

        Args:
            key: of a convolution, and of the strip.
        """
        past = self._frames.get(key)
        if past is None:
            past = mx.repeat(x[:, :1], count, axis=1)
        x = mx.concatenate([past, x], axis=1)
        # The sum is a copy: a slice would keep all of x alive.
        self._frames[key] = self.hold(x[:, -count:] + 0)
        return x

    def cut(self, strips: RowStrips, growth: float = 1) -> RowStrips:
        """The same map in strips of the size that suits it, all but equal to each other.

        Takes the list over, so that what was uncut can be freed.

        Args:
            growth: elements that are made of each of the map's.
        """
        rows = sum(strip.shape[2] for strip in strips)
        count = 1
        if self._band_elements is not None:
            elements = rows * prod(strips[0].shape[3:]) * growth
            count = min(ceil(elements / self._band_elements), self._latent_rows)
        unit = rows // self._latent_rows
        edges = [i * self._latent_rows // count * unit for i in range(count + 1)]
        if len(strips) == count:  # cut likewise already: the edges depend on nothing else
            return strips
        cut = [self.push(_rows(strips, *edges[i : i + 2])) for i in range(count)]
        strips.clear()
        return cut


def with_halo(strips: Iterable[mx.array], cache: ConvCache, above: int = 1) -> Iterator:
    """Each strip with a row of the next below it, and `above` rows of the last above it.

    Beyond the frame there are zeros. A strip that is the whole frame stays as it is.

    Yields:
        The strip, and the rows of padding that a 3x3 convolution has to add.
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
    parts, top = [], 0
    for strip in strips:
        bottom = top + strip.shape[2]
        if top < stop and start < bottom:
            parts.append(strip[:, :, max(start - top, 0) : stop - top])
        top = bottom
    return mx.concatenate(parts, axis=2) if len(parts) > 1 else mx.contiguous(parts[0])
