"""Positions of tokens: 3-D rotary and 3-D sinusoidal tables over (frame, row, column).

Tables are computed on the host from the configuration and the shape of the input. Only
CogVideoX-5B-I2V has a learned table in its checkpoint, which the patch embedding owns.
"""

from functools import lru_cache

import mlx.core as mx
import numpy as np

from .fusion import fused

ROPE_THETA = 10000.0

Rotation = tuple[mx.array, mx.array] | None
"""Cosines and sines from `rope_tables`; None in a model without rotary embeddings."""


@lru_cache(maxsize=8)
def rope_tables(
    text_length: int, grid: tuple[int, int, int], head_dim: int, base: tuple[int, int] | None
) -> tuple[mx.array, mx.array]:
    """Cosine and sine of the rotation of each feature pair of each token, as `rotate` takes them.

    A head's features are divided 1/4 : 3/8 : 3/8 between frame, row and column. Text tokens come
    first and aren't rotated: their cosine is 1 and their sine 0, so that one multiplication serves
    the whole sequence.

    Args:
        text_length: number of text tokens, in front of the video tokens.
        grid: ``(frames, rows, columns)`` of patches.
        head_dim: features of one head; divisible by 16.
        base: ``(rows, columns)`` of the native grid, onto which CogVideoX 1.0 maps any other one
            (see `native_positions`); None (1.5) counts patches.

    Returns:
        Two float32 tables for ``tokens = text_length + frames·rows·columns``: the cosines
        ``[tokens, 1, 1, head_dim / 2]``, and the sines ``[tokens, 1, 2, head_dim / 2]``, negative
        for the first feature of a pair.
    """
    frames, rows, columns = grid
    if base is None:
        row_positions, column_positions = np.arange(rows), np.arange(columns)
    else:
        row_positions, column_positions = native_positions((rows, columns), base)

    angles = _over_grid(
        _rope_angles(np.arange(frames), head_dim // 4),
        _rope_angles(row_positions, head_dim // 8 * 3),
        _rope_angles(column_positions, head_dim // 8 * 3),
    )
    angles = np.concatenate([np.zeros((text_length, head_dim // 2), np.float32), angles])
    angles = angles[:, None, None]
    sines = np.sin(angles)
    return mx.array(np.cos(angles)), mx.array(np.concatenate([-sines, sines], axis=2))


def native_positions(grid: tuple[int, int], base: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column positions of a grid of patches, laid over the native grid.

    The grid is scaled to fit the native one, keeping its aspect, and centred. At the native size
    positions are whole numbers. At other sizes their spacing is that of the reference (its
    ``get_resize_crop_region_for_grid``): the end of the range is scaled by ``(n - 1) / n`` even if
    the start isn't 0, and halves round to even.
    """
    (rows, columns), (base_rows, base_columns) = grid, base
    if rows / columns > base_rows / base_columns:
        fitted = base_rows, round(base_rows / rows * columns)
    else:
        fitted = round(base_columns / columns * rows), base_columns

    def spread(count: int, size: int, room: int) -> np.ndarray:
        start = round((room - size) / 2)
        return np.linspace(start, (start + size) * (count - 1) / count, count)

    return spread(rows, fitted[0], base_rows), spread(columns, fitted[1], base_columns)


def _rope_angles(positions: np.ndarray, dim: int) -> np.ndarray:
    """``[count, dim / 2]``: position times frequency, rounded to float32 where torch rounds."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = np.float32(1) / np.power(np.float32(ROPE_THETA), exponents)
    return np.outer(positions.astype(np.float32), frequencies)


def _over_grid(frame: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Joins features ``[count, dim]`` of each axis, side by side, for every point of the grid."""
    grid = len(frame), len(row), len(column)
    parts = (frame[:, None, None], row[None, :, None], column[None, None, :])
    parts = [np.broadcast_to(part, (*grid, part.shape[-1])) for part in parts]
    return np.concatenate(parts, axis=-1).reshape(np.prod(grid), -1)


@lru_cache(maxsize=8)
def half_split(heads: int, head_dim: int) -> mx.array:
    """The permutation of all heads' features that `rotate` expects.

    The models rotate pairs of neighbours: (x₀, x₁), (x₂, x₃), ... Permuted, the first features of
    all pairs of a head come before the second ones, so that a rotation reads and writes long rows,
    which is several times as fast. Scores don't change if queries and keys are permuted alike.
    """
    within = np.arange(head_dim).reshape(-1, 2).T.flatten()
    return mx.array((np.arange(heads)[:, None] * head_dim + within).flatten())


def rotate(x: mx.array, cosines: mx.array, sines: mx.array) -> mx.array:
    """Rotary embedding (arXiv:2104.09864) of features that are permuted by `half_split`.

    Args:
        x: ``[batch, tokens, heads, head_dim]``.
        cosines, sines: from `rope_tables`; the rotation is computed in float32, as they are.
    """
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return _rotate(halves, halves[..., ::-1, :], cosines, sines).reshape(x.shape)


@fused
def _rotate(halves, exchanged, cosines, sines):
    wide = halves.astype(mx.float32) * cosines + exchanged.astype(mx.float32) * sines
    return wide.astype(halves.dtype)


def sincos_table(
    grid: tuple[int, int, int], dim: int, spatial_scale: float, temporal_scale: float
) -> mx.array:
    """3-D sinusoidal embedding of the video tokens, ``[frames·rows·columns, dim]`` in float32.

    The first quarter of the features encodes the frame. In the rest, the first half encodes the
    **column** and the second half the row, as the models were trained. Positions are divided by
    the scales (1.875 in space for CogVideoX-2B) at every size.
    """
    frame, row, column = _sincos_axes(grid, dim, spatial_scale, temporal_scale)
    parts = (frame[:, None, None], column[None, None, :], row[None, :, None])
    parts = [mx.broadcast_to(part, (*grid, part.shape[-1])) for part in parts]
    return mx.concatenate(parts, axis=-1).reshape(-1, dim)


@lru_cache(maxsize=8)
def _sincos_axes(
    grid: tuple[int, int, int], dim: int, spatial_scale: float, temporal_scale: float
) -> tuple[mx.array, mx.array, mx.array]:
    frames, rows, columns = grid
    spatial_dim = 3 * dim // 8
    return (
        _sincos(np.arange(frames) / temporal_scale, dim // 4),
        _sincos(np.arange(rows) / spatial_scale, spatial_dim),
        _sincos(np.arange(columns) / spatial_scale, spatial_dim),
    )


def _sincos(positions: np.ndarray, dim: int) -> mx.array:
    """``[count, dim]``: sines, then cosines; computed in float64, as the reference does."""
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
    angles = np.outer(positions, frequencies)
    return mx.array(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32))
