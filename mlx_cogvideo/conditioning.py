"""The picture that an image-to-video model starts from, as its transformer takes it."""

import mlx.core as mx

from .errors import InvalidInputError
from .nn.autoencoder import AutoencoderConfig

IMAGE_LATENT_SCALES = ("official", "diffusers", "finetune")


def image_latent_scale(config: AutoencoderConfig, name: str) -> float:
    """What the latents of the picture are multiplied with.

    For the models of version 1.0 it is the VAE's scaling factor, as for all latents. For 1.5 the
    official code disagrees with itself, and with diffusers: ``"official"`` is 1, with which the
    original tools sample; ``"diffusers"`` divides by the factor; ``"finetune"`` multiplies with it,
    as the official trainer does.

    Raises:
        InvalidInputError: there is no such scale.
    """
    if name not in IMAGE_LATENT_SCALES:
        raise InvalidInputError(
            f"image_latent_scale must be one of {', '.join(IMAGE_LATENT_SCALES)}; got {name!r}"
        )
    factor = config.scaling_factor
    if not config.invert_scale_latents:
        return factor
    return {"official": 1.0, "diffusers": 1 / factor, "finetune": factor}[name]


def place_image(latents: mx.array, frames: int) -> mx.array:
    """The picture in the first of `frames` latent frames, and zeros: ``[1, f, h, w, c]``.

    With 1.5's leading frame that is where the picture stands.

    Args:
        latents: ``[1, 1, h, w, c]``, scaled.
    """
    batch, _, *rest = latents.shape
    return mx.concatenate([latents, mx.zeros((batch, frames - 1, *rest), latents.dtype)], axis=1)
