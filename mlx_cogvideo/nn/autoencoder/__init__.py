"""The 3-D causal VAE: pixels to latents and back, chunk by chunk."""

from .coders import AutoencoderConfig
from .model import (
    ENCODE_CHUNK,
    TILINGS,
    AutoencoderKLCogVideoX,
    Posterior,
    in_chunks,
    largest_decode_tensor,
)
from .tiles import Tiles

__all__ = [
    "ENCODE_CHUNK",
    "TILINGS",
    "AutoencoderConfig",
    "AutoencoderKLCogVideoX",
    "Posterior",
    "Tiles",
    "in_chunks",
    "largest_decode_tensor",
]
