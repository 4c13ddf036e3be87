"""Reads colour, background, motion and shape back from the pixels of a clip of the small world."""

from functools import cache

import mlx.core as mx
import numpy as np
from captions import Combination
from world import BACKGROUNDS, COLOURS, SHAPES, SIZE, coverage, follow

UNCLEAR = "unclear"
BORDER = 4  # pixels
SMALLEST_AREA = 60  # pixels; less is not a figure
SMALLEST_TRAVEL = 10  # pixels from the first to the last frame
SMALLEST_GROWTH = 1.6  # last area over first
SMALLEST_OVERLAP = 0.8  # intersection over union; crosses, rings and stars reach at most 0.72
EVERY = 4  # frames; the shape is compared in every fourth one


def _nearest(colour: np.ndarray, palette: dict[str, tuple]) -> str:
    distances = {name: np.linalg.norm(colour - np.array(rgb)) for name, rgb in palette.items()}
    return min(distances, key=distances.get)


def _border_colour(clip: np.ndarray) -> np.ndarray:
    """Median colour along the picture's edge, [3]."""
    inside = np.zeros(clip.shape[1:3], dtype=bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.median(clip[:, ~inside], axis=(0, 1))


def _figure(clip: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The figure's colour [3] and the share of each pixel that it covers [F, H, W], or None."""
    contrast = np.linalg.norm(clip - background, axis=-1)
    core = contrast > 0.7 * np.quantile(contrast, 0.99)
    if np.quantile(contrast, 0.99) < 25:
        return None
    colour = np.median(clip[core], axis=0)
    towards = (colour - background) / np.sum((colour - background) ** 2)
    cover = np.clip((clip - background) @ towards, 0, 1)
    return colour, np.where(cover < 0.2, 0, cover)


def _path(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The figure's centre, x and y, and its area in every frame; NaN where there is none."""
    area, place = cover.sum(axis=(1, 2)), np.arange(cover.shape[1]) + 0.5
    with np.errstate(invalid="ignore"):
        return cover.sum(axis=1) @ place / area, cover.sum(axis=2) @ place / area, area


def follow_figure(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Centre (x and y) and area of the figure in each frame of a uint8 clip.

    None if a frame has no figure.
    """
    clip = clip.astype(np.float32)
    figure = _figure(clip, _border_colour(clip))
    path = None if figure is None else _path(figure[1])
    return None if path is None or path[2].min() < SMALLEST_AREA else path


def _motion(x: np.ndarray, y: np.ndarray, area: np.ndarray) -> str:
    """Reads the motion from the figure's centre and area in every frame, by straight-line fits."""
    time = np.linspace(-0.5, 0.5, len(x))
    right, down, growth = (np.polyfit(time, values, 1)[0] for values in (x, y, np.log(area)))
    if abs(growth) > np.log(SMALLEST_GROWTH):
        return "grows" if growth > 0 else "shrinks"
    if max(abs(right), abs(down)) < SMALLEST_TRAVEL:
        return UNCLEAR
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


@cache
def _unit_areas() -> dict[str, float]:
    """The area of each figure of radius 1, measured from a large drawing."""
    middle, radius = np.array([SIZE / 2]), np.array([30.0])
    drawn = {name: coverage(follow(s, middle, middle, radius)) for name, s in SHAPES.items()}
    return {name: cover.sum().item() / radius[0] ** 2 for name, cover in drawn.items()}


def shape_overlaps(
    cover: np.ndarray, x: np.ndarray, y: np.ndarray, area: np.ndarray
) -> dict[str, float]:
    """Intersection over union with each figure, drawn in the measured place and size."""
    overlaps = {}
    for name, outline in SHAPES.items():
        drawn = coverage(follow(outline, x, y, np.sqrt(area / _unit_areas()[name])))
        drawn = np.array(drawn)[0]
        overlaps[name] = float(np.minimum(drawn, cover).sum() / np.maximum(drawn, cover).sum())
    return overlaps


def read_attributes(clip: np.ndarray) -> Combination:
    """Reads what a uint8 clip [F, H, W, 3] shows; `unclear` marks what it doesn't show."""
    with mx.stream(mx.cpu):
        return _read(clip.astype(np.float32))


def _read(clip: np.ndarray) -> Combination:
    border = _border_colour(clip)
    background = _nearest(border, BACKGROUNDS)
    figure = _figure(clip, border)
    if figure is None:
        return Combination(UNCLEAR, UNCLEAR, UNCLEAR, background)
    colour, cover = figure
    x, y, area = _path(cover)
    if area.min() < SMALLEST_AREA:
        return Combination(_nearest(colour, COLOURS), UNCLEAR, UNCLEAR, background)
    overlaps = shape_overlaps(*(values[::EVERY] for values in (cover, x, y, area)))
    best = max(overlaps, key=overlaps.get)
    shape = best if overlaps[best] >= SMALLEST_OVERLAP else UNCLEAR
    return Combination(_nearest(colour, COLOURS), shape, _motion(x, y, area), background)
