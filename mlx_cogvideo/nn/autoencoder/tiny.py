"""A small decoder of the VAE's latents in TAECVX's layout, which works a frame at a time.

The layout is that of https://github.com/madebyollin/taehv (MIT) for CogVideoX: 2-D convolutions,
blocks that also see the frame before, and nearest upsampling. Its parameters have their published
names.
"""

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn

from ..backend import disable_winograd

WIDTHS = (256, 128, 64)
"""Channels of the levels, from the latents to half of the full size."""
GROWTHS = (1, 2, 2)
"""Frames that each level makes of one, when it doubles height and width."""
BLOCKS = 3
LAST_GROWTH = 19
"""Place among the layers of the last that makes frames; what follows needs no memory."""
LATENT_LIMIT = 3.0
FRAMES = 4
"""Frames of a latent frame; the first of an odd number of latent frames gives only its last."""

Memory = dict[int, mx.array]
"""What each memory block has last seen, by its place among the layers."""


class TinyDecoder(nn.Module):
    """Decodes unscaled latents of the VAE to pixels, roughly, and in a fraction of the memory.

    Memory: what nine blocks have last seen, and a few maps of one frame, however long the clip is.
    """

    def __init__(self, latent_channels: int):
        super().__init__()
        disable_winograd()
        layers: list[nn.Module] = [Limit(), _conv(latent_channels, WIDTHS[0]), nn.ReLU()]
        for width, following, growth in zip(
            WIDTHS, (*WIDTHS[1:], WIDTHS[-1]), GROWTHS, strict=True
        ):
            layers += [MemoryBlock(width) for _ in range(BLOCKS)]
            # Upsampling has this place, and comes after the 1x1 convolution here: the same numbers
            # for a quarter of the work.
            layers += [nn.Identity(), Grow(width, growth), _conv(width, following, bias=False)]
        self.decoder = [*layers, nn.ReLU(), _conv(WIDTHS[-1], 3)]

    @property
    def dtype(self) -> mx.Dtype:
        return self.decoder[1].weight.dtype

    def decode_chunks(self, latents: mx.array) -> Iterator[mx.array]:
        """Decodes a clip latent frame by latent frame, each of which is evaluated.

        Args:
            latents: ``[B, f, h, w, c]``, unscaled. An odd number f of latent frames gives 4(f-1)+1
                frames, an even one 4f.

        Yields:
            Pixels ``[B, 1 or 4, H, W, 3]`` in [-1, 1].
        """
        memory: Memory = {}
        latents = latents.astype(self.dtype)
        for i in range(latents.shape[1]):
            pixels = []
            for k, frame in enumerate(self._frames(latents[:, i], memory)):
                # The blocks have to see frames that aren't shown, but those aren't finished.
                if i or k == FRAMES - 1 or latents.shape[1] % 2 == 0:
                    pixels.append(self._finished(frame))
            yield mx.stack(pixels, axis=1)

    def decode_stills(self, latents: mx.array) -> mx.array:
        """One frame of each latent frame, the last, ``[B, f, H, W, 3]`` in [-1, 1]: for previews.

        Args:
            latents: as in ``decode_chunks``.
        """
        memory: Memory = {}
        latents, pixels = latents.astype(self.dtype), []
        for i in range(latents.shape[1]):
            (frame,) = self._frames(latents[:, i], memory, stills=True)
            pixels.append(self._finished(frame))
        return mx.stack(pixels, axis=1)

    def _frames(
        self, x: mx.array, memory: Memory, first: int = 0, *, stills: bool = False
    ) -> Iterator[mx.array]:
        """Yields the frames, of half the size, that the levels make of one frame.

        Layers are evaluated one by one: a backend holds what it is given at once to its end.

        Args:
            memory: is changed.
            first: place of the first of the layers.
            stills: whether only the last frame of each level is made.
        """
        for i, layer in enumerate(self.decoder[first:], start=first):
            if isinstance(layer, MemoryBlock):
                before = memory.get(i)
                memory[i] = x
                x = layer(x, mx.zeros_like(x) if before is None else before)
            elif isinstance(layer, Grow):
                for frame in layer.frames(x)[-1 if stills else 0 :]:
                    if i == LAST_GROWTH:
                        yield frame
                    else:
                        yield from self._frames(_upsampled(frame), memory, i + 1, stills=stills)
                return
            else:
                x = layer(x)
            mx.eval(x)

    def _finished(self, x: mx.array) -> mx.array:
        """Pixels ``[B, H, W, 3]`` in [-1, 1] of a frame that the levels have made, evaluated."""
        x = _upsampled(x)
        for layer in self.decoder[LAST_GROWTH + 1 :]:
            x = layer(x)
            mx.eval(x)
        x = mx.clip(x, 0, 1) * 2 - 1
        mx.eval(x)
        return x


class Limit(nn.Module):
    """Keeps latents softly within [-3, 3]."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.tanh(x / LATENT_LIMIT) * LATENT_LIMIT


class MemoryBlock(nn.Module):
    """Three convolutions of a frame and the one before it, around which the frame is added."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = [
            _conv(2 * channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
        ]

    def __call__(self, x: mx.array, before: mx.array) -> mx.array:
        y = mx.concatenate([x, before], axis=-1)
        for layer in self.conv:
            y = layer(y)
        return nn.relu(y + x)


class Grow(nn.Module):
    """1x1 convolution that makes one or more frames of one."""

    def __init__(self, channels: int, times: int):
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(channels, channels * times, kernel_size=1, bias=False)

    def frames(self, x: mx.array) -> list[mx.array]:
        return mx.split(self.conv(x), self.times, axis=-1)


def _conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=bias)


def _upsampled(x: mx.array) -> mx.array:
    return mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)


def tiny_footprint(height: int, width: int) -> tuple[int, int]:
    """Elements that decoding holds for latents of `height` and `width`.

    Returns:
        Those of what the blocks have last seen, and those of one map of the widest layer.
    """
    area = height * width
    seen = sum(BLOCKS * channels * 4**level for level, channels in enumerate(WIDTHS))
    return seen * area, WIDTHS[-1] * 4 ** len(WIDTHS) * area
