"""What a video starts from besides noise and a prompt: a picture, or another video.

Files are read and brought to the size of the video; ``diffusion.conditioning`` says what becomes of
their latents.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..nn.autoencoder import AutoencoderConfig
from ..video import ClipSpec, content_digest, measure, read_clip, read_image
from ..video.arrays import as_uint8
from ..video.pixels import fit_pixels
from .geometry import Geometry

IMAGE_LATENT_SCALES = ("official", "diffusers", "finetune")

Picture = Any
"""A file, or what ``video.arrays.as_uint8`` takes: arrays, and pictures of Pillow."""

DEFAULT_STRENGTH = 0.8
AN_ARRAY = "an array"

# A Path has one slash where an address has two.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/|data:[a-z]+/", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """What a video starts from. (Two of them are equal if they differ in pixels alone.)

    Attributes:
        image: file of a picture, or uint8 ``[H, W, 3]`` of any size; for image-to-video models.
        video: file of a clip, a folder of frames, or uint8 ``[F, H, W, 3]`` of any size.
        start, end: the part of a clip that is used, in seconds; None is the clip's end.
        strength: share of the steps that are taken on the clip; 1 keeps nothing of it.
        fit: how it comes to the size of the video, one of ``video.FITS``.
        image_latent_scale: see ``image_latent_scale``.
        tiling: how the VAE encodes it: ``"exact"`` or ``"tiled"``.
        prefix: frames that a window begins with, uint8 ``[F, H, W, 3]``.
    """

    image: str | np.ndarray | None = field(default=None, compare=False)
    video: str | np.ndarray | None = field(default=None, compare=False)
    start: float = 0.0
    end: float | None = None
    strength: float = DEFAULT_STRENGTH
    fit: str = "crop"
    image_latent_scale: str = "official"
    tiling: str = "exact"
    prefix: np.ndarray | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= self.start:
            raise InvalidInputError(
                f"video_end must be after video_start; got {self.end:g} and {self.start:g}"
            )

    @property
    def is_noise(self) -> bool:
        """Whether there is nothing to start from but noise."""
        return self.image is None and self.video is None and self.prefix is None

    def needs_fit(self, height: int, width: int) -> bool:
        """Whether it may have another size than the video."""
        given = self.image if self.video is None else self.video
        return isinstance(given, str) or np.shape(given)[-3:-1] not in ((), (height, width))

    def check(self, geometry: Geometry, fps: float) -> None:
        """Raises InvalidInputError where a file can't be read, or has too few frames."""
        if isinstance(self.image, str):
            self.read_image(geometry)
        if isinstance(self.video, str):
            self._check_length(Path(self.video), geometry.num_frames, fps)

    def _check_length(self, path: Path, wanted: int, fps: float) -> None:
        found = measure(path, fps)
        if max(self.start, self.end or 0.0) > found.seconds + 0.005:  # it may have been rounded
            raise InvalidInputError(
                f"video_start and video_end must lie in {path}, which lasts {found.seconds:.2f} s"
            )
        part = ""
        if self.start or self.end is not None:
            found, part = measure(path, fps, start=self.start, end=self.end), " in that part"
        has = found.frames
        if has < wanted:
            raise InvalidInputError(
                f"{path} has {has} frames at {fps:g} a second{part}, and {wanted} are "
                f"wanted{_fewer(has)}"
            )

    def read_image(self, geometry: Geometry) -> np.ndarray:
        """The picture, uint8 ``[H, W, 3]``, in the size of the video."""
        if isinstance(self.image, str):
            return read_image(self.image, geometry.height, geometry.width, self.fit)
        return fit_pixels(self.image, geometry.height, geometry.width, self.fit)

    def read_video(self, geometry: Geometry, fps: float) -> np.ndarray:
        """The clip, uint8 ``[F, H, W, 3]``, in the size and length of the video."""
        if isinstance(self.video, str):
            size = geometry.num_frames, geometry.height, geometry.width
            part = ClipSpec(*size, fps, fit=self.fit, start=self.start, end=self.end)
            return read_clip(Path(self.video), part)
        return fit_pixels(self.video, geometry.height, geometry.width, self.fit)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the files that exist, by the names of settings."""
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


def is_address(path: str | Path) -> bool:
    """Whether this is an address, as of the web, and no file of that name exists."""
    return _ADDRESS.match(str(path)) is not None and not os.path.exists(path)


def check_no_address(name: str, path: str | Path) -> None:
    """Raises InvalidInputError for an address."""
    if is_address(path):
        raise InvalidInputError(f"{name} must be a file; {path} is an address: download it first")


def path_or_pixels(
    name: str, given: Picture | None, num_frames: int | None = None
) -> str | np.ndarray | None:
    """Checks a picture or clip: an absolute path, or its pixels as uint8.

    Args:
        num_frames: frames of a clip, which may have more; None for a picture.

    Raises:
        InvalidInputError: neither a path nor such pixels.
    """
    if given is None:
        return None
    if isinstance(given, str | Path):
        if not str(given).strip():
            raise InvalidInputError(f"{name} must be a file; its name is empty")
        check_no_address(name, given)
        return os.path.abspath(given)
    pixels = as_uint8(name, given, "a file, or pixels")
    if pixels.ndim != (3 if num_frames is None else 4):
        axes = "height, width, 3" if num_frames is None else "frames, height, width, 3"
        raise InvalidInputError(
            f"{name} must be a file, or pixels [{axes}]; got {list(pixels.shape)}"
        )
    if num_frames is not None and len(pixels) < num_frames:
        raise InvalidInputError(
            f"{name} has {len(pixels)} frames, and {num_frames} are wanted{_fewer(len(pixels))}"
        )
    return pixels[:num_frames] if num_frames else pixels


def _fewer(has: int) -> str:
    """What to do about a clip of so few frames."""
    frames = (has - 1) // 8 * 8 + 1
    return f": ask for {frames} frames" if frames >= 9 else ""


def path_or_none(given: str | None) -> str | None:
    """An absolute path; raises InvalidInputError for an address."""
    if given is None:
        return None
    check_no_address("tiny_vae", given)
    return os.path.abspath(os.path.expanduser(given))


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
