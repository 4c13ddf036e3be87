"""Videos longer than a model makes at once: windows, each of which continues the one before it.

A text-to-video model gets the last frames of the window before as its own first ones; an
image-to-video model gets the last frame as its picture. Where two windows overlap they are blended.

Memory: a window, and the frames of an overlap, however long the video is.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ..diffusion.denoising import DenoisingState
from ..errors import InvalidInputError
from .events import Event, RunState
from .fields import SEEDS
from .resolved import ResolvedSettings

OVERLAP = 9
"""Frames from which a text-to-video model continues."""

_SEED_STEP = 0x9E3779B97F4A7C15


def choose_overlap(
    given: int | None, *, extend: int, takes_image: bool, num_frames: int
) -> int | None:
    """Frames that two windows share; None with one window.

    Raises:
        InvalidInputError: a model can't continue from so many.
    """
    if extend == 0:
        if given is not None:
            raise InvalidInputError("overlap needs extend")
        return None
    if num_frames == 1:
        raise InvalidInputError("a window of one frame can't be extended: ask for more frames")
    if takes_image:
        if given not in (None, 1):
            raise InvalidInputError(
                f"an image-to-video model continues from 1 frame; got an overlap of {given}"
            )
        return 1
    overlap = OVERLAP if given is None else given
    if given is None and overlap >= num_frames:
        raise InvalidInputError(
            f"windows of {num_frames} frames can't share {OVERLAP}, the default: give an overlap "
            "of 1, or more frames"
        )
    if overlap < 1 or overlap % 8 != 1 or overlap >= num_frames:
        raise InvalidInputError(
            f"overlap must be 8N+1 (1, 9, 17, ...) and less than the {num_frames} frames of a "
            f"window; got {overlap}"
        )
    return overlap


def extended_events(
    tell: Callable[[ResolvedSettings, RunState], Iterator[Event]],
    settings: ResolvedSettings,
    run: RunState,
    ends_early: Callable[[], bool],
) -> Iterator[Event]:
    """The events of a video of several windows; its frames are joined.

    Args:
        tell: the story of one window, which goes on from what a run has computed.
        run: of the whole video, its finished windows included.
        ends_early: asked after each window's denoising; True leaves out the windows after it.
    """
    joiner, finished = Joiner(settings.overlap), len(run.windows)
    for number in range(1 + settings.extend):
        window = window_settings(settings, number, joiner.tail)
        last = number == settings.extend
        for event in tell(window, _of_window(run, window, number)):
            if event.stage == "decode":
                if number == len(run.windows):
                    windows = (*run.windows, event.run.latents)
                    run = RunState(embeds=event.run.embeds, windows=windows)
                    last = last or ends_early()
                yield replace(event, run=run, frames=joiner.add(event.frames, last))
            elif number >= finished:
                run = replace(event.run, windows=run.windows)
                yield replace(event, run=run)
        joiner.end_window()
        if last:
            return


def _of_window(run: RunState, window: ResolvedSettings, number: int) -> RunState:
    """What has been computed for a window."""
    if number >= len(run.windows):
        return run
    latents = run.windows[number]
    return RunState(run.embeds, denoising=DenoisingState(window.steps, 0, latents, latents))


def window_settings(
    settings: ResolvedSettings, number: int, tail: np.ndarray | None
) -> ResolvedSettings:
    """The settings of a window, counted from 0.

    Args:
        tail: the last frames before it, ``[overlap, H, W, 3]``, uint8 or in [0, 1]; None for the
            first, and where they have been encoded.
    """
    if number == 0:
        return settings
    seed = (settings.seed + number * _SEED_STEP) % SEEDS
    if tail is None:
        source = replace(settings.source, image=None, video=None)
        return replace(settings, seed=seed, source=source)
    if tail.dtype != np.uint8:
        tail = np.round(tail * 255).astype(np.uint8)
    source = replace(settings.source, image=None, video=None, prefix=tail)
    if settings.source.image is not None:
        source = replace(source, image=tail[-1], prefix=None)
    return replace(settings, seed=seed, source=source)


class Joiner:
    """Puts windows together.

    Attributes:
        tail: the last frames of the last window, as they were made; None before its end.
    """

    def __init__(self, overlap: int):
        self.overlap = overlap
        self.tail: np.ndarray | None = None
        self._seen = 0
        self._held: np.ndarray | None = None

    def add(self, frames: np.ndarray | None, last: bool) -> np.ndarray | None:
        """Takes the next frames of a window and returns those that are settled.

        Args:
            frames: ``[F, H, W, 3]``, or None where there are no new ones.
            last: whether no window comes after it: its end is settled, too.
        """
        if frames is None:
            return None
        before, seen = self.tail, self._seen
        if before is not None and seen < len(before):
            count = min(len(before) - seen, len(frames))
            blended = _blend(before[seen : seen + count], frames[:count], seen, len(before))
            frames = np.concatenate([blended, frames[count:]])
        self._seen += len(frames)
        held = frames if self._held is None else np.concatenate([self._held, frames])
        settled = max(0, len(held) - (0 if last else self.overlap))
        self._held = held[settled:]
        return held[:settled] if settled else None

    def end_window(self) -> None:
        """Keeps the end of the window for the next one."""
        self.tail, self._held, self._seen = self._held, None, 0


def _blend(before: np.ndarray, after: np.ndarray, first: int, count: int) -> np.ndarray:
    """From one to the other; `first` of `count` frames have been blended."""
    share = (np.arange(first + 1, first + 1 + len(before)) / (count + 1)).reshape(-1, 1, 1, 1)
    mixed = before * (1 - share) + after * share
    return (np.round(mixed) if after.dtype == np.uint8 else mixed).astype(after.dtype)
