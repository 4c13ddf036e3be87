"""What a video needs, worked out before its job is queued; nothing is loaded or downloaded."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.model_folder import ModelFolder
from ..cli.announce import plan_fields
from ..errors import InvalidInputError
from ..pipeline.estimates import largest_memory
from ..pipeline.fields import random_seed
from ..runs.jobs import make_plan
from ..runs.origin import Options
from ..runs.preview import Preview
from .models import Model

planning = threading.Lock()
"""Held while something is planned, which isn't made for threads."""


@dataclass(frozen=True, kw_only=True)
class MemoryNeeds:
    """The memory that something needs.

    Attributes:
        memory: bytes that each stage needs, by its name.
        available, largest: bytes of memory that are free now, and that this machine has for it.
    """

    memory: dict[str, int]
    available: int
    largest: int

    @property
    def need(self) -> int:
        """Bytes that the stage which needs most needs."""
        return max(self.memory.values(), default=0)

    @property
    def fits(self) -> bool:
        """Whether this machine has the memory that it needs."""
        return self.need <= self.largest


@dataclass(frozen=True, kw_only=True)
class Estimate(MemoryNeeds):
    """What a video will be and need.

    Attributes:
        seed: the given one, or a new one.
        frames, width, height, fps, steps: of the video.
        seconds: of denoising, for an official model on a machine whose speed is known.
        has_previews: whether previews can be drawn of this model's latents.
        warnings: what won't be as good, or not the same, as expected.
        schedule: the steps of which a video made of a clip takes the last ones.
        strength: the share that these are; None without a clip.
    """

    seed: int
    frames: int
    width: int
    height: int
    fps: float
    steps: int
    seconds: float | None
    has_previews: bool
    warnings: tuple[str, ...]
    schedule: int | None = None
    strength: float | None = None


def estimate_video(settings: Mapping[str, Any], model: Model, output: Path) -> Estimate:
    """Works out what a video needs, and whether it can be made.

    Args:
        settings: of ``RunSettings``, by name; ``seed`` is one number.
        output: the file that it would be.

    Raises:
        CogVideoXError: it can't be made; the message may name files.
    """
    if settings.get("prompt") is None:
        raise InvalidInputError("prompt is missing: describe the video")
    seed = settings.get("seed")
    seed = random_seed() if seed is None else seed
    given = {name: value for name, value in settings.items() if value is not None}
    options = Options(
        given={**given, "seed": [seed]}, model=model.source, output=str(output), dry_run=True
    )
    with planning:
        plan = make_plan(options)
        with plan.locks:
            about, largest = plan_fields(plan), largest_memory(plan.pipe)
            has_previews = _has_previews(plan.pipe)
    (video,), (job,) = about["videos"], plan.jobs
    source, is_clip = job.settings.source, job.settings.source.video is not None
    return Estimate(
        **{name: video[name] for name in ("seed", "frames", "width", "height", "fps", "steps")},
        **{name: about[name] for name in ("memory", "available", "seconds")},
        largest=largest,
        has_previews=has_previews,
        warnings=tuple(dict.fromkeys(plan.warnings)),
        schedule=job.settings.num_inference_steps if is_clip else None,
        strength=source.strength if is_clip else None,
    )


def _has_previews(pipe: ModelFolder) -> bool:
    try:
        Preview(pipe)
    except InvalidInputError:  # it has no map of colours
        return False
    return True
