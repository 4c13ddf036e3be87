"""The settings of a run: those of its video, and what computes and writes it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoints.components import DTYPES
from ..checkpoints.packing import BITS, BITS_IN_WORDS
from ..checkpoints.tiny_vae import DIGEST
from ..pipeline.fields import Range, setting, settings_of
from ..pipeline.settings import VideoSettings
from ..video.interpolation import FACTORS
from ..video.paths import GIF, LATENTS, MP4


@dataclass(frozen=True, kw_only=True)
class RunSettings(VideoSettings):
    """Everything that a video file depends on, but for the model: a record's ``settings``."""

    lora: tuple[tuple[str, float], ...] = setting(
        (),
        "Adapter (LoRA, DoRA or LoKr), a file, a folder, a hub id or a file there, and its weight. "
        "May be given several times.",
        group="sampling",
        metavar=("ADAPTER", "SCALE"),
        before=[],
    )
    dtype: str | None = setting(
        None,
        "Type of weights and activations.",
        group="memory",
        choices=tuple(DTYPES),
        if_none="the model's own, and float32 on the CPU",
    )
    quantize: int | None = setting(
        None,
        "Quantize the weights of the transformer and the text encoder to BITS while they are "
        f"loaded, as the converter does: {BITS_IN_WORDS}.",
        "-q",
        group="memory",
        metavar="BITS",
        if_none="as they are stored",
        within=Range(BITS.__contains__, BITS_IN_WORDS),
    )
    compile: bool = setting(
        True, "Fuse operations with mx.compile. --no-compile is for debugging.", group="memory"
    )
    fps: float | None = setting(
        None,
        "Frames per second, from 0.02 to 1000; a gif takes 50 at most.",
        group="output",
        if_none="the model's own",
        within=Range(lambda value: 0 < value < math.inf, "above 0"),
        may_change=True,
    )
    interpolate: int = setting(
        1,
        "Times the frames per second of the file, 1, 2 or 3: FFmpeg computes frames between those "
        "of the model.",
        group="output",
        metavar="TIMES",
        within=Range(FACTORS.__contains__, "1, 2 or 3"),
        may_change=True,
        before=1,
        omit=1,
    )

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> None:
        """Raises InvalidInputError where a setting of a command, of which a seed is a list, is out
        of its range."""
        for seed in given.get("seed") or [None]:
            cls(**{**given, "seed": seed})


RUN_SETTINGS = settings_of(RunSettings)

DECODING = tuple(
    name for name, about in RUN_SETTINGS.items() if "tiling" in (name, about.belongs_to)
)
"""Settings of how the VAE decodes."""

BY_MEMORY = tuple(name for name, about in RUN_SETTINGS.items() if about.by_memory)
"""Settings that the memory decides where they aren't given."""

MAY_CHANGE = (*(name for name, about in RUN_SETTINGS.items() if about.may_change), DIGEST)
"""Settings that may change when a run is resumed."""

SOURCE_DIGESTS = frozenset({"image_sha256", "video_sha256"})
"""What a record has among its settings for the contents of the files that a video starts from."""

DIGESTS = SOURCE_DIGESTS | {DIGEST}
"""The same of all files."""


def video_settings(recorded: Mapping[str, Any]) -> VideoSettings:
    """The settings of the video among those in a record.

    Raises:
        InvalidInputError: this version doesn't know one of them.
    """
    of_the_run = RUN_SETTINGS.keys() - settings_of(VideoSettings).keys()
    passed_over = of_the_run | DIGESTS
    return VideoSettings.from_dict({n: v for n, v in recorded.items() if n not in passed_over})


def check_recorded(recorded: Mapping[str, Any]) -> None:
    """Raises InvalidInputError where a setting in a record can't be one of this version."""
    passed_over = {"lora", *DIGESTS}
    RunSettings.from_dict({n: v for n, v in recorded.items() if n not in passed_over})


def comparable(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings with today's names of values, and values for settings that came later.

    A record that lacks a setting is older than it, and its run did what is the default today, or
    what the setting says of the time before it.
    """
    values: dict[str, Any] = {
        name: f.default for name, f in RunSettings.__dataclass_fields__.items()
    }
    values |= {n: about.before for n, about in RUN_SETTINGS.items() if about.before is not None}
    values |= recorded
    for name, about in RUN_SETTINGS.items():
        if about.aliases is not None and name in values:
            values[name] = about.aliases.get(values[name], values[name])
    return values


def without_effect_in_file(given: Mapping[str, Any], form: str, frames: int) -> Iterator[str]:
    """Describes each given setting that changes nothing in an output.

    Args:
        given: settings that were asked for, by name.
        form: ending of the output.
        frames: of the video.
    """
    if "fps" in given and form not in (MP4, GIF):
        yield "fps has no effect: only .mp4 and .gif files have a rate"
    if given.get("interpolate", 1) > 1 and form == LATENTS:
        yield "interpolate has no effect: latents aren't frames yet"
    elif given.get("interpolate", 1) > 1 and frames == 1:
        yield "interpolate has no effect: the video has one frame"
