"""Everything a video depends on: one dataclass, from which all lists of settings are made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..diffusion.computed_steps import PRESETS
from ..diffusion.extrapolation import EXTRAPOLATED
from ..diffusion.guidance import GUIDANCE_SCHEDULES, UNCONDS
from ..diffusion.schedulers import SCHEDULERS, Scheduler
from ..diffusion.step_cache import CACHES
from ..errors import InvalidInputError
from ..nn.autoencoder import OLD_TILINGS, TILINGS
from ..version import __version__
from ..video import FITS
from .fields import NOTHING, SEED, Range, above, at_least, check_values, setting, settings_of
from .sources import AN_ARRAY, IMAGE_LATENT_SCALES, Picture

VAES = ("full", "tiny")
"""The decoders: the model's VAE, and the small one."""

OWN_SCHEDULER = "a scheduler of its own"
"""What a record has in place of a sampler that a script has made. It can't be repeated from it."""


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """A video to make. None leaves a setting to the model, the machine or chance.

    Raises:
        InvalidInputError: a number is out of its range.
    """

    prompt: str | None = setting(
        None,
        "What the video shows. The models were trained on long English descriptions.",
        "--prompt",
        "-p",
        group="what",
    )
    negative_prompt: str = setting("", "What to steer away from.", group="what")
    num_frames: int | None = setting(
        None,
        "Frames to make, 8N+1.",
        "--frames",
        group="what",
        metavar="N",
        if_none="the model's own number",
    )
    height: int | None = setting(
        None, "Height in pixels.", group="what", metavar="PIXELS", if_none="the model's own"
    )
    width: int | None = setting(
        None, "Width in pixels.", group="what", metavar="PIXELS", if_none="the model's own"
    )
    extend: int = setting(
        0,
        "Number of further windows, of --frames frames each, that continue the video.",
        group="what",
        metavar="N",
        within=at_least(0),
        before=0,
        omit=0,
    )
    overlap: int | None = setting(
        None,
        "Frames, 8N+1, that a window shares with the one before it; they are blended.",
        group="what",
        metavar="FRAMES",
        if_none="9, or 1 for an image-to-video model",
        belongs_to="extend",
    )
    image: Picture | None = setting(
        None,
        "Picture that the video begins with, for image-to-video models: a file, or in Python "
        "pixels [height, width, 3] or a picture of Pillow.",
        group="source",
        metavar="FILE",
        compare=False,
    )
    video: Picture | None = setting(
        None,
        "Clip to make another one of: a file, a folder of frames, or in Python pixels "
        "[frames, height, width, 3] or a list of pictures.",
        group="source",
        metavar="FILE",
        compare=False,
    )
    video_start: float | None = setting(
        None,
        "Time in --video at which its part to use begins, in seconds.",
        group="source",
        metavar="SECONDS",
        if_none="0",
        within=at_least(0),
        belongs_to="video",
    )
    video_end: float | None = setting(
        None,
        "Time in --video at which its part to use ends, in seconds.",
        group="source",
        metavar="SECONDS",
        if_none="its end",
        within=above(0),
        belongs_to="video",
    )
    strength: float | None = setting(
        None,
        "Fraction of the steps to run on --video, above 0 and up to 1. 1 ignores the clip.",
        group="source",
        if_none="0.8",
        within=Range(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    )
    image_fit: str | None = setting(
        None,
        "How --image or --video is brought to the size of the video: crop covers it, pad puts it "
        "on black, stretch distorts it.",
        group="source",
        choices=FITS,
        if_none="crop",
    )
    image_latent_scale: str | None = setting(
        None,
        "Scale of the picture's latents for image-to-video models of version 1.5, on which the "
        "published tools disagree.",
        group="source",
        choices=IMAGE_LATENT_SCALES,
        if_none="official",
    )
    num_inference_steps: int | None = setting(
        None,
        "Denoising steps, 1 to 1000.",
        "--steps",
        group="sampling",
        metavar="N",
        if_none="50, or the model's recommendation",
    )
    guidance_scale: float | None = setting(
        None,
        "Weight of the prompt. 1 or less skips the unconditional pass, which halves the time.",
        "--guidance",
        group="sampling",
        metavar="WEIGHT",
        if_none="6, or the model's recommendation",
        within=Range(lambda value: 0 <= value < math.inf, "a finite number, 0 or more"),
    )
    dynamic_cfg: bool | str | None = setting(
        None,
        "Guidance over the steps: constant, wave as the official tools compute it, or cosine, "
        "which rises to the end.",
        "--guidance-schedule",
        group="sampling",
        choices=GUIDANCE_SCHEDULES,
        if_none="constant, or the model's recommendation",
    )
    guidance_range: tuple[int, int] | None = setting(
        None,
        "First step with guidance, counted from 0, and the step after the last one. Other steps "
        "skip the unconditional pass.",
        group="sampling",
        metavar=("FIRST", "END"),
        omit=NOTHING,
        if_none="all steps",
    )
    uncond: str = setting(
        "empty",
        "Input of the unconditional pass: empty, the negative prompt, or zero, embeddings of zeros "
        "as the original tools use.",
        group="sampling",
        choices=UNCONDS,
        before="empty",
    )
    preset: str | None = setting(
        None,
        "How much of the work is done: exact (all of it), balanced (44 % of the steps) or fast "
        "(34 %). These two compute the steps that mlx-cogvideo tune has found for the model, or "
        "usual ones, and extrapolate the others, as --cache latents does.",
        group="sampling",
        choices=("exact", *PRESETS),
        if_none="exact, or what --cache says",
        decides=("cache", "cache_threshold", "computed_steps"),
    )
    cache: str | None = setting(
        None,
        "Method that saves work in some steps: faster, but the video differs. latents extrapolates "
        "the model's predictions, guidance only those of the unconditional pass; teacache and "
        "first-block skip the transformer's blocks.",
        group="sampling",
        choices=("none", *EXTRAPOLATED, *CACHES),
        if_none="none",
        aliases={"none": None},
    )
    cache_threshold: float | None = setting(
        None,
        "Relative change below which --cache teacache or first-block skips a step. Higher is "
        "faster and less exact.",
        group="sampling",
        if_none="0.2 for teacache, 0.1 for first-block",
        belongs_to="cache",
    )
    computed_steps: tuple[int, ...] | int | None = setting(
        None,
        "Steps that --cache latents or guidance computes in full: their number, or a list of them, "
        "counted from 0 in all of --steps. Fewer is faster and less exact.",
        group="sampling",
        metavar="N",
        if_none="22 of 50 for latents, 24 of 50 for guidance",
        belongs_to="cache",
    )
    scheduler: str | Scheduler | None = setting(
        None,
        "Sampler.",
        group="sampling",
        choices=tuple(SCHEDULERS),
        if_none="the model's recommendation",
    )
    seed: int | None = setting(
        None,
        "Seed of all noise; the same seed repeats a video.",
        group="sampling",
        metavar="N",
        if_none="random",
        within=SEED,
    )
    sequential_guidance: bool | None = setting(
        None,
        "Compute the two passes of guidance one after the other: less memory, about the same time.",
        group="memory",
        if_none="only where memory is short",
        may_change=True,
        by_memory=True,
        before=False,
    )
    vae: str = setting(
        "full",
        "Decoder of the video: the model's own (full), or TAECVX (tiny), which needs little memory "
        "and time, but blurs details.",
        group="memory",
        choices=VAES,
        may_change=True,
        before="full",
    )
    tiny_vae: str | None = setting(
        None,
        "File with the weights of --vae tiny, .safetensors or .pth.",
        group="memory",
        metavar="FILE",
        if_none="taecvx.safetensors or taecvx.pth in the model's folder or the user's caches",
        may_change=True,
        belongs_to="vae",
    )
    tiling: str = setting(
        "auto",
        "How the VAE computes a frame: none (whole), exact (in strips of rows: the same video in "
        "less memory), tiled (least memory, but the video differs), or auto, which chooses by the "
        "machine's memory.",
        group="memory",
        choices=("auto", *TILINGS),
        may_change=True,
        belongs_to="vae",
        before="none",
        aliases=OLD_TILINGS,
    )
    tile_size: tuple[int, int] | None = setting(
        None,
        "Height and width of a tile in pixels.",
        group="memory",
        metavar=("HEIGHT", "WIDTH"),
        if_none="half the model's own size",
        omit=NOTHING,
        may_change=True,
        belongs_to="tiling",
    )
    tile_overlap: tuple[float, float] | None = setting(
        None,
        "Fraction of a tile's height and width that the next tile covers too.",
        group="memory",
        metavar=("Y", "X"),
        if_none="about 1/6 and 1/5",
        omit=NOTHING,
        may_change=True,
        belongs_to="tiling",
    )
    source_tiling: str | None = setting(
        None,
        "How the VAE computes --image, --video or the frames that a window continues: exact or "
        "tiled.",
        group="memory",
        choices=("exact", "tiled"),
        if_none="as --tiling",
        belongs_to="extend",
        aliases=OLD_TILINGS,
    )

    def __post_init__(self) -> None:
        check_values(self)

    def to_dict(self) -> dict[str, Any]:
        """The settings fit for JSON, without those that are off; pixels become "an array"."""
        return {
            name: _for_json(name, getattr(self, name))
            for name, about in settings_of(VideoSettings).items()
            if getattr(self, name) is not about.omit
        }

    settings = to_dict  # its name before there was this class

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings in a record.

        Raises:
            InvalidInputError: this version doesn't know one of them.
        """
        if unknown := values.keys() - settings_of(cls).keys():
            raise InvalidInputError(
                f"these settings aren't for this version of mlx_cogvideo, {__version__}: "
                f"{', '.join(sorted(unknown))}"
            )
        return cls(**values)


def _for_json(name: str, value: Any) -> Any:
    if name in ("image", "video") and value is not None:
        return str(value) if isinstance(value, str | Path) else AN_ARRAY
    if isinstance(value, Scheduler):
        return OWN_SCHEDULER
    return list(value) if isinstance(value, tuple) else value
