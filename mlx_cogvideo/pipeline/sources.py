"""What a video starts from besides noise and a prompt: a picture, or another video.

The tasks differ in this alone. A picture's latents stand beside the noisy ones in every step;
those of a video are what noise is added to in the beginning.
"""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from ..diffusion.schedulers import Scheduler
from ..errors import InvalidInputError
from ..nn.autoencoder import AutoencoderConfig
from ..video import FITS, ClipSpec, content_digest, measure, read_clip, read_image
from .geometry import Geometry

IMAGE_LATENT_SCALES = ("official", "diffusers", "finetune")

Picture = Any
"""A file, or pixels: uint8 of NumPy or MLX, or a PIL image."""

DEFAULT_STRENGTH = 0.8
AN_ARRAY = "an array"


@dataclass(frozen=True)
class Source:
    """What a video starts from. (Two of them are equal if they differ in pixels alone.)

    Attributes:
        image: the file of a picture, or uint8 ``[H, W, 3]``; for image-to-video models.
        video: the file of a clip, a folder of frames, or uint8 ``[F, H, W, 3]``.
        strength: of the noise on the clip, up to 1, which leaves nothing of it: the share of the
            steps that are taken.
        fit: how a file comes to the size of the video, one of ``video.FITS``.
        image_latent_scale: see ``image_latent_scale``.
        tiling: how the VAE takes the clip: ``"seamless"`` or ``"tiled"``.
        prefix: frames that the video begins with, uint8 ``[F, H, W, 3]``, of a window that goes on.
    """

    image: str | np.ndarray | None = field(default=None, compare=False)
    video: str | np.ndarray | None = field(default=None, compare=False)
    strength: float = DEFAULT_STRENGTH
    fit: str = "crop"
    image_latent_scale: str = "official"
    tiling: str = "seamless"
    prefix: np.ndarray | None = field(default=None, compare=False)

    @property
    def is_noise(self) -> bool:
        """Whether there is nothing to start from but noise."""
        return self.image is None and self.video is None and self.prefix is None

    @classmethod
    def choose(
        cls,
        *,
        takes_image: bool,
        geometry: Geometry,
        image: Picture | None,
        video: Picture | None,
        extended: bool = False,
        **asked: Any,
    ) -> Self:
        """The source that is asked for. Files are not looked at yet: see ``check``.

        Args:
            takes_image: whether the model is an image-to-video one.
            extended: whether other windows go on, which start from frames in any case.
            asked: the other attributes; None where nothing is asked for.

        Raises:
            InvalidInputError: the model needs another one, or something of it is out of range.
        """
        if takes_image and video is not None:
            raise InvalidInputError("an image-to-video model can't start from a video")
        if takes_image and image is None:
            raise InvalidInputError("this is an image-to-video model: give it an image")
        if image is not None and not takes_image:
            raise InvalidInputError(
                "this model makes videos of text: an image needs an image-to-video model, "
                "such as 5b-i2v"
            )
        needs = {"strength": video, "image_latent_scale": image}
        needs["fit"] = image if image is not None else video
        needs["tiling"] = True if extended else needs["fit"]
        names = {"fit": "image_fit", "tiling": "source_tiling"}
        for name, needed in needs.items():
            if asked[name] is not None and needed is None:
                what = {"strength": "a video", "image_latent_scale": "an image"}
                raise InvalidInputError(
                    f"{names.get(name, name)} needs {what.get(name, 'an image or a video')}"
                )
        given = {name: value for name, value in asked.items() if value is not None}
        size = (geometry.height, geometry.width, 3)
        source = cls(
            image=_path_or_pixels("image", image, size),
            video=_path_or_pixels("video", video, (geometry.num_frames, *size)),
            **given,
        )
        if source.fit not in FITS:
            raise InvalidInputError(
                f"image_fit must be one of {', '.join(FITS)}; got {source.fit!r}"
            )
        check_image_latent_scale(source.image_latent_scale)
        if not 0 < source.strength <= 1:
            raise InvalidInputError(
                f"strength must be above 0 and at most 1; got {source.strength}"
            )
        if source.tiling not in ("seamless", "tiled"):
            raise InvalidInputError(
                f"source_tiling must be seamless or tiled; got {source.tiling!r}"
            )
        return source

    def check(self, geometry: Geometry, fps: float) -> None:
        """Raises InvalidInputError where a file can't be read, or has too few frames."""
        if isinstance(self.image, str):
            self.read_image(geometry)
        if isinstance(self.video, str):
            has = measure(Path(self.video), fps).frames
            if has < geometry.num_frames:
                fewer = (has - 1) // 8 * 8 + 1
                advice = f": ask for {fewer} frames" if fewer >= 9 else ""
                raise InvalidInputError(
                    f"{self.video} has {has} frames at {fps:g} a second, and "
                    f"{geometry.num_frames} are wanted{advice}"
                )

    def read_image(self, geometry: Geometry) -> np.ndarray:
        """The picture, uint8 ``[H, W, 3]``, in the size of the video."""
        if isinstance(self.image, str):
            return read_image(self.image, geometry.height, geometry.width, self.fit)
        return self.image

    def read_video(self, geometry: Geometry, fps: float) -> np.ndarray:
        """The clip, uint8 ``[F, H, W, 3]``, in the size and length of the video."""
        if isinstance(self.video, str):
            size = geometry.num_frames, geometry.height, geometry.width
            return read_clip(Path(self.video), ClipSpec(*size, fps, fit=self.fit))
        return self.video

    def settings(self) -> dict[str, Any]:
        """The arguments that give this again, fit for JSON; of pixels only that there were some."""
        told: dict[str, Any] = {}
        if self.image is not None:
            told |= {"image": self.image, "image_latent_scale": self.image_latent_scale}
        if self.video is not None:
            told |= {"video": self.video, "strength": self.strength}
        if told:
            told |= {"image_fit": self.fit}
        return {k: AN_ARRAY if isinstance(v, np.ndarray) else v for k, v in told.items()}

    def digests(self) -> dict[str, str]:
        """SHA-256 of the files that are there, by the names of settings."""
        paths = {"image_sha256": self.image, "video_sha256": self.video}
        files = {name: Path(path) for name, path in paths.items() if isinstance(path, str)}
        return {name: content_digest(path) for name, path in files.items() if path.exists()}


def picture_size(image: Picture) -> tuple[int, int]:
    """Height and width of a picture, turned as its EXIF data say.

    Raises:
        InvalidInputError: its file can't be read.
    """
    if isinstance(image, str | Path):
        found = measure(Path(image), 1, kind="picture")
        return found.height, found.width
    return np.shape(image)[:2]


def _path_or_pixels(
    name: str, given: Picture | None, shape: tuple[int, ...]
) -> str | np.ndarray | None:
    """An absolute path, or pixels of that shape; of a clip that is longer, its first frames."""
    if given is None:
        return None
    if isinstance(given, str | Path):
        return os.path.abspath(given)
    try:
        pixels = np.asarray(given)[: shape[0]] if len(shape) == 4 else np.asarray(given)
    except (TypeError, ValueError, IndexError):
        pixels = np.zeros(0)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise InvalidInputError(
            f"{name} must be a file, or uint8 {list(shape)}; got {type(given).__name__} of "
            f"{pixels.dtype} {list(pixels.shape)}"
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
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
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
