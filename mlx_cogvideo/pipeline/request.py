"""What is asked of a model: the size of a run and its settings, checked before it starts."""

from dataclasses import dataclass, replace
from typing import Any, Self

from ..checkpoints.variants import Variant
from .vae_stage import Tiling
from .sources import Source
from ..errors import InvalidInputError
from ..nn.autoencoder import AutoencoderConfig
from ..nn.transformer import TransformerConfig
from ..diffusion.schedulers import Scheduler


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

        _check_frames(num_frames, native.max_frames if variant else None)
        for name, size in (("height", height), ("width", width)):
            _check_multiple(name, size, ratio * transformer.patch_size)
        if transformer.use_learned_positional_embeddings:
            _check_learned_positions(num_frames, height, width, _Native(transformer, ratio))

        latent_frames = (num_frames - 1) // vae.temporal_compression_ratio + 1
        leading = transformer.leading_frames(latent_frames)
        shape = (
            1,
            latent_frames + leading,
            height // ratio,
            width // ratio,
            transformer.out_channels,
        )
        return cls(num_frames, height, width, shape, leading)


@dataclass(frozen=True)
class Request:
    """A video to make, with every setting in effect: nothing is left to a default.

    Made by ``CogVideoXPipeline.request``, which also says what the fields mean.
    """

    prompt: str | None
    negative_prompt: str
    geometry: Geometry
    num_inference_steps: int
    guidance_scale: float
    dynamic_cfg: str
    scheduler: str | Scheduler
    seed: int
    tiling: Tiling
    source: Source
    uncond: str
    guidance_range: tuple[int, int] | None
    extend: int
    overlap: int
    cache: str | None
    cache_threshold: float | None
    sequential_guidance: bool

    @property
    def encodes_frames(self) -> bool:
        """Whether the VAE encodes something: what the video starts from, or goes on from."""
        return bool(self.extend) or not self.source.is_noise

    @property
    def source_tiling(self) -> Tiling:
        """How the VAE takes what the video starts from: where in tiles, in those of decoding."""
        if self.source.tiling == "tiled":
            return replace(self.tiling, mode="tiled")
        return Tiling(self.source.tiling)

    @property
    def guided(self) -> bool:
        """Whether steps are computed with and without the prompt."""
        return self.guidance_scale > 1

    @property
    def steps(self) -> int:
        """Steps that are taken: with a video to start from, not the first, noisiest ones."""
        strength = None if self.source.video is None else self.source.strength
        return steps_taken(self.num_inference_steps, strength)

    @property
    def steps_of_all_windows(self) -> int:
        """The sum; windows that go on take all steps."""
        return self.steps + self.extend * self.num_inference_steps

    def guides(self, step: int) -> bool:
        """Whether a step, counted from 0, is computed without the prompt, too."""
        first, end = self.guidance_range or (0, self.steps)
        return self.guided and first <= step < end

    @property
    def total_frames(self) -> int:
        """Frames of the whole video, which may be of several windows."""
        frames = self.geometry.num_frames
        return frames + self.extend * (frames - self.overlap)

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Shape of the latents that are decoded: without the leading ones."""
        batch, frames, *rest = self.geometry.latent_shape
        return batch, frames - self.geometry.leading_latents, *rest

    def check_steps(self) -> None:
        """Raises InvalidInputError where no step is left, or those of the guidance aren't there."""
        if self.steps < 1:
            raise InvalidInputError(
                f"strength {self.source.strength:g} leaves none of {self.num_inference_steps} "
                "steps: raise one of them"
            )
        if self.guidance_range is not None:
            if self.extend and self.source.video is not None:
                raise InvalidInputError(
                    "guidance_range can't be told for a video that starts from another and goes "
                    "on: its windows take other numbers of steps"
                )
            if not self.guided:
                raise InvalidInputError("guidance_range needs a guidance_scale above 1")
            told = self.guidance_range
            whole = len(told) == 2 and all(isinstance(step, int) for step in told)
            if not (whole and 0 <= told[0] < told[1] <= self.steps):
                raise InvalidInputError(
                    f"guidance_range must be two steps from 0 to {self.steps}, the second above "
                    f"the first; got {', '.join(map(str, told))}"
                )

    def settings(self) -> dict[str, Any]:
        """The arguments of ``CogVideoXPipeline.request`` that give this again, fit for JSON."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_frames": self.geometry.num_frames,
            "height": self.geometry.height,
            "width": self.geometry.width,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "dynamic_cfg": self.dynamic_cfg,
            "scheduler": self.scheduler,
            "seed": self.seed,
            "uncond": self.uncond,
            "guidance_range": self.guidance_range and list(self.guidance_range),
            "sequential_guidance": self.sequential_guidance,
            **(
                {"cache": self.cache, "cache_threshold": self.cache_threshold} if self.cache else {}
            ),
            **({"extend": self.extend, "overlap": self.overlap} if self.extend else {}),
            **self.source.settings(),
            **({"source_tiling": self.source.tiling} if self.encodes_frames else {}),
            **self.tiling.settings(),
        }


def steps_taken(num_inference_steps: int, strength: float | None) -> int:
    """How many of the steps are taken with a video of that strength, or None of them."""
    return num_inference_steps if strength is None else int(num_inference_steps * strength)


class _Native:
    """A transformer's own size, read from its configuration."""

    def __init__(self, config: TransformerConfig, ratio: int):
        self.num_frames = self.max_frames = config.sample_frames
        self.height = config.sample_height * ratio
        self.width = config.sample_width * ratio


def _check_frames(num_frames: int, limit: int | None) -> None:
    below = (num_frames - 1) // 8 * 8 + 1
    if num_frames < 1 or num_frames != below:
        usable = [n for n in (below, below + 8) if n >= 1 and (limit is None or n <= limit)]
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
