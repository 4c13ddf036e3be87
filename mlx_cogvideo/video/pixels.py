"""Makes the pixels that a model needs of a decoded frame: as it is shown, in its size."""

from dataclasses import dataclass
from math import ceil

import av
import numpy as np

from .colors import foreign_colors, to_sdr
from .orientation import as_shown, display_matrix, is_sideways
from .reader import video_stream

FITS = ("crop", "pad", "stretch")
"""How a picture is fitted to another aspect ratio: cropped, padded with black, or stretched."""

WHITE = 255


@dataclass(frozen=True)
class ClipSpec:
    """The frames to read from a clip.

    Attributes:
        frames: number of frames; the models need 8N+1.
        height, width: size in pixels.
        fps: frames per second; the clip's frames nearest to these times are taken.
        skip: frames of the clip to leave out at its beginning and at its end.
        start, end: the part of the clip to take the frames from, in seconds from its first frame;
            None is the clip's end.
        fit: one of `FITS`.
        repeat_last: whether a clip that is too short is extended by repeating its last frame.
    """

    frames: int
    height: int
    width: int
    fps: float
    skip: tuple[int, int] = (0, 0)
    fit: str = "crop"
    repeat_last: bool = False
    start: float = 0.0
    end: float | None = None


def pixel_aspect(container: av.container.InputContainer) -> float:
    """Width of a pixel over its height."""
    return float(video_stream(container).sample_aspect_ratio or 1)


def shown_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    """Height and width of a frame as it is shown, in square pixels."""
    height, width = frame.height, round(frame.width * aspect)
    return (width, height) if is_sideways(display_matrix(frame)) else (height, width)


def fitted(
    frame: av.VideoFrame, spec: ClipSpec, position: tuple[float, float], aspect: float
) -> np.ndarray:
    """A frame as it is shown, in the height and width of `spec`."""
    matrix = display_matrix(frame)
    height, width = spec.height, spec.width
    if is_sideways(matrix):
        height, width = width, height
    sides = frame.height, frame.width * aspect
    scales = height / sides[0], width / sides[1]
    if spec.fit == "stretch":
        rows, columns = height, width
    elif spec.fit == "crop":
        rows = max(ceil(sides[0] * max(scales) - 1e-6), height)
        columns = max(ceil(sides[1] * max(scales) - 1e-6), width)
    else:
        rows, columns = (max(round(side * min(scales)), 1) for side in sides)
    pixels = as_shown(_scaled(frame, rows, columns), matrix)
    return _placed(pixels, spec.height, spec.width, position)


def fit_pixels(pixels: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """uint8 pixels ``[..., H, W, 3]`` in another size, as `fit` says, one of `FITS`."""
    if pixels.shape[-3:-1] == (height, width):
        return pixels
    spec = ClipSpec(1, height, width, 1, fit=fit)
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(one), "rgb24") for one in flat)
    made = np.stack([fitted(frame, spec, (0.5, 0.5), 1.0) for frame in frames])
    return made.reshape(*pixels.shape[:-3], height, width, 3)


def _scaled(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    transparent = any(component.is_alpha for component in frame.format.components)
    if transparent or frame.format.has_palette:
        # Before interpolation, because invisible pixels have a colour, too.
        frame = av.VideoFrame.from_ndarray(_on_white(frame), format="rgb24")
    foreign = foreign_colors(frame)
    scaled = frame.reformat(
        width=width,
        height=height,
        format="rgb48le" if foreign else "rgb24",
        interpolation="BICUBIC",
    ).to_ndarray()
    return to_sdr(scaled, foreign) if foreign else scaled


def _on_white(frame: av.VideoFrame) -> np.ndarray:
    """A frame on white where it is transparent, uint8 ``[H, W, 3]``."""
    pixels = frame.to_ndarray(format="rgba")
    share = pixels[..., 3:] / 255
    if foreign := foreign_colors(frame):
        colors = to_sdr(frame.to_ndarray(format="rgba64le")[..., :3], foreign)
    else:
        colors = pixels[..., :3]
    return np.round(colors * share + WHITE * (1 - share)).astype(np.uint8)


def _placed(
    pixels: np.ndarray, height: int, width: int, position: tuple[float, float]
) -> np.ndarray:
    """The pixels cropped, or padded with black, to the size."""
    top, left = (
        round((side - wanted) * share)
        for side, wanted, share in zip(pixels.shape, (height, width), position, strict=False)
    )
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[-top : pixels.shape[0] - top, -left : pixels.shape[1] - left] = pixels
    return canvas
