"""Videos that show on the way what an adapter has learned so far."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from ..errors import CogVideoXError
from ..pipeline.events import RunState, join_frames
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.resolved import ResolvedSettings
from ..video import write_video
from .prepare import load_text

logger = logging.getLogger(__name__)


def write_sample_videos(
    pipe: CogVideoXPipeline,
    videos: Sequence[ResolvedSettings],
    texts: Mapping[str, Path],
    folder: Path,
    step: int,
    fps: float,
) -> None:
    """Makes the videos with the adapter of a step and writes ``STEP-NUMBER.mp4`` for each.

    A video that can't be made is skipped with a warning, and the training continues.

    Args:
        texts: files of the embeddings of the prompts and of "".
    """
    folder.mkdir(exist_ok=True)
    for number, settings in enumerate(videos):
        output = folder / f"{step:07}-{number}.mp4"
        prompts = ["", settings.prompt] if settings.guided else [settings.prompt]
        run = RunState(embeds=mx.concatenate([load_text(texts[prompt]) for prompt in prompts]))
        try:
            write_video(output, join_frames(pipe.events(settings, run)), fps, overwrite=True)
            logger.info("%-8s %s", "sample", output)
        except CogVideoXError as error:
            logger.warning("no sample of %r: %s", settings.prompt, error)
