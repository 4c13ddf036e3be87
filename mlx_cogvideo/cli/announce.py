"""What is about to happen, in a few lines before it does."""

import logging
from collections.abc import Iterable, Mapping

from ..called import command
from ..checkpoints import BUNDLED, hub_cache
from ..device import free_space, size
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
from ..runs.run_plan import Plan
from ..video.paths import LATENTS, output_form
from .common import duration, say

logger = logging.getLogger(__name__)


def announce(plan: Plan) -> None:
    """Says on stderr what a plan will do, what it needs, and what of it can't be done."""
    if plan.pipe.folder in BUNDLED.values():
        logger.info(
            "using the bundled demo, which knows only moving shapes%s; --model %s",
            "" if all(map(_as_demo, plan.jobs)) else " (best with --guidance 2)",
            "5b-i2v downloads a real model (21 GB)"
            if plan.pipe.takes_image
            else "2b downloads the smallest real model (14 GB)",
        )
    for failure in plan.failed:
        say(f"error: {failure.label}: {failure.reason}")
    for warning in dict.fromkeys(plan.warnings):
        logger.warning("%s", warning)
    if plan.finished:
        outputs = plan.finished[0] if len(plan.finished) == 1 else f"{len(plan.finished)} videos"
        logger.info("%-8s %s", "finished", f"{outputs}, made before")
    if plan.jobs:
        lines = [*_lines(plan), *download_lines(plan.pipe.to_download), *_time(plan)]
        _announce_needs(plan, lines)


def announce_download(count: int, plan: Plan | None) -> None:
    """Says on stderr what a run needs whose model is about to be downloaded.

    Args:
        count: bytes to download.
        plan: what will be done, if that is known before the download.
    """
    lines = download_lines(count)
    if plan is not None and plan.jobs:
        _announce_needs(plan, [*lines, *_time(plan)])
    else:
        show_lines(lines)


def download_lines(count: int) -> list[tuple[str, str]]:
    """The line about a download of so many bytes, if there is one."""
    if not count:
        return []
    cache = hub_cache()
    return [("download", f"{size(count)} into {cache}, {size(free_space(cache))} free")]


def _announce_needs(plan: Plan, lines: Iterable[tuple[str, str]]) -> None:
    """Says what will be done, how much memory it needs, and whether this machine has that."""
    needs = most_by_stage(
        estimate_memory(plan.pipe, job.settings, decode=_decodes(job), done=job.done)
        for job in plan.jobs
    )
    available = usable_memory(plan.pipe)
    show_plan(lines, needs, available)
    for stage, need in needs.items():
        if need > largest_memory(plan.pipe):
            advice = memory_advice(plan.pipe, plan.jobs[0].settings, stage)
            logger.warning("%s may need more memory than this machine has: %s", stage, advice)
        elif need > available:
            warn_of_the_moment(stage, need, available)


def _time(plan: Plan) -> list[tuple[str, str]]:
    """The line about the time that the videos of an official model take."""
    pipe, jobs = plan.pipe, [job for job in plan.jobs if "denoise" not in job.done]
    if pipe.variant is None or not jobs:
        return []
    known = measured()
    ceilings = known.of(pipe.dtype_name) if known else None
    source = f"measured by {command('check')} on {known.date}" if known else ""
    if ceilings is None:
        ceilings, source = chip_ceilings(pipe.machine, pipe.dtype_name), "estimated from its chip"
    if ceilings is None:
        return [("time", f"unknown: {command('check')} measures this machine")]
    seconds = sum(run_seconds(pipe, job.settings, ceilings) for job in jobs)
    less = plan.resumed or any(job.settings.cache for job in jobs)
    about = "at most" if less else "about"
    return [("time", f"{about} {duration(seconds)} of denoising on this machine ({source})")]


def warn_of_the_moment(what: str, need: int, available: int) -> None:
    """Warns that the machine has the memory that something needs, but not now."""
    logger.warning(
        "%s needs about %s and %s are free now: close other programs, or it may take several "
        "times as long",
        what,
        size(need),
        size(available),
    )


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
    """Says on stderr what titles stand for."""
    for title, text in lines:
        logger.info("%-8s %s", title, text)


def _lines(plan: Plan) -> list[tuple[str, str]]:
    job = plan.jobs[0]
    settings, geometry = job.settings, job.settings.geometry
    fps = job.record["settings"]["fps"]
    size_and_rate = f"{geometry.width}x{geometry.height}, {fps:g} a second"
    others = f" and {len(plan.jobs) - 1} more" if len(plan.jobs) > 1 else ""
    lines = [
        ("model", f"{model_title(plan.model)}, {plan.pipe.dtype_name}"),
        ("video", f"{_frames(settings)} of {size_and_rate}"),
        ("output", job.output + others),
        ("sampling", _sampling(settings) + ("" if others else f", seed {settings.seed}")),
    ]
    if source := settings.source.image or settings.source.video:
        lines.append(("from", str(source) + _part(settings.source)))
    if plan.pipe.adapters:
        adapters = (f"{adapter.source} at {scale:g}" for adapter, scale in plan.pipe.adapters)
        lines.append(("lora", ", ".join(adapters)))
    if any(map(_decodes, plan.jobs)):
        lines.append(("decoding", _decoding(settings.decoding, plan.pipe.configs["vae"], geometry)))
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
    if settings.batch_parts > 1:
        guidance += ", one pass after the other"
    return f"{steps} steps of {settings.scheduler}, {guidance}"


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


def _as_demo(job: VideoJob) -> bool:
    """Whether a video is made with the guidance that suits the demo."""
    return job.settings.guidance_scale == 2


def _decodes(job: VideoJob) -> bool:
    return output_form(job.output) != LATENTS
