"""What is about to happen, in a few lines before it does."""

import logging
from collections.abc import Iterable, Mapping

from ..checkpoints import BUNDLED
from ..device import size
from ..nn.autoencoder import AutoencoderConfig
from ..pipeline.estimates import estimate_memory, largest_memory, memory_advice, usable_memory
from ..pipeline.geometry import Geometry
from ..pipeline.request import Request
from ..pipeline.vae_stage import Tiling
from ..runs.jobs import Plan
from ..runs.record import model_title
from ..video.paths import LATENTS, output_form
from .common import say

logger = logging.getLogger(__name__)


def announce(plan: Plan) -> None:
    """Says on stderr what a plan will do, what it needs, and what of it can't be done."""
    if plan.pipe.folder in BUNDLED.values():
        logger.info(
            "using the bundled demo, which knows only moving shapes (best with --guidance 2); "
            "--model %s",
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
        needs, available = _needs(plan), usable_memory(plan.pipe)
        show_plan(_lines(plan), needs, available)
        for stage, need in needs.items():
            if need > largest_memory(plan.pipe):
                advice = memory_advice(plan.pipe, plan.jobs[0].request, stage)
                logger.warning("%s may need more memory than there is: %s", stage, advice)
            elif need > available:
                warn_of_the_moment(stage, need, available)


def warn_of_the_moment(what: str, need: int, available: int) -> None:
    """Warns that the machine has the memory that something needs, but not now."""
    logger.warning(
        "%s needs about %s and %s are free now: close other programs, or it may take several "
        "times as long",
        what,
        size(need),
        size(available),
    )


def show_plan(lines: Iterable[tuple[str, str]], needs: Mapping[str, int], available: int) -> None:
    """Says on stderr what will be done, and in how much memory.

    Args:
        lines: titles and what they say.
        needs: bytes that each stage needs, of those that `available`.
    """
    told = ", ".join(f"{stage} {size(need)}" for stage, need in needs.items())
    memory = f"about {told or 'nothing'}; {size(available)} available"
    for title, text in [*lines, ("memory", memory)]:
        logger.info("%-8s %s", title, text)


def _lines(plan: Plan) -> list[tuple[str, str]]:
    job = plan.jobs[0]
    request, geometry = job.request, job.request.geometry
    fps = job.record["settings"]["fps"]
    guidance = f"guidance {request.guidance_scale:g}"
    if request.guided and request.dynamic_cfg != "constant":
        guidance += f" ({request.dynamic_cfg})"
    target = job.output
    if len(plan.jobs) > 1:
        target = f"{job.output} and {len(plan.jobs) - 1} more"
    if request.guided and request.sequential_guidance:
        guidance += ", one pass after the other"
    steps = str(request.num_inference_steps)
    if request.steps < request.num_inference_steps:
        steps = f"the last {request.steps} of {steps}"
    sampling = f"{steps} steps of {request.scheduler}, {guidance}"
    if len(plan.jobs) == 1:
        sampling += f", seed {request.seed}"
    lines = [
        ("model", f"{model_title(plan.model)}, {plan.pipe.dtype_name}"),
        (
            "video",
            f"{_frames(request)} of {geometry.width}x{geometry.height}, {fps:g} a second",
        ),
        ("output", target),
        ("sampling", sampling),
    ]
    if source := request.source.image or request.source.video:
        lines.append(("from", str(source)))
    if plan.pipe.adapters:
        adapters = (f"{adapter.source} at {scale:g}" for adapter, scale in plan.pipe.adapters)
        lines.append(("lora", ", ".join(adapters)))
    if any(output_form(job.output) != LATENTS for job in plan.jobs):
        lines.append(("decoding", _decoding(request.tiling, plan.pipe.configs["vae"], geometry)))
    if len(plan.begun) == 1:
        lines.append(("resumed", f"after {next(iter(plan.begun.values()))}"))
    elif plan.begun:
        lines.append(("resumed", f"{len(plan.begun)} of these videos"))
    return lines


def _frames(request: Request) -> str:
    each = request.geometry.num_frames
    if not request.extend:
        return f"{each} frames"
    return f"{request.total_frames} frames, {1 + request.extend} windows of {each},"


def _decoding(tiling: Tiling, config: AutoencoderConfig, geometry: Geometry) -> str:
    if tiling.mode == "none":
        return "whole frames"
    if tiling.mode == "seamless":
        return "seamless: in strips of rows, the same video in less memory"
    tiles = tiling.tiles(config, *geometry.latent_shape[2:4])
    if tiles is None:
        return "tiled: one tile covers the frame"
    height, width = (side * tiles.ratio for side in tiles.size)
    return f"tiled: tiles {height} high and {width} wide, which may show at their edges"


def _needs(plan: Plan) -> dict[str, int]:
    """Bytes that each stage that is left needs at its peak, of the video that needs most there."""
    needs: dict[str, int] = {}
    for job in plan.jobs:
        decode = output_form(job.output) != LATENTS
        told = estimate_memory(plan.pipe, job.request, decode=decode, done=job.done)
        for stage, need in told.items():
            needs[stage] = max(need, needs.get(stage, 0))
    return needs
