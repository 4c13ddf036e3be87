"""The VAE's stage: latents to frames and back, piece by piece.

Memory beside the VAE's own: with "none" and "exact" a chunk of 8 frames, with "tiled" the whole
clip, in the type of the output or of the frames that are encoded.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Self

import mlx.core as mx
import numpy as np

from ..errors import GenerationError, InvalidInputError, not_finite
from ..nn.autoencoder import (
    ENCODE_CHUNK,
    MAX_ELEMENTS,
    AutoencoderConfig,
    AutoencoderKLCogVideoX,
    Coder,
    Posterior,
    Tiles,
    TinyDecoder,
    chunk_plan,
    largest_decode_tensor,
)


@dataclass(frozen=True)
class Tiling:
    """How the VAE computes a frame: ``AutoencoderKLCogVideoX`` describes the modes.

    Attributes:
        mode: ``"none"``, ``"exact"`` or ``"tiled"``.
        tile_size: height and width in pixels; None is half the model's native size.
        tile_overlap: shares of a tile's height and width; None is about a sixth and a fifth.
    """

    mode: str = "none"
    tile_size: tuple[int, int] | None = None
    tile_overlap: tuple[float, float] | None = None

    @classmethod
    def choose(
        cls,
        config: AutoencoderConfig,
        mode: str,
        tile_size: tuple[int, int] | None,
        tile_overlap: tuple[float, float] | None,
        automatic: Callable[[], str],
    ) -> Self:
        """Checks a mode and its tiles.

        Args:
            automatic: chooses the mode for ``"auto"``.

        Raises:
            InvalidInputError: the mode has no tiles, or such tiles can't be laid.
        """
        if tile_size is not None or tile_overlap is not None:
            if mode not in ("auto", "tiled"):
                raise InvalidInputError(
                    f"tiling={mode!r} has no tiles: leave out their size and overlap"
                )
            mode = "tiled"
        sides = tuple(tile_size) if tile_size is not None else None
        shares = tuple(tile_overlap) if tile_overlap is not None else None
        try:
            Tiles.choose(config, sides, shares)
        except ValueError as error:
            raise InvalidInputError(str(error)) from None
        return cls(automatic() if mode == "auto" else mode, sides, shares)

    def tiles(self, config: AutoencoderConfig, height: int, width: int) -> Tiles | None:
        """The tiles for latents of this size; None where frames are computed whole or in strips."""
        tiles = Tiles.choose(config, self.tile_size, self.tile_overlap)
        return None if self.mode != "tiled" or tiles.cover(height, width) else tiles


def check_decodable(config: AutoencoderConfig, shape: tuple[int, ...], tiling: Tiling) -> None:
    """Raises InvalidInputError where decoding latents would make an array MLX can't hold."""
    if tiling.mode == "none" and largest_decode_tensor(config, shape) >= MAX_ELEMENTS:
        raise InvalidInputError(
            "decoding whole frames of this size needs arrays of over 2**31 elements, which are too "
            "large for MLX: use tiling auto, exact or tiled"
        )


Dealer = Callable[[mx.array, Tiling], Callable[[Coder], Coder]]
"""Deals the tiles of latents to processes before they are decoded: see `Helpers.deal_tiles`."""


def deal_to_none(latents: mx.array, tiling: Tiling) -> Callable[[Coder], Coder]:
    """Has this process decode all tiles."""
    return lambda code: code


def decode_frames(
    vae: AutoencoderKLCogVideoX,
    latents: mx.array,
    tiling: Tiling,
    output_type: str = "uint8",
    deal: Dealer = deal_to_none,
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Decodes latents chunk by chunk, or in tiles row by row.

    Args:
        latents: ``[1, f, h, w, c]``, unscaled, of the VAE's dtype.
        output_type: ``"uint8"``, or ``"np"`` for float32 in [0, 1].
        deal: deals tiles to processes.

    Yields:
        The number of frames that are done, and new ones, ``[F, H, W, 3]``, in order, or None. With
        tiles the number is the share of the picture that is done, and the frames come in the end.

    Raises:
        GenerationError: NaN or infinity, or after the last chunk: one constant colour.
    """
    check = _Check()
    check.finite(latents, "the latents have")
    tiles = tiling.tiles(vae.config, *latents.shape[2:4])
    if tiles is None:
        yield from _decode_in_turn(vae.decode_chunks(latents, tiling.mode), check, output_type)
    else:
        rows = vae.decode_tiles(latents, tiles, deal(latents, tiling))
        yield from _decode_tiled(rows, latents.shape[2] * tiles.ratio, check, output_type)
    check.varied()


def decode_frames_tiny(
    decoder: TinyDecoder, latents: mx.array, output_type: str = "uint8"
) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes latents by the small decoder; arguments, yields and errors as ``decode_frames``."""
    check = _Check()
    check.finite(latents, "the latents have")
    yield from _decode_in_turn(decoder.decode_chunks(latents), check, output_type)
    check.varied()


def _decode_in_turn(
    chunks: Iterable[mx.array], check: "_Check", output_type: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Converts chunks ``[1, F, H, W, 3]`` as they come; yields as ``decode_frames``."""
    done = 0
    for pixels in chunks:
        frames = check.output(pixels[0], output_type)
        done += len(frames)
        yield done, frames


def _decode_tiled(
    rows_of_tiles: Iterable[mx.array], height: int, check: "_Check", output_type: str
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Puts rows of tiles together to frames of `height` pixels; yields as ``decode_frames``."""
    clip, top = None, 0
    for pixels in rows_of_tiles:
        rows = check.output(pixels[0], output_type)
        if clip is None:
            clip = np.empty((len(rows), height, *rows.shape[2:]), rows.dtype)
        clip[:, top : top + rows.shape[1]] = rows
        top += rows.shape[1]
        yield len(clip) * top // height, None
    for chunk in chunk_plan(len(clip), ENCODE_CHUNK):
        yield len(clip), clip[chunk]


class _Check:
    """Checks decoded pixels, and converts them to the type of the output."""

    def __init__(self):
        self._darkest, self._brightest = mx.ones(3), mx.zeros(3)

    def output(self, pixels: mx.array, output_type: str) -> np.ndarray:
        self.finite(pixels, "decoding gave")
        pixels = mx.clip(pixels.astype(mx.float32) / 2 + 0.5, 0, 1)
        self._darkest = mx.minimum(self._darkest, pixels.min((0, 1, 2)))
        self._brightest = mx.maximum(self._brightest, pixels.max((0, 1, 2)))
        if output_type == "uint8":
            pixels = mx.round(pixels * 255).astype(mx.uint8)
        mx.eval(pixels, self._darkest, self._brightest)
        return np.array(pixels)

    def finite(self, x: mx.array, what: str) -> None:
        if not mx.isfinite(x).all().item():
            dtype = str(x.dtype).split(".")[-1]
            raise not_finite(what, dtype, "the model's weights are bad: fetch or convert it again")

    def varied(self) -> None:
        if (self._brightest - self._darkest).max().item() < 1 / 255:
            raise GenerationError("the video is one constant colour: the model's weights are bad")


def encode_frames(
    vae: AutoencoderKLCogVideoX, frames: Iterable[np.ndarray], num_frames: int, tiling: Tiling
) -> Posterior:
    """Encodes frames, as they come, to the posterior of their latents.

    Args:
        frames: uint8 ``[H, W, 3]`` each; only the first `num_frames` are taken.

    Raises:
        InvalidInputError: there are fewer frames, or their size can't be encoded.
    """
    pieces = _pieces(iter(frames), num_frames, vae.config.spatial_compression_ratio)
    try:
        if tiling.mode == "tiled":
            return _encode_tiled(vae, pieces, num_frames, tiling)
        return _encode_in_turn(vae, pieces, tiling.mode)
    except ValueError as error:
        raise InvalidInputError(str(error)) from None


def check_frame(frame: np.ndarray, ratio: int) -> None:
    """Raises InvalidInputError for a frame that the VAE can't encode."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise InvalidInputError(
            f"frames must be uint8 [H, W, 3]; got {frame.dtype} {list(frame.shape)}"
        )
    height, width = frame.shape[:2]
    if height < ratio or width < ratio or height % ratio or width % ratio:
        raise InvalidInputError(
            f"height and width must be multiples of {ratio}; got {height} and {width}"
        )


def _encode_in_turn(
    vae: AutoencoderKLCogVideoX, pieces: Iterable[np.ndarray], mode: str
) -> Posterior:
    chunks = (mx.array(piece)[None] for piece in pieces)
    return vae.posterior(mx.concatenate(list(vae.encode_chunks(chunks, mode)), axis=1))


def _encode_tiled(
    vae: AutoencoderKLCogVideoX, pieces: Iterator[np.ndarray], num_frames: int, tiling: Tiling
) -> Posterior:
    clip, done = None, 0
    for piece in pieces:
        if clip is None:
            clip = np.empty((num_frames, *piece.shape[1:]), np.uint8)
        clip[done : done + len(piece)] = piece
        done += len(piece)
    ratio = vae.config.spatial_compression_ratio
    tiles = tiling.tiles(vae.config, *(side // ratio for side in clip.shape[1:3]))
    if tiles is None:
        whole = (clip[chunk] for chunk in chunk_plan(num_frames, ENCODE_CHUNK))
        return _encode_in_turn(vae, whole, "exact")
    rows = vae.encode_tiles(clip[None], tiles)
    return vae.posterior(mx.concatenate(list(rows), axis=2))


def _pieces(frames: Iterator[np.ndarray], num_frames: int, ratio: int) -> Iterator[np.ndarray]:
    """Yields the chunks that the encoder takes, ``[F, H, W, 3]``."""
    shape = None
    for chunk in chunk_plan(num_frames, ENCODE_CHUNK):
        piece = list(islice(frames, chunk.stop - chunk.start))
        if chunk.start + len(piece) < chunk.stop:
            raise InvalidInputError(
                f"the clip has {chunk.start + len(piece)} frames and {num_frames} are needed"
            )
        for frame in piece:
            check_frame(frame, ratio)
            shape = shape or frame.shape
            if frame.shape != shape:
                raise InvalidInputError(
                    f"the frames of a clip must have one size; got {shape} and {frame.shape}"
                )
        yield np.stack(piece)
