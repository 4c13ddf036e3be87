"""Videos that show on the way what an adapter has learned so far."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import CogVideoXError, mlx_errors
from ..pipeline.events import Event, RunState
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.resolved import ResolvedSettings
from ..version import __version__
from ..video import write_video
from ..video.metadata import KEY
from .prepare import load_text

logger = logging.getLogger(__name__)


def write_sample_videos(
    pipe: CogVideoXPipeline,
    videos: Sequence[ResolvedSettings],
    texts: Mapping[str, Path],
    folder: Path,
    step: int,
    fps: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, Path]]:
    """Makes the videos with the adapter of a step and writes ``STEP-NUMBER.mp4`` for each.

    The record in each has its prompt.

    A video that can't be made is skipped with a warning, and the training continues.

    Args:
        texts: files of the embeddings of the prompts and of "".
        should_stop: asked after each denoising step and each decoded part; True makes no more.

    Yields:
        The prompt and the file of each video, as they are written.
    """
    for number, settings in enumerate(videos):
        output = folder / f"{step:07}-{number}.mp4"
        prompts = ["", settings.prompt] if settings.guided else [settings.prompt]
        try:
            with mlx_errors():
                folder.mkdir(exist_ok=True)
                embeds = mx.concatenate([load_text(texts[prompt]) for prompt in prompts])
                with closing(pipe.events(settings, RunState(embeds=embeds))) as events:
                    frames = _frames(events, should_stop)
                if frames is None:
                    return
                record = {KEY: __version__, "prompt": settings.prompt, "step": step}
                write_video(output, frames, fps, overwrite=True, record=record)
            logger.info("%-8s %s", "sample", output)
            yield settings.prompt, output
        except (CogVideoXError, OSError) as error:
            logger.warning("no sample of %r: %s", settings.prompt, error)


def _frames(events: Iterable[Event], should_stop: Callable[[], bool]) -> np.ndarray | None:
    """All frames of a run, ``[F, H, W, 3]``; None if it should stop before."""
    frames = []
    for event in events:
        if should_stop():
            return None
        if event.frames is not None:
            frames.append(event.frames)
    return np.concatenate(frames)
