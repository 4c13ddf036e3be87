"""What a tuning has found: as JSON that can be shared, and as a table."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.step_lists import StepList
from ..machine.system import describe
from ..pipeline.resolved import ResolvedSettings
from ..runs.tuning import TuningRun
from ..video.likeness import Likeness
from .common import duration

SHARED = (
    *("num_frames", "height", "width", "num_inference_steps", "guidance_scale", "dynamic_cfg"),
    *("scheduler", "uncond", "sequential_guidance", "tiling"),
)
"""Settings that a report has: none says what a video shows, or where a file is."""


@dataclass(frozen=True)
class Row:
    """A run of a tuning and what it took.

    Attributes:
        seconds: of each stage.
        likeness: to the exact run; None is that run itself.
    """

    run: TuningRun
    seconds: dict[str, float]
    likeness: Likeness | None


def make_report(
    model: ModelFolder,
    settings: ResolvedSettings,
    rows: Sequence[Row],
    lists: Sequence[StepList],
    prompts: int,
) -> dict[str, Any]:
    """The report of a tuning, as JSON holds it. It contains no prompt, and no name of a file.

    Args:
        settings: of the exact run.
        lists: the best list of each length.
        prompts: that lists were fitted to.
    """
    values = settings.to_dict()
    return {
        "date": time.strftime("%Y-%m-%d"),
        **describe(),
        "model": model.variant.alias if model.variant else None,
        "precision": model.precision,
        "adapters": len(model.adapters),
        "settings": {name: values[name] for name in SHARED if name in values},
        "prompts": prompts,
        "runs": [_about(row, settings) for row in rows],
        "errors": {len(each.steps): each.cost**0.5 for each in lists},
    }


def _about(row: Row, settings: ResolvedSettings) -> dict[str, Any]:
    """What a report says of a run; `settings` are those of the exact one."""
    computed = row.run.computed or tuple(range(settings.num_inference_steps))
    passes = replace(settings, cache="latents", computed_steps=computed).passes_of_all_windows
    return {
        "name": row.run.name,
        "computed_steps": computed,
        "work": passes / settings.passes_of_all_windows,
        "seconds": row.seconds,
        **(asdict(row.likeness) if row.likeness else {}),
    }


def table(report: dict[str, Any]) -> str:
    """The runs of a report, a line each."""
    steps = report["settings"]["num_inference_steps"]
    lines = ["              steps    work       time      PSNR    SSIM  flicker"]
    for run in report["runs"]:
        taken = duration(sum(run["seconds"].values()))
        line = f"{run['name']:10}{len(run['computed_steps']):3} of {steps:<3} {run['work']:6.0%}"
        line += f"{taken:>11}"
        if "ssim" in run:
            psnr = "equal" if run["psnr"] is None else f"{run['psnr']:.1f} dB"
            line += f"{psnr:>10}{run['ssim']:8.4f}{run['flicker']:9.2f}"
        lines.append(line)
    return "\n".join(lines)
