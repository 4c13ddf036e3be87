"""What a video starts from besides noise and a prompt: a picture, or another video.

The tasks differ in this alone. A picture's latents stand beside the noisy ones in every step;
those of a video are what noise is added to in the beginning.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import mlx.core as mx
import numpy as np

from .checkpoints import content_digest
from .errors import InvalidInputError
from .nn.autoencoder import AutoencoderConfig
from .schedulers import Scheduler
from .video import FITS, Shape, measure, read_clip, read_image

if TYPE_CHECKING:
    from .request import Geometry

IMAGE_LATENT_SCALES = ("official", "diffusers", "finetune")

Picture = str | Path | np.ndarray


@dataclass(frozen=True)
class Source:
    """What a video starts from.

    Attributes:
        image: the file of a picture, or uint8 ``[H, W, 3]``; for image-to-video models.
        video: the file of a clip, a folder of frames, or uint8 ``[F, H, W, 3]``.
        strength: of the noise on the clip, up to 1, which leaves nothing of it: the share of the
            steps that are taken.
        fit: how a file comes to the size of the video, one of ``video.FITS``.
        image_latent_scale: see ``image_latent_scale``.
        prefix: frames that the video begins with, uint8 ``[F, H, W, 3]``, of a window that goes on.
    """

    image: Picture | None = None
    video: Picture | None = None
    strength: float = 0.8
    fit: str = "crop"
    image_latent_scale: str = "official"
    prefix: np.ndarray | None = None

    @property
    def is_noise(self) -> bool:
        """Whether there is nothing to start from but noise."""
        return self.image is None and self.video is None and self.prefix is None

    @classmethod
    def choose(cls, *, takes_image: bool, fps: float, geometry: "Geometry", **asked: Any) -> Self:
        """The source that is asked for, read once so that it is known to be good.

        Args:
            takes_image: whether the model is an image-to-video one.
            fps: frames a second that the model makes.

        Raises:
            InvalidInputError: the model needs another one, or it can't be read.
        """
        paths = {
            name: os.path.abspath(asked[name])
            for name in ("image", "video")
            if isinstance(asked[name], str | Path)
        }
        source = cls(**{**asked, **paths})
        if source.fit not in FITS:
            raise InvalidInputError(f"image_fit must be one of {', '.join(FITS)}; got {source.fit}")
        check_image_latent_scale(source.image_latent_scale)
        if takes_image and source.video is not None:
            raise InvalidInputError("an image-to-video model can't start from a video")
        if takes_image and source.image is None:
            raise InvalidInputError("this is an image-to-video model: give it an image")
        if source.image is not None and not takes_image:
            raise InvalidInputError(
                "this model makes videos of text: an image needs an image-to-video model, "
                "such as 5b-i2v"
            )
        if not 0 < source.strength <= 1:
            raise InvalidInputError(
                f"strength must be above 0 and at most 1; got {source.strength}"
            )
        source._check(geometry, fps)
        return source

    def _check(self, geometry: "Geometry", fps: float) -> None:
        if self.image is not None:
            self.read_image(geometry)
        if isinstance(self.video, np.ndarray):
            self.read_video(geometry, fps)
        elif self.video is not None:
            has = measure(Path(self.video), fps).frames
            if has < geometry.num_frames:
                raise InvalidInputError(
                    f"{self.video} has {has} frames at {fps:g} a second, and "
                    f"{geometry.num_frames} are wanted: ask for fewer (8N+1)"
                )

    def read_image(self, geometry: "Geometry") -> np.ndarray:
        """The picture, uint8 ``[H, W, 3]``, in the size of the video."""
        size = geometry.height, geometry.width
        if not isinstance(self.image, np.ndarray):
            return read_image(self.image, *size, self.fit)
        return _checked("image", self.image, (*size, 3))

    def read_video(self, geometry: "Geometry", fps: float) -> np.ndarray:
        """The clip, uint8 ``[F, H, W, 3]``, in the size and length of the video."""
        size = geometry.num_frames, geometry.height, geometry.width
        if not isinstance(self.video, np.ndarray):
            return read_clip(Path(self.video), Shape(*size, fps, fit=self.fit))
        return _checked("video", self.video[: size[0]], (*size, 3))

    def settings(self) -> dict[str, Any]:
        """The arguments that give this again, fit for JSON; of arrays only that they were there."""
        told: dict[str, Any] = {}
        if self.image is not None:
            told |= {"image": self.image, "image_latent_scale": self.image_latent_scale}
        if self.video is not None:
            told |= {"video": self.video, "strength": self.strength}
        if told:
            told["image_fit"] = self.fit
        return {k: "an array" if isinstance(v, np.ndarray) else v for k, v in told.items()}

    def digests(self) -> dict[str, str]:
        """SHA-256 of the files, by the names of settings."""
        paths = {"image_sha256": self.image, "video_sha256": self.video}
        return {k: content_digest(Path(v)) for k, v in paths.items() if isinstance(v, str)}


def _checked(name: str, pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise InvalidInputError(
            f"{name} must be uint8 {list(shape)}; got {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels


@dataclass(frozen=True)
class Conditioning:
    """A source as the transformer takes it.

    Attributes:
        image_latents: ``[1, f, h, w, c]``, scaled; zeros but for the first frame.
        start: scaled latents ``[1, f, h, w, c]`` that noise is added to in the beginning.
        prefix: scaled latents of the first frames ``[1, f, h, w, c]``, which are to stay: in each
            step they have the noise of that step.
    """

    image_latents: mx.array | None = None
    start: mx.array | None = None
    prefix: mx.array | None = None

    def begin(self, scheduler: Scheduler, noise: mx.array, timestep: int) -> mx.array:
        """The latents of the first step: noise, in a measure."""
        if self.start is not None:
            return scheduler.add_noise(self.start, noise, timestep)
        return self.hold(scheduler, noise, noise, timestep)

    def hold(
        self, scheduler: Scheduler, latents: mx.array, noise: mx.array, timestep: int | None
    ) -> mx.array:
        """Latents of a step, or for None of the end, with the prefix in its place."""
        if self.prefix is None:
            return latents
        kept, count = self.prefix, self.prefix.shape[1]
        if timestep is not None:
            kept = scheduler.add_noise(kept, noise[:, :count], timestep)
        return mx.concatenate([kept, latents[:, count:]], axis=1)

    def arrays(self) -> dict[str, mx.array]:
        """Those that are there, by name."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}


def check_image_latent_scale(name: str) -> None:
    """Raises InvalidInputError where there is no such scale."""
    if name not in IMAGE_LATENT_SCALES:
        raise InvalidInputError(
            f"image_latent_scale must be one of {', '.join(IMAGE_LATENT_SCALES)}; got {name!r}"
        )


def image_latent_scale(config: AutoencoderConfig, name: str) -> float:
    """What the latents of the picture are multiplied with.

    For the models of version 1.0 it is the VAE's scaling factor, as for all latents. For 1.5 the
    official code disagrees with itself, and with diffusers: ``"official"`` is 1, with which the
    original tools sample; ``"diffusers"`` divides by the factor; ``"finetune"`` multiplies with it,
    as the official trainer does.
    """
    factor = config.scaling_factor
    if not config.invert_scale_latents:
        return factor
    return {"official": 1.0, "diffusers": 1 / factor, "finetune": factor}[name]


def place_image(latents: mx.array, frames: int) -> mx.array:
    """The picture in the first of `frames` latent frames, and zeros: ``[B, f, h, w, c]``.

    With 1.5's leading frame that is where the picture stands.

    Args:
        latents: ``[B, 1, h, w, c]``, scaled.
    """
    batch, _, *rest = latents.shape
    return mx.concatenate([latents, mx.zeros((batch, frames - 1, *rest), latents.dtype)], axis=1)


def with_leading(latents: mx.array, count: int) -> mx.array:
    """Latents with so many copies of the first in front, which 1.5's temporal patches need."""
    return mx.concatenate([latents[:, :1]] * count + [latents], axis=1) if count else latents
