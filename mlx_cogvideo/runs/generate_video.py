"""One call from a prompt to a video file."""

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from ..checkpoints import default_model, model_identity
from ..errors import mlx_errors
from ..files import locked
from ..pipeline.pipeline import TILED, CogVideoXPipeline
from ..pipeline.sources import Picture
from ..video import check_output_path, write_video
from .record import Meter, make_record

logger = logging.getLogger(__name__)


def generate_video(
    prompt: str,
    model: str | Path | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    cfg_scale: float = 6.0,
    seed: int | None = None,
    output_path: str | Path | None = None,
    tiling: str = "auto",
    image: Picture | None = None,
    video: Picture | None = None,
    strength: float | None = None,
) -> np.ndarray:
    """Makes a video of a prompt, and writes it where `output_path` says.

    For runs that can be interrupted and go on there is ``generate.py``.

    Args:
        prompt: what to show.
        model: folder, alias or hub id; None is the folder ``mlx_model`` if there is one, else the
            bundled demo.
        num_frames: 8N+1; None is the model's own, as for `height` and `width` in pixels.
        num_inference_steps: denoising steps.
        cfg_scale: weight of the prompt.
        seed: of all noise; None draws one.
        output_path: an .mp4 or .gif file that doesn't exist yet, or without an ending a folder
            of PNG frames. How the video was made is stored inside.
        tiling: how the VAE takes a frame: ``"none"`` whole, ``"seamless"`` in strips, with the same
            result, ``"tiled"``, or ``"auto"``, which chooses by the memory there is: whole frames
            only where they need no more than the transformer's weights or 2 GiB.
        image: for image-to-video models, the picture that it begins with: a file or pixels.
        video: a clip to make another one of: a file, a folder of frames, or pixels.
        strength: how much of `video` is made anew, above 0 and up to 1; None is 0.8.

    Returns:
        uint8 frames ``[F, H, W, 3]``.

    Raises:
        CogVideoXError: one of its children; before any expensive work wherever that is possible.
    """
    lock: AbstractContextManager[None] = nullcontext()
    if output_path is not None:
        lock = locked(check_output_path(output_path), "choose another output_path")
    with lock:
        if output_path is not None:
            check_output_path(output_path)  # again: nobody else writes it from here on
        model = default_model() if model is None else model
        pipe = CogVideoXPipeline.from_pretrained(model)
        request = pipe.request(
            prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=cfg_scale,
            seed=seed,
            tiling=tiling,
            image=image,
            video=video,
            strength=strength,
        )
        if tiling == "auto" and request.tiling.mode == "tiled":
            logger.warning(TILED)
        identity = {} if output_path is None else model_identity(model, pipe.folder)
        record = make_record(pipe, request, identity, fps=pipe.fps)
        with mlx_errors():
            given = {**request.settings(), **({} if image is None else {"image": image})}
            given |= {} if video is None else {"video": video}
            frames = pipe(**given, on_progress=Meter(record))
        if output_path is not None:
            write_video(output_path, frames, pipe.fps, record=record)
        return frames
