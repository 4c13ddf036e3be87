"""Shows clips as they are learned: as they are read, and as the VAE gives them back."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InvalidInputError
from ..nn.autoencoder import Posterior
from ..pipeline.estimates import choose_tiling
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.vae_stage import Tiling, decode_frames
from ..version import __version__
from ..video import ClipSpec, write_video
from .clips import Clip
from .latent_cache import Cache, read_cached
from .prepare import ClipOptions, encode_windows

logger = logging.getLogger(__name__)


def show_clips(
    pipe: CogVideoXPipeline,
    model: dict[str, Any],
    clips: Sequence[Clip],
    options: ClipOptions,
    cache: Cache,
    folder: Path,
    wanted: int,
) -> Iterator[Path]:
    """Writes a video of each window of the first clips, with the caption in its record.

    The left half has the frames that are read of the clip, the right half those that the VAE
    decodes from its latents. A clip that can't be read is skipped with a warning.

    Args:
        model: a ``checkpoints.model_identity``.
        folder: gets the videos; videos of the same names are replaced.
        wanted: number of clips, without those that are skipped.

    Yields:
        The videos, as they are written: ``NUMBER-CLIP.mp4``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = shown = 0
    with pipe.keeping("vae"):
        for clip in clips:
            if shown == wanted:
                break
            try:
                for spec, files in encode_windows(pipe, model, clip, options, cache):
                    output = folder / f"{number:03}-{clip.path.stem}.mp4"
                    decoded = _decoded(pipe, spec, Posterior(**read_cached(files[0])))
                    pair = np.concatenate([options.read(clip, spec), decoded], axis=2)
                    record = {"mlx_cogvideo": __version__, "clip": str(clip.path)}
                    record |= {"caption": clip.caption, "start": spec.start}
                    write_video(output, pair, spec.fps, overwrite=True, record=record)
                    yield output
                    number += 1
                shown += 1
            except InvalidInputError as error:
                logger.warning("left out: %s", error)


def _decoded(pipe: CogVideoXPipeline, spec: ClipSpec, posterior: Posterior) -> np.ndarray:
    """The frames of latents that are drawn as a training draws them, uint8 ``[F, H, W, 3]``."""
    latents = posterior.sample(mx.random.key(0)).astype(pipe.dtype)
    tiling = Tiling(choose_tiling(pipe, *latents.shape[2:4]))
    frames: list[np.ndarray] = []
    for _, chunk in decode_frames(pipe.vae, latents, tiling):
        frames += [] if chunk is None else [*chunk]
        if len(frames) == spec.frames:  # before it is checked: a clip may be of one colour
            break
    return np.stack(frames)
