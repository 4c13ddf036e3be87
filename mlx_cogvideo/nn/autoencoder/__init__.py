"""The 3-D causal VAE: pixels to latents and back, chunk by chunk."""

from .model import AutoencoderConfig, AutoencoderKLCogVideoX, Posterior, largest_decode_tensor

__all__ = ["AutoencoderConfig", "AutoencoderKLCogVideoX", "Posterior", "largest_decode_tensor"]
