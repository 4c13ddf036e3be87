"""The memory of a pass, counted in elements from the configuration."""

from dataclasses import dataclass
from math import ceil

from ..config import AutoencoderConfig

CHUNK_FRAMES = 9
"""Frames of the largest usual chunk, the first one of 8N+1 frames."""


@dataclass(frozen=True)
class Footprint:
    """Elements that are alive at the worst moment of a pass.

    Attributes:
        remembered: the frames that the causal convolutions carry from chunk to chunk.
        maps: the most that lies between two layers: a residual block's input and the result of
            its first convolution, or the wider input of the block.
        strip: the largest piece of a map that is computed at a time; a device holds several.
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
    """The footprint of a pass over frames of `height` and `width` latent pixels.

    Args:
        frames: frames of a chunk.
        strip_elements: most elements of a strip in one frame; None is for whole frames.
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
    return Footprint(2 * remembered, maps, frames * top * widest * ceil(height / count) // height)
