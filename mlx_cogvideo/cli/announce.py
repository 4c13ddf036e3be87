"""What is about to happen, in a few lines before it does."""

import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..called import command
from ..checkpoints import DEMO_PATH, hub_cache
from ..checkpoints.model_folder import ModelFolder
from ..device import free_space, size
from ..diffusion.step_cache import CACHES
from ..machine.measured import measured
from ..machine.speed import chip_ceilings, run_seconds
from ..nn.autoencoder import AutoencoderConfig
from ..pipeline.estimates import estimate_memory, largest_memory, memory_advice, usable_memory
from ..pipeline.geometry import Geometry
from ..pipeline.resolved import ResolvedSettings
from ..pipeline.sources import Source
from ..pipeline.vae_stage import Tiling
from ..runs.record import model_title
from ..runs.resumable import VideoJob
from ..runs.run_plan import Failure, Plan
from ..runs.settings import RunSettings
from ..video.paths import LATENTS, output_form
from .common import duration, say
from .json_events import JsonEvents
from .options import option_name

LONG_TO_QUANTIZE = 4_000_000_000
"""Bytes of networks that take long to quantize."""

logger = logging.getLogger(__name__)


def announce(
    plan: Plan,
    events: JsonEvents,
    *,
    names_model: bool,
    also: Iterable[tuple[str, str]] = (),
) -> None:
    """Says on stderr what a plan will do, what it needs, and what of it can't be done.

    Args:
        names_model: whether the command, or the run that it repeats or resumes, names the model.
        also: further lines, of a title and a text each.
    """
    needs, (seconds, source) = memory_needs(plan), denoising_seconds(plan)
    if events.on:
        events.emit("plan", **plan_fields(plan))
    note_demo(plan.pipe, names_model=names_model)
    for failure in plan.failed:
        report_failure(failure, events)
    for warning in dict.fromkeys(plan.warnings):
        logger.warning("%s", warning)
    if plan.finished:
        outputs = plan.finished[0] if len(plan.finished) == 1 else f"{len(plan.finished)} videos"
        logger.info("%-8s %s", "finished", f"{outputs}, made before")
    if plan.jobs:
        download, time = download_lines(plan.pipe.to_download), _time(plan, seconds, source)
        show_needs(plan, [*plan_lines(plan), *also, *download, *time], needs)


def note_demo(pipe: ModelFolder, *, names_model: bool) -> None:
    """Says that the bundled demo is used, if nobody has asked for it."""
    if pipe.folder == DEMO_PATH and not names_model:
        logger.info(
            "using the bundled demo, which knows only moving shapes; --model 2b downloads the "
            "smallest real model (14 GB)"
        )


def announce_download(count: int, plan: Plan | None, events: JsonEvents) -> None:
    """Says on stderr what a run needs whose model is about to be downloaded.

    Args:
        count: bytes to download.
        plan: what will be done, if that is known before the download.
    """
    report_download(count, events)
    lines = download_lines(count)
    if plan is not None and plan.jobs:
        show_needs(plan, [*lines, *_time(plan, *denoising_seconds(plan))], memory_needs(plan))
    else:
        show_lines(lines)


def report_download(count: int, events: JsonEvents) -> None:
    """Reports, as an event, that a download of so many bytes comes next."""
    cache = hub_cache()
    events.emit("download", bytes=count, folder=cache, free=free_space(cache))


def download_lines(count: int) -> list[tuple[str, str]]:
    """The line about a download of so many bytes, if there is one."""
    if not count:
        return []
    cache = hub_cache()
    return [("download", f"{size(count)} into {cache}, {size(free_space(cache))} free")]


def memory_needs(plan: Plan) -> dict[str, int]:
    """Bytes that each stage of a plan needs at most."""
    return most_by_stage(
        estimate_memory(plan.pipe, job.settings, decode=decodes(job), done=job.done)
        for job in plan.jobs
    )


def show_needs(plan: Plan, lines: Iterable[tuple[str, str]], needs: Mapping[str, int]) -> None:
    """Says what will be done, how much memory it needs, and whether this machine has that."""
    available = usable_memory(plan.pipe)
    show_plan(lines, needs, available)
    for stage, need in needs.items():
        if need > largest_memory(plan.pipe):
            advice = memory_advice(plan.pipe, plan.jobs[0].settings, stage)
            logger.warning("%s may need more memory than this machine has: %s", stage, advice)
        elif need > available:
            warn_of_the_moment(stage, need, available)


def denoising_seconds(plan: Plan) -> tuple[float | None, str]:
    """How long the denoising of an official model's videos takes, and how that is known."""
    pipe, jobs = plan.pipe, [job for job in plan.jobs if "denoise" not in job.done]
    if pipe.variant is None or not jobs:
        return None, ""
    known = measured()
    ceilings = known.of(pipe.dtype_name) if known else None
    source = f"measured by {command('check')} on {known.date}" if known else ""
    if ceilings is None:
        ceilings, source = chip_ceilings(pipe.machine, pipe.dtype_name), "estimated from its chip"
    if ceilings is None:
        return None, f"unknown: {command('check')} measures this machine"
    return sum(run_seconds(pipe, job.settings, ceilings) for job in jobs), source


def _time(plan: Plan, seconds: float | None, source: str) -> list[tuple[str, str]]:
    """The line about the time that the videos of an official model take."""
    if seconds is None:
        return [("time", source)] if source else []
    less = plan.resumed or any(job.settings.cache in CACHES for job in plan.jobs)
    about = "at most" if less else "about"
    where = "this machine alone" if plan.pipe.processes.size > 1 else "this machine"
    return [("time", f"{about} {duration(seconds)} of denoising on {where} ({source})")]


def report_failure(failure: Failure, events: JsonEvents, **about: Any) -> None:
    """Says that a video of a batch can't be made; `about` tells events which it is."""
    say(f"error: {failure.label}: {failure.reason}")
    about = {"video": None, "label": failure.label, "output": None} | about
    events.emit("failed", **about, error=failure.reason, kind=failure.kind.__name__)


def video_fields(number: int, job: VideoJob) -> dict[str, Any]:
    """What tells a video of a plan apart in events; `number` counts from 1."""
    return {"video": number, "label": job.label, "output": job.output}


def decoded_frames(job: VideoJob) -> int:
    """Frames that a video's windows decode; where they overlap, more than it has."""
    windows = 1 + job.settings.extend
    return windows * job.settings.geometry.num_frames if decodes(job) else 0


def plan_fields(plan: Plan) -> dict[str, Any]:
    """What an event says of a plan; docs/events.md lists the fields."""
    videos = []
    for number, job in enumerate(plan.jobs, start=1):
        settings, geometry = job.settings, job.settings.geometry
        videos.append(
            {
                **video_fields(number, job),
                "prompt": settings.prompt,
                "seed": settings.seed,
                "frames": settings.total_frames,
                "width": geometry.width,
                "height": geometry.height,
                "fps": job.record["settings"]["fps"],
                "steps": settings.steps_of_all_windows,
                "resume_file": job.path,
                "resumed": plan.resumed.get(job.path),
            }
        )
    return {
        "model": model_title(plan.model),
        "dtype": plan.pipe.dtype_name,
        "videos": videos,
        "made_before": plan.finished,
        "memory": memory_needs(plan),
        "available": usable_memory(plan.pipe),
        "download": plan.pipe.to_download,
        "seconds": denoising_seconds(plan)[0],
    }


def warn_of_the_moment(what: str, need: int, available: int) -> None:
    """Warns that the machine has the memory that something needs, but not now."""
    logger.warning(
        "%s needs about %s and %s are free now: close other programs, or it may take several "
        "times as long",
        what,
        size(need),
        size(available),
    )


def adapter_lines(pipe: ModelFolder) -> list[tuple[str, str]]:
    """The line about the adapters of a model, if it has any."""
    adapters = ", ".join(f"{adapter.source} at {scale:g}" for adapter, scale in pipe.adapters)
    return [("lora", adapters)] if adapters else []


def how_to_quantize_once(pipe: ModelFolder, model: str | Path) -> Iterator[tuple[str, str]]:
    """A line about a model that takes long to quantize each time it is loaded.

    Args:
        model: its name.
    """
    if pipe.load_plan.bytes_to_quantize >= LONG_TO_QUANTIZE:
        words = ["--model", str(model), *(("--base", pipe.base.name) if pipe.base else ())]
        convert = f"{command('convert')} {shlex.join(words)} -q {pipe.quantize}"
        yield "weights", f"quantized each time they are loaded; {convert} does it once"


def most_by_stage(estimates: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Bytes that each stage needs at most, from an estimate for each video or shape of clips."""
    needs: dict[str, int] = {}
    for estimate in estimates:
        needs |= {stage: max(need, needs.get(stage, 0)) for stage, need in estimate.items()}
    return needs


def show_plan(lines: Iterable[tuple[str, str]], needs: Mapping[str, int], available: int) -> None:
    """Says on stderr what will be done, and in how much memory.

    Args:
        lines: titles and what they say.
        needs: bytes that each stage needs, of those that `available`.
    """
    by_stage = ", ".join(f"{stage} {size(need)}" for stage, need in needs.items())
    memory = f"about {by_stage or 'nothing'}; {size(available)} available"
    show_lines([*lines, ("memory", memory)])


def show_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Prints lines on stderr, each after its title."""
    for title, text in lines:
        logger.info("%-8s %s", title, text)


def plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """Titles and what they say of a plan's first video."""
    job = plan.jobs[0]
    settings, geometry = job.settings, job.settings.geometry
    fps, times = (job.record["settings"].get(name, 1) for name in ("fps", "interpolate"))
    size_and_rate = f"{geometry.width}x{geometry.height}, {fps:g} a second"
    if times > 1 and decodes(job):
        size_and_rate += f", interpolated to {times * fps:g}"
    others = f" and {len(plan.jobs) - 1} more" if len(plan.jobs) > 1 else ""
    lines = [
        ("model", f"{model_title(plan.model)}, {plan.pipe.precision}"),
        *how_to_quantize_once(plan.pipe, plan.model["name"]),
        ("video", f"{_frames(settings)} of {size_and_rate}"),
        ("output", job.output + others),
        ("sampling", _sampling(settings) + ("" if others else f", seed {settings.seed}")),
    ]
    if settings.recommended:
        lines.append(("defaults", f"the model recommends {_recommended(settings)}"))
    if source := settings.source.image or settings.source.video:
        lines.append(("from", str(source) + _part(settings.source)))
    lines += adapter_lines(plan.pipe)
    if any(map(decodes, plan.jobs)):
        how = _decoding(settings.decoding, plan.pipe.configs["vae"], geometry)
        tiny = "by the tiny decoder, which blurs details"
        lines.append(("decoding", tiny if settings.vae == "tiny" else how))
    if len(plan.resumed) == 1:
        lines.append(("resumed", f"after {next(iter(plan.resumed.values()))}"))
    elif plan.resumed:
        lines.append(("resumed", f"{len(plan.resumed)} of these videos"))
    return lines


def _part(source: Source) -> str:
    if not source.start and source.end is None:
        return ""
    end = "its end" if source.end is None else f"{source.end:g} s"
    return f", from {source.start:g} s to {end}"


def _sampling(settings: ResolvedSettings) -> str:
    steps = str(settings.num_inference_steps)
    if settings.steps < settings.num_inference_steps:
        steps = f"the last {settings.steps} of {steps}"
    guidance = f"guidance {settings.guidance_scale:g}" if settings.guided else "no guidance"
    if settings.guided and settings.dynamic_cfg != "constant":
        guidance += f" ({settings.dynamic_cfg})"
    if settings.guidance_range is not None:
        first, end = settings.guidance_range
        guidance += f" in steps {first} to {end - 1}"
    if settings.batch_parts > 1:
        guidance += ", one pass after the other"
    return f"{steps} steps of {settings.scheduler}{_computed(settings)}, {guidance}"


def _computed(settings: ResolvedSettings) -> str:
    """How much of the steps is computed."""
    if settings.computed_steps is None:
        return "" if settings.cache is None else f" ({settings.cache} skips blocks in some)"
    whole = replace(settings, cache=None, computed_steps=None).passes_of_all_windows
    text = f"{len(settings.computed_steps)} computed in full"
    text += f", {settings.passes_of_all_windows / whole:.0%} of the work"
    if (preset := settings.preset_used) is not None:
        steps = "found by tune" if preset.is_tuned else "the usual ones"
        text = f"preset {preset.name}: {text}; {steps}"
    return f" ({text})"


def _recommended(settings: ResolvedSettings) -> str:
    """What a model recommends, as options of the command."""
    names = settings.recommended
    values = (getattr(settings, name) for name in names)
    shown = (f"{v:g}" if isinstance(v, float) else v for v in values)
    options = (option_name(RunSettings, name) for name in names)
    return ", ".join(f"{option} {v}" for option, v in zip(options, shown, strict=True))


def _frames(settings: ResolvedSettings) -> str:
    each = settings.geometry.num_frames
    if not settings.extend:
        return f"{each} frames"
    return f"{settings.total_frames} frames, {1 + settings.extend} windows of {each},"


def _decoding(tiling: Tiling, config: AutoencoderConfig, geometry: Geometry) -> str:
    if tiling.mode == "none":
        return "whole frames"
    if tiling.mode == "exact":
        return "exact: in strips of rows, the same video in less memory"
    tiles = tiling.tiles(config, *geometry.latent_shape[2:4])
    if tiles is None:
        return "tiled: one tile covers the frame"
    height, width = (side * tiles.ratio for side in tiles.size)
    return f"tiled: tiles {height} high and {width} wide, which may show at their edges"


def decodes(job: VideoJob) -> bool:
    return output_form(job.output) != LATENTS
