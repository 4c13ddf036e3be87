"""The size of a video: frames, height and width, and the latents that they stand for."""

from dataclasses import dataclass
from typing import Self

from ..checkpoints.variants import Variant
from ..errors import InvalidInputError
from ..nn.autoencoder import MAX_ELEMENTS, AutoencoderConfig
from ..nn.transformer import TransformerConfig

FRAME_STEP = 8
"""Frames of a chunk of the VAE's decoder: every video has a multiple of them plus one."""


@dataclass(frozen=True)
class Geometry:
    """Frames, height and width in pixels, and the latents they stand for.

    Attributes:
        latent_shape: ``(1, frames, height, width, channels)`` of the latents.
        leading_latents: latent frames at the front that only fill up a temporal patch (1.5) and
            are dropped before decoding.
    """

    num_frames: int
    height: int
    width: int
    latent_shape: tuple[int, int, int, int, int]
    leading_latents: int

    @classmethod
    def choose(
        cls,
        variant: Variant | None,
        transformer: TransformerConfig,
        vae: AutoencoderConfig,
        *,
        num_frames: int | None,
        height: int | None,
        width: int | None,
    ) -> Self:
        """The asked-for size, or the model's own, after checking that the model can make it.

        Raises:
            InvalidInputError: the size breaks a rule; the message gives the nearest that don't.
        """
        ratio = vae.spatial_compression_ratio
        native = variant or _Native(transformer, ratio)
        num_frames = native.num_frames if num_frames is None else num_frames
        height = native.height if height is None else height
        width = native.width if width is None else width

        _check_frames(num_frames, native.frame_step, native.max_frames if variant else None)
        for name, size in (("height", height), ("width", width)):
            _check_multiple(name, size, ratio * transformer.patch_size)
        if transformer.use_learned_positional_embeddings:
            _check_learned_positions(num_frames, height, width, _Native(transformer, ratio))

        latent_frames = (num_frames - 1) // vae.temporal_compression_ratio + 1
        leading = transformer.leading_frames(latent_frames)
        sides = height // ratio, width // ratio
        shape = (1, latent_frames + leading, *sides, transformer.out_channels)
        features = transformer.num_attention_heads * transformer.attention_head_dim
        if transformer.token_count(shape) * features >= MAX_ELEMENTS:
            raise InvalidInputError(
                f"{num_frames} frames of {width}x{height} are more than an array can hold: use a "
                "smaller size, or --extend for a longer video"
            )
        return cls(num_frames, height, width, shape, leading)


class _Native:
    """A transformer's own size, read from its configuration."""

    def __init__(self, config: TransformerConfig, ratio: int):
        self.num_frames = self.max_frames = config.sample_frames
        self.frame_step = FRAME_STEP
        self.height = config.sample_height * ratio
        self.width = config.sample_width * ratio


def _check_frames(num_frames: int, step: int, limit: int | None) -> None:
    """Raises InvalidInputError for frames that can't be made; proposes multiples of `step` plus 1.

    Every model can make 8N+1 frames.
    """
    if num_frames < 1 or num_frames % FRAME_STEP != 1:
        below = (num_frames - 1) // step * step + 1
        usable = [n for n in (below, below + step) if n >= 1 and (limit is None or n <= limit)]
        raise InvalidInputError(
            f"the number of frames must be 8N+1 (9, 17, 25, ...); got {num_frames}: "
            f"use {' or '.join(map(str, usable)) or limit}"
        )
    if limit is not None and num_frames > limit:
        raise InvalidInputError(f"this model makes at most {limit} frames; got {num_frames}")


def _check_multiple(name: str, size: int, multiple: int) -> None:
    if size < multiple or size % multiple:
        nearest = max(1, round(size / multiple)) * multiple
        raise InvalidInputError(
            f"{name} must be a multiple of {multiple}; got {size}: {nearest} is the nearest"
        )


def _check_learned_positions(num_frames: int, height: int, width: int, native: _Native) -> None:
    if (height, width) != (native.height, native.width) or num_frames > native.num_frames:
        raise InvalidInputError(
            f"this model's learned positions hold {native.width}x{native.height} and at most "
            f"{native.num_frames} frames; got {width}x{height} and {num_frames} frames"
        )
