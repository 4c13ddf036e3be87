"""From settings as they are given to settings for one model: nothing left open, all checked."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints.model_configurations import ModelConfigurations
from ..checkpoints.model_folder import ModelFolder
from ..diffusion.computed_steps import PRESETS, choose_computed_steps, steps_to_compute
from ..diffusion.denoising import Sampling
from ..diffusion.division import divide
from ..diffusion.guidance import check_uncond, schedule_name
from ..diffusion.schedulers import Scheduler, make_scheduler, scheduler_name
from ..diffusion.step_cache import IDENTITY, POLYNOMIALS, resolve_cache_threshold
from ..errors import InvalidInputError
from .estimates import choose_tiling, split_cfg
from .fields import random_seed
from .geometry import Geometry
from .overrides import check_presets
from .presets import tuned_lists
from .resolved import Preset, ResolvedSettings, check_steps
from .settings import VideoSettings
from .sources import DEFAULT_STRENGTH, Source, path_or_none, path_or_pixels, picture_size
from .vae_stage import Tiling
from .windows import choose_overlap

DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 50,
    "guidance_scale": 6.0,
    "dynamic_cfg": "constant",
    "scheduler": None,  # the one of scheduler_config.json
}
"""The settings that a model may recommend, with their values where it doesn't."""


def resolve(model: ModelFolder, settings: VideoSettings) -> ResolvedSettings:
    """Gives every setting its value for a model. Weights and files aren't read.

    Raises:
        InvalidInputError: a setting that the model can't follow.
    """
    check_uncond(settings.uncond, bool(settings.negative_prompt))
    chosen = _chosen(model, settings)
    settings, preset = _without_preset(model, settings, chosen)
    geometry = _geometry(model, settings)
    guided = chosen["guidance_scale"] > 1
    division = divide(model.processes, guided)
    sequential = settings.sequential_guidance
    if division.halves == 2:
        sequential = True  # each pass by itself: recorded, so that one process computes the same
    elif sequential is None:
        sequential = guided and split_cfg(model, geometry, settings.cache, division)
    sides = geometry.latent_shape[2:4]
    decoding = Tiling.choose(
        model.configs["vae"],
        settings.tiling,
        settings.tile_size,
        settings.tile_overlap,
        automatic=lambda: choose_tiling(model, *sides),
    )
    source = _source(model, settings, geometry, "tiled" if decoding.mode == "tiled" else "exact")
    if settings.vae == "tiny":
        decoding = Tiling()  # it computes frames whole
    elif settings.tiny_vae is not None:
        raise InvalidInputError("tiny_vae needs vae tiny")
    encodes = bool(settings.extend) or not source.is_noise
    overlap = choose_overlap(
        settings.overlap,
        extend=settings.extend,
        takes_image=model.takes_image,
        num_frames=geometry.num_frames,
    )
    known = {f.name: getattr(settings, f.name) for f in fields(VideoSettings)}
    known |= {
        **chosen,
        "num_frames": geometry.num_frames,
        "height": geometry.height,
        "width": geometry.width,
        "overlap": overlap,
        "image": source.image,
        "video": source.video,
        "video_start": source.start or None,
        "strength": None if source.video is None else source.strength,
        "image_fit": None if source.is_noise else source.fit,
        "image_latent_scale": None if source.image is None else source.image_latent_scale,
        "source_tiling": source.tiling if encodes else None,
        "cache_threshold": resolve_cache_threshold(settings.cache, settings.cache_threshold),
        "computed_steps": choose_computed_steps(
            settings.cache, settings.computed_steps, _scheduler(model, chosen)
        ),
        "seed": random_seed() if settings.seed is None else settings.seed,
        "sequential_guidance": sequential,
        "tiny_vae": path_or_none(settings.tiny_vae),
        "tiling": decoding.mode,
        "tile_size": decoding.tile_size,
        "tile_overlap": decoding.tile_overlap,
    }
    resolved = ResolvedSettings(
        **known,
        geometry=geometry,
        decoding=decoding,
        source=source,
        division=division,
        recommended=tuple(n for n in model.recommended if getattr(settings, n) is None),
        preset_used=preset,
    )
    run_scheduler(model, resolved)  # refuses a number of steps that it can't take
    check_steps(resolved)
    return resolved


def _chosen(model: ModelFolder, settings: VideoSettings) -> dict[str, Any]:
    """The settings of `DEFAULTS`: as given, else as the model recommends, else their defaults."""
    given = {name: getattr(settings, name) for name in DEFAULTS}
    given = {name: value for name, value in given.items() if value is not None}
    chosen = {**DEFAULTS, **model.recommended, **given}
    if not isinstance(chosen["scheduler"], Scheduler):
        chosen["scheduler"] = scheduler_name(chosen["scheduler"], model.scheduler_config)
    chosen["guidance_scale"] = float(chosen["guidance_scale"])
    return chosen | {"dynamic_cfg": schedule_name(chosen["dynamic_cfg"])}


def _without_preset(
    model: ModelFolder, settings: VideoSettings, chosen: dict[str, Any]
) -> tuple[VideoSettings, Preset | None]:
    """The settings with what a preset stands for in its place, and the preset."""
    preset = settings.preset
    if preset is None:
        return settings, None
    check_presets(vars(settings))
    if preset == "exact":
        return replace(settings, preset=None), Preset(preset)
    scheduler = _scheduler(model, chosen)
    tuned = tuned_lists(model, scheduler).get(preset)
    steps = tuned or steps_to_compute(PRESETS[preset], len(scheduler.timesteps))
    settings = replace(settings, preset=None, cache="latents", computed_steps=steps)
    return settings, Preset(preset, is_tuned=tuned is not None)


def _scheduler(model: ModelFolder, chosen: dict[str, Any]) -> Scheduler:
    """The sampler with all timesteps, to plan with."""
    scheduler = make_scheduler(chosen["scheduler"], model.scheduler_config, mx.random.key(0))
    scheduler.set_timesteps(chosen["num_inference_steps"])
    return scheduler


def run_scheduler(model: ModelFolder, settings: ResolvedSettings) -> Scheduler:
    """Makes the sampler of a run, whose noise is drawn by the run's seed.

    Raises:
        InvalidInputError: it can't take so many steps.
    """
    scheduler = make_scheduler(settings.scheduler, model.scheduler_config, _keys(settings)[1])
    scheduler.set_timesteps(settings.num_inference_steps)
    return scheduler


def initial_noise(settings: ResolvedSettings) -> mx.array:
    """Draws the noise that a run begins with, in the shape of its latents."""
    return mx.random.normal(settings.geometry.latent_shape, key=_keys(settings)[0])


def sampling(model: ModelFolder, settings: ResolvedSettings) -> Sampling:
    """The parameters of the denoising loop."""
    variant = model.variant.alias if model.variant else ""
    return Sampling(
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        guidance_schedule=settings.dynamic_cfg,
        guidance_range=settings.guidance_range,
        batch_parts=settings.batch_parts,
        cache=settings.cache,
        cache_threshold=settings.cache_threshold,
        computed_steps=settings.computed_steps,
        polynomial=POLYNOMIALS.get(variant, IDENTITY),
        dtype=model.dtype,
    )


def _keys(settings: ResolvedSettings) -> mx.array:
    """Random keys of the initial noise and of the scheduler's noise."""
    return mx.random.split(mx.random.key(settings.seed))


def model_geometry(
    model: ModelConfigurations,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Geometry:
    """The size of a run; None is the model's own."""
    return Geometry.choose(
        model.variant,
        model.configs["transformer"],
        model.configs["vae"],
        num_frames=num_frames,
        height=height,
        width=width,
    )


def _geometry(model: ModelFolder, settings: VideoSettings) -> Geometry:
    """The size of a run; without height and width, a model of many shapes takes the image's."""
    height, width = settings.height, settings.width
    any_shape = model.variant is not None and model.variant.longest_side is not None
    if any_shape and settings.image is not None and height is width is None:
        height, width = model.variant.size_like(picture_size(settings.image))
    return model_geometry(model, settings.num_frames, height, width)


def _source(model: ModelFolder, settings: VideoSettings, geometry: Geometry, tiling: str) -> Source:
    """What the video starts from. Files aren't looked at yet: see ``Source.check``.

    Raises:
        InvalidInputError: the model needs another source, or a setting has nothing to apply to.
    """
    _check_source(model, settings)
    return Source(
        image=path_or_pixels("image", settings.image),
        video=path_or_pixels("video", settings.video, geometry.num_frames),
        start=settings.video_start or 0.0,
        end=settings.video_end,
        strength=DEFAULT_STRENGTH if settings.strength is None else settings.strength,
        fit=settings.image_fit or "crop",
        image_latent_scale=settings.image_latent_scale or "official",
        tiling=settings.source_tiling or tiling,
    )


def _check_source(model: ModelFolder, settings: VideoSettings) -> None:
    has_image, has_video = settings.image is not None, settings.video is not None
    if model.takes_image and has_video:
        raise InvalidInputError("an image-to-video model can't start from a video")
    if model.takes_image and not has_image:
        raise InvalidInputError("this is an image-to-video model: give it an image")
    if has_image and not model.takes_image:
        raise InvalidInputError(
            "this model makes videos of text: an image needs an image-to-video model, "
            "such as 5b-i2v"
        )
    either = has_image or has_video
    is_file = isinstance(settings.video, str | Path)
    for name, applies, what in (
        ("video_start", is_file, "a video that is a file"),
        ("video_end", is_file, "a video that is a file"),
        ("strength", has_video, "a video"),
        ("image_latent_scale", has_image, "an image"),
        ("image_fit", either, "an image or a video"),
        ("source_tiling", either or settings.extend > 0, "an image or a video"),
    ):
        if getattr(settings, name) is not None and not applies:
            raise InvalidInputError(f"{name} needs {what}")
