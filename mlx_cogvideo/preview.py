"""Small pictures of a video that is still being denoised, without the VAE.

A linear map takes each latent pixel to a colour: rough, but it costs nothing. That of the official
models is from kijai/ComfyUI-CogVideoXWrapper; a folder may bring its own, ``latent_rgb.json``.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from .errors import InvalidInputError
from .model_folder import ModelFolder
from .video import write_video

FILE = "latent_rgb.json"
OFFICIAL = Path(__file__).with_name(FILE)
SHORTEST_SIDE = 128  # pixels, of the picture


class Preview:
    """Draws what the latents of a run stand for."""

    def __init__(self, model: ModelFolder):
        """
        Raises:
            InvalidInputError: there is no map for this model.
        """
        own = model.folder / FILE
        if not own.is_file() and model.variant is None:
            raise InvalidInputError(f"{model.folder} has no {FILE}, which previews are drawn with")
        told = json.loads((own if own.is_file() else OFFICIAL).read_text(encoding="utf-8"))
        self._factors, self._bias = (np.array(told[name]) for name in ("factors", "bias"))
        # The published map gives colours of little contrast.
        self._stretch = not own.is_file()
        self._fps = model.fps / model.configs["vae"].temporal_compression_ratio

    def frames(self, latents: mx.array) -> np.ndarray:
        """Scaled latents ``[1, f, h, w, c]`` to uint8 ``[f, H, W, 3]``, a frame each."""
        colours = np.array(latents[0].astype(mx.float32)) @ self._factors + self._bias
        if self._stretch:
            low, high = np.percentile(colours, (1, 99))
            colours = (colours - low) / max(high - low, 1e-6) * 2 - 1
        pixels = np.clip(colours / 2 + 0.5, 0, 1)
        times = -(-SHORTEST_SIDE // min(pixels.shape[1:3]))
        pixels = np.round(pixels * 255).astype(np.uint8)
        return pixels.repeat(times, axis=1).repeat(times, axis=2)

    def write(self, path: Path, latents: mx.array) -> None:
        """Writes an animated gif, over the one before it.

        Raises:
            OutputError: it can't be written.
        """
        write_video(path, self.frames(latents), self._fps, overwrite=True)


def preview_path(output: str | Path) -> Path:
    """Where the preview of an output is while it is made."""
    path = Path(output)
    return path.with_name(f"{path.name}.preview.gif")
