"""How much memory a pass takes, counted from the configuration: elements, not bytes."""

from dataclasses import dataclass
from math import ceil

from .coders import AutoencoderConfig

CHUNK_FRAMES = 9
"""Of the largest usual chunk, the first of 8N+1."""


@dataclass(frozen=True)
class Footprint:
    """Elements that are alive at the worst moment of a pass.

    Attributes:
        remembered: the frames that the causal convolutions carry from chunk to chunk.
        maps: what is between two layers where that is most: a residual block's input and the result
            of its first convolution, or the wider input that it began with.
        strip: the largest piece of a map that is worked on at a time, of which a device holds
            several.
    """

    remembered: int
    maps: int
    strip: int


def footprint(
    config: AutoencoderConfig,
    height: int,
    width: int,
    *,
    frames: int = CHUNK_FRAMES,
    decode: bool = True,
    strip_elements: int | None = None,
) -> Footprint:
    """Of a pass over frames of `height` and `width` latent pixels, in strips or whole.

    Args:
        frames: of a chunk.
    """
    channels = config.block_out_channels
    area = height * width
    top = area * config.spatial_compression_ratio**2
    layers = config.layers_per_block + decode
    # The convolutions of the middle, and of the two ends.
    remembered = area * 4 * channels[-1]
    if decode:
        remembered += area * config.latent_channels + top * channels[0]
    else:
        remembered += top * config.in_channels + area * channels[-1]
    for level, inner in enumerate(channels):
        neighbour = min(level + 1, len(channels) - 1) if decode else max(level - 1, 0)
        remembered += top // 4**level * (channels[neighbour] + (2 * layers - 1) * inner)
    widest = max(channels[:2]) if decode else channels[0]
    maps = frames * top * max(widest, 2 * channels[0])
    count = 1 if strip_elements is None else min(ceil(top * widest / strip_elements), height)
    return Footprint(
        2 * remembered,
        maps,
        frames * top * widest * ceil(height / count) // height,
    )
