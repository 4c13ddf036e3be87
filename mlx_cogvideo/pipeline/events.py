"""The events of a run, and what it has computed so far."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..diffusion.conditioning import Conditioning
from ..diffusion.denoising import DenoisingState
from .resolved import ResolvedSettings

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and their number."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class RunState:
    """Everything that a run has computed and needs to go on.

    Attributes:
        embeds: the encoded text, ``[1 or 2, text_length, text_embed_dim]``.
        conditioning: what the video, or the window that is denoised, starts from besides noise.
        denoising: where denoising stands, or None before the first step.
        windows: final latents of the windows that are denoised, of a video of several.
    """

    embeds: mx.array | None = None
    conditioning: Conditioning | None = None
    denoising: DenoisingState | None = None
    windows: tuple[mx.array, ...] = ()

    @property
    def latents(self) -> mx.array:
        """Latents after the last step, ``[1, f, h, w, c]`` in float32.

        Raises:
            ValueError: no step is done yet.
        """
        if self.denoising is None:
            raise ValueError("no step is done yet")
        return self.denoising.latents

    @property
    def steps_done(self) -> int:
        """Steps of the window that is denoised."""
        return self.denoising.step if self.denoising else 0

    @property
    def needs_source(self) -> bool:
        """Whether the file that the video starts from is still to be encoded."""
        return self.denoising is None and self.conditioning is None and not self.windows


@dataclass(frozen=True)
class Event:
    """Something that has happened on the way to a video.

    Attributes:
        stage: ``"encode"`` (the text), ``"source"`` (a picture or clip), ``"denoise"`` or
            ``"decode"``.
        done, total: how much of the stage is done: steps of ``"denoise"``, frames of ``"decode"``.
        window: settings of the window; of a video of one, its own.
        run: what has been computed so far.
        frames: new frames ``[F, H, W, 3]`` of ``"decode"``, which come in order.
    """

    stage: str
    done: int
    total: int
    window: ResolvedSettings
    run: RunState
    frames: np.ndarray | None = None

    @property
    def ends_denoising(self) -> bool:
        return self.stage == "denoise" and self.done == self.total


def join_frames(events: Iterable[Event], on_progress: Progress = no_progress) -> np.ndarray:
    """Goes through a run's events and returns all of its frames, ``[F, H, W, 3]``."""
    frames = []
    for event in events:
        on_progress(event.stage, event.done, event.total)
        if event.frames is not None:
            frames.append(event.frames)
    return np.concatenate(frames)
