"""The 3-D causal VAE: pixels to latents and back, chunk by chunk."""

from .bands import MAX_ELEMENTS
from .coders import AutoencoderConfig
from .footprint import CHUNK_FRAMES, footprint
from .model import (
    BAND_ELEMENTS,
    ENCODE_CHUNK,
    TILE_BAND_ELEMENTS,
    TILINGS,
    AutoencoderKLCogVideoX,
    Posterior,
    chunk_plan,
    in_chunks,
    largest_decode_tensor,
)
from .tiles import Tiles

__all__ = [
    "BAND_ELEMENTS",
    "CHUNK_FRAMES",
    "ENCODE_CHUNK",
    "MAX_ELEMENTS",
    "TILE_BAND_ELEMENTS",
    "TILINGS",
    "AutoencoderConfig",
    "AutoencoderKLCogVideoX",
    "Posterior",
    "Tiles",
    "chunk_plan",
    "footprint",
    "in_chunks",
    "largest_decode_tensor",
]
