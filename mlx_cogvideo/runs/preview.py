"""Pictures of a video that is still being denoised, without the VAE.

The small decoder draws them where its weights are. Else a linear map takes each latent pixel to a
colour: rough, but it costs nothing. That of the official models is from
kijai/ComfyUI-CogVideoXWrapper; a folder may bring its own, ``latent_rgb.json``.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoints.model_folder import ModelFolder
from ..checkpoints.tiny_vae import check_tiny_vae, find_tiny_vae, load_tiny_decoder
from ..errors import InvalidInputError, OutputError
from ..nn.autoencoder import TinyDecoder
from ..version import __version__
from ..video import read_record, write_video

FILE = "latent_rgb.json"
OFFICIAL = Path(__file__).with_name(FILE)
SHORTEST_SIDE = 128  # pixels, of the picture
MARK = "preview"
"""Key in the record of a preview, which tells it apart from other files."""


class Preview:
    """Draws previews of the current estimate of a run."""

    def __init__(self, model: ModelFolder, tiny_vae: str | None = None):
        """
        Args:
            tiny_vae: file with the small decoder's weights; None looks for the published one.

        Raises:
            InvalidInputError: this model has no map of colours, or one that can't be used.
            CheckpointError: the file holds something else.
        """
        self._fps = model.fps / model.configs["vae"].temporal_compression_ratio
        self._decoder: TinyDecoder | None = None
        self._open_decoder = _opens_decoder(model, tiny_vae)
        self._scale = model.configs["vae"].scaling_factor
        if self._open_decoder is not None:
            return
        # The colours are those of the VAE's latents.
        brings_vae = model.base is None or (model.folder / "vae").is_dir()
        own = (model.folder if brings_vae else model.base.folder) / FILE
        if not own.is_file() and model.variant is None:
            raise InvalidInputError(f"{model.folder} has no {FILE}, which previews are drawn with")
        channels = model.configs["transformer"].out_channels
        self._factors, self._bias = _read_map(own if own.is_file() else OFFICIAL, channels)
        # The published map gives colours of little contrast.
        self._stretch = not own.is_file()

    def frames(self, latents: mx.array) -> np.ndarray:
        """Turns scaled latents ``[1, f, h, w, c]`` into uint8 ``[f, H, W, 3]``, a frame each."""
        if self._open_decoder is not None:
            return self._decoded(latents)
        colours = np.array(latents[0].astype(mx.float32)) @ self._factors + self._bias
        if self._stretch:
            low, high = np.percentile(colours, (1, 99))
            colours = (colours - low) / max(high - low, 1e-6) * 2 - 1
        pixels = np.clip(colours / 2 + 0.5, 0, 1)
        times = -(-SHORTEST_SIDE // min(pixels.shape[1:3]))
        pixels = np.round(pixels * 255).astype(np.uint8)
        return pixels.repeat(times, axis=1).repeat(times, axis=2)

    def _decoded(self, latents: mx.array) -> np.ndarray:
        if self._decoder is None:
            self._decoder = self._open_decoder()
        pixels = self._decoder.decode_stills(latents / self._scale)[0]
        made = np.array(mx.round((pixels.astype(mx.float32) / 2 + 0.5) * 255).astype(mx.uint8))
        mx.clear_cache()
        return made

    def write(self, path: Path, latents: mx.array) -> None:
        """Writes an animated gif, over the one before it.

        Raises:
            OutputError: it can't be written.
        """
        record = {"mlx_cogvideo": __version__, MARK: True}
        write_video(path, self.frames(latents), self._fps, overwrite=True, record=record)


def _opens_decoder(model: ModelFolder, tiny_vae: str | None) -> Callable[[], TinyDecoder] | None:
    """What loads the small decoder, whose file is checked now; None where there is no file."""
    path = find_tiny_vae(model, tiny_vae)
    if path is None:
        return None
    channels = model.configs["vae"].latent_channels
    check_tiny_vae(path, channels)
    return partial(load_tiny_decoder, path, channels, model.dtype)


def _read_map(file: Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors ``[channels, 3]`` and the bias ``[3]`` in a file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        factors, bias = (np.array(content[name], np.float64) for name in ("factors", "bias"))
    except (OSError, ValueError, KeyError, TypeError):
        factors = bias = np.zeros(0)
    if factors.shape != (channels, 3) or bias.shape != (3,):
        raise InvalidInputError(
            f"{file} should hold factors, {channels} rows of 3 numbers, and bias, 3 numbers: "
            "leave out --preview-every, or fix the file"
        )
    return factors, bias


def preview_path(output: str | Path) -> Path:
    """Where the preview of an output is while it is made."""
    path = Path(output)
    return path.with_name(f"{path.name}.preview.gif")


def check_preview_path(output: str | Path) -> None:
    """Raises OutputError where something else is in the preview's place."""
    path = preview_path(output)
    if path.exists() and not _is_preview(path):
        raise OutputError(f"{path} exists, where previews would be: move it, or use --overwrite")


def remove_preview(output: str | Path) -> None:
    """Removes the preview of an output, if there is one; where that can't be, it does no harm."""
    path = preview_path(output)
    if _is_preview(path):
        with suppress(OSError):
            path.unlink()


def _is_preview(path: Path) -> bool:
    try:
        return MARK in (read_record(path) or {})
    except InvalidInputError:
        return False
