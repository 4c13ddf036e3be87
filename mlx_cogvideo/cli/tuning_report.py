"""What a tuning has found: as JSON that can be shared, and as a table."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..checkpoints import BUNDLED
from ..diffusion.step_lists import StepList
from ..machine.system import describe
from ..pipeline.recording import Record
from ..pipeline.resolved import ResolvedSettings
from ..runs.run_plan import Plan
from ..runs.tuning import TuningRun
from ..video.likeness import Likeness
from .common import duration

SHARED = (
    *("num_frames", "height", "width", "num_inference_steps", "guidance_scale", "dynamic_cfg"),
    *("scheduler", "uncond", "sequential_guidance", "tiling"),
)
"""Settings that a report has: none says what a video shows, or where a file is."""


LEAST_PSNR = 15.0
"""dB below which a video has little to do with the exact one any more."""


@dataclass(frozen=True)
class Row:
    """A run of a tuning and what it took.

    Attributes:
        seconds: of each stage.
        likeness: to the exact run; None is that run itself.
    """

    run: TuningRun
    likeness: Likeness | None
    seconds: dict[str, float]

    @property
    def is_usable(self) -> bool:
        """Whether the video is still like the exact one."""
        psnr = None if self.likeness is None else self.likeness.psnr
        return psnr is None or psnr >= LEAST_PSNR


def make_report(
    plan: Plan,
    started: Record,
    rows: Sequence[Row],
    lists: Sequence[StepList],
    prompts: int,
) -> dict[str, Any]:
    """The report of a tuning, as JSON holds it. It contains no prompt, and no name of a file.

    Args:
        plan: of the exact run.
        started: its record, from when the tuning was started.
        lists: the best list of each length.
        prompts: that lists were fitted to.
    """
    model, settings = plan.pipe, plan.jobs[0].settings
    values, name = started["settings"], plan.model["name"]
    return {
        "date": time.strftime("%Y-%m-%d"),
        **describe(),
        "model": model.variant.alias if model.variant else name if name in BUNDLED else None,
        "precision": model.precision,
        "adapters": len(model.adapters),
        "settings": {name: values[name] for name in SHARED if name in values},
        "prompts": prompts,
        "runs": [_about(row, settings) for row in rows],
        "lists": [
            {"computed_steps": each.steps, "relative_error": each.cost**0.5} for each in lists
        ],
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
    lines = [
        f"{'video':12}{'computed':>8}{'work':>8}{'time':>11}{'PSNR':>10}{'SSIM':>8}{'flicker':>9}"
    ]
    for run in report["runs"]:
        taken = duration(sum(run["seconds"].values()))
        computed = f"{len(run['computed_steps'])} of {steps}"
        line = f"{run['name']:12}{computed:>8}{run['work']:8.0%}"
        line += f"{taken:>11}"
        if "ssim" in run:
            psnr = "equal" if run["psnr"] is None else f"{run['psnr']:.1f} dB"
            line += f"{psnr:>10}{run['ssim']:8.4f}{run['flicker']:9.2f}"
        lines.append(line)
    return "\n".join(lines)


def spans(steps: Sequence[int]) -> str:
    """Numbers with runs of them written as such: ``0-3 5 7``."""
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][-1] + 1:
            found[-1].append(step)
        else:
            found.append([step])
    return " ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in found
    )
