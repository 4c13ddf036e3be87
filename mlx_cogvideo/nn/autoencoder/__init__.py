"""The 3-D causal VAE: pixels to latents and back, chunk by chunk."""

from ..config import AutoencoderConfig
from .footprint import CHUNK_FRAMES, footprint
from .model import (
    ENCODE_CHUNK,
    OLD_TILINGS,
    STRIP_ELEMENTS,
    TILE_STRIP_ELEMENTS,
    TILINGS,
    AutoencoderKLCogVideoX,
    Posterior,
    chunk_plan,
    in_chunks,
    largest_decode_tensor,
    tiling_name,
)
from .row_strips import MAX_ELEMENTS
from .tiles import Coder, Tiles
from .tiny import TinyDecoder, tiny_footprint

__all__ = [
    "CHUNK_FRAMES",
    "ENCODE_CHUNK",
    "MAX_ELEMENTS",
    "OLD_TILINGS",
    "STRIP_ELEMENTS",
    "TILE_STRIP_ELEMENTS",
    "TILINGS",
    "AutoencoderConfig",
    "AutoencoderKLCogVideoX",
    "Coder",
    "Posterior",
    "Tiles",
    "TinyDecoder",
    "chunk_plan",
    "footprint",
    "in_chunks",
    "largest_decode_tensor",
    "tiling_name",
    "tiny_footprint",
]
