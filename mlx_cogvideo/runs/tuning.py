"""Finds which steps presets compute for a model, from runs of it that compute all of them.

With a list of all steps, ``--cache latents`` makes the exact video, and the lines of its run go
through what the model predicted. From these predictions alone the error of every list is known.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.computed_steps import FITTED_AT_MOST, PRESETS, steps_to_compute
from ..diffusion.guidance import guidance_schedule
from ..diffusion.step_lists import RecordedRun, StepList, best_lists, together
from ..errors import GenerationError, InvalidInputError, OutputError
from ..files import remove_temporary
from ..pipeline.resolved import ResolvedSettings
from ..pipeline.resolver import run_scheduler
from ..video.likeness import Likeness, likeness
from ..video.paths import output_errors, publish, write_temporary
from ..video.picture_writer import contact_sheet, write_picture
from .kept_frames import KeptFrames
from .predictions import Predictions

EXACT = "exact"
UNFINISHED = "unfinished"
"""Folder of what is needed until the presets are found."""
SHEET, REPORT = "sheet.png", "report.json"

PROMPTS_AT_MOST = 3


@dataclass(frozen=True)
class TuningRun:
    """A video that is made to find presets, or to see what one does.

    Attributes:
        name: ``exact``, ``exact-2`` and so on, or the preset's.
        prompt: what it shows.
        computed: the steps that it computes in full; None computes all.
    """

    name: str
    prompt: str
    computed: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TuningFolder:
    """The folder of a tuning: the videos, what is kept until its end, and what has been found."""

    path: Path

    @property
    def unfinished(self) -> Path:
        return self.path / UNFINISHED

    @property
    def sheet(self) -> Path:
        return self.path / SHEET

    @property
    def report(self) -> Path:
        return self.path / REPORT

    def video(self, run: TuningRun) -> Path:
        return self.path / f"{run.name}.mp4"

    def frames(self, run: TuningRun) -> KeptFrames:
        return KeptFrames(self.unfinished / f"{run.name}.frames.npy")

    def predictions(self, run: TuningRun, steps: int) -> Predictions:
        return Predictions(self.unfinished / run.name, steps)

    def is_done(self, run: TuningRun, steps: int) -> bool:
        """Whether a run's video is made, and all that is needed of it is kept."""
        kept = self.frames(run).file.exists()
        if run.computed is None:
            kept = kept and self.predictions(run, steps).are_whole
        return kept and self.video(run).exists()

    def open(self, *, overwrite: bool) -> None:
        """Makes the folder, or goes on with one.

        Args:
            overwrite: whether what an earlier tuning has left is removed.

        Raises:
            OutputError: it holds something else or a finished tuning, or it can't be made.
        """
        with output_errors(self.path):
            if self.path.exists():
                self._check()
                if overwrite:
                    self._empty()
                elif self.report.exists():
                    raise OutputError(
                        f"{self.path} holds a finished tuning: choose another --output, or "
                        "--overwrite it"
                    )
            self.unfinished.mkdir(parents=True, exist_ok=True)

    def _check(self) -> None:
        """Raises OutputError for a folder that isn't that of a tuning."""
        ours = self.report.exists() or self.unfinished.is_dir()
        if not self.path.is_dir() or not (ours or not any(self.path.iterdir())):
            raise OutputError(f"{self.path} exists and is no tuning: choose another --output")

    def _empty(self) -> None:
        for name in (EXACT, *PRESETS):
            for video in self.path.glob(f"{name}*.mp4*"):
                video.unlink()
        for file in (self.report, self.sheet):
            file.unlink(missing_ok=True)
        remove_temporary(self.unfinished)

    def close(self, report: dict[str, Any]) -> None:
        """Writes the report, and removes what isn't needed any more.

        Raises:
            OutputError: it can't be written.
        """
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        publish(write_temporary(self.report, text.encode()), self.report, overwrite=True)
        shutil.rmtree(self.unfinished, ignore_errors=True)


def exact_runs(prompts: Sequence[str]) -> list[TuningRun]:
    """The runs that lists are fitted to, one for each prompt."""
    names = [EXACT, *(f"{EXACT}-{number}" for number in range(2, len(prompts) + 1))]
    return [TuningRun(*pair) for pair in zip(names, prompts, strict=True)]


def check_tunable(settings: ResolvedSettings) -> None:
    """Raises InvalidInputError where lists can't be fitted to runs with these settings."""
    steps = settings.num_inference_steps
    if not 3 <= steps <= FITTED_AT_MOST:
        raise InvalidInputError(
            f"lists are fitted for 3 to {FITTED_AT_MOST} steps; got --steps {steps}"
        )


def fit_lists(
    model: ModelFolder, settings: ResolvedSettings, recorded: Sequence[Predictions]
) -> list[StepList]:
    """The best list of each length from 2 to that of the longest preset's.

    Args:
        settings: of the exact runs, which differ in their prompts alone.
        recorded: their predictions.

    Raises:
        GenerationError: predictions are missing.
    """
    for predictions in recorded:
        if not predictions.are_whole:
            raise GenerationError(f"{predictions.folder} lacks steps: tune again with --overwrite")
    scheduler = run_scheduler(model, settings)
    steps = [int(t) for t in scheduler.timesteps]
    weight = guidance_schedule(settings.dynamic_cfg, settings.guidance_scale)
    weights = [weight(i, t, len(steps)) if settings.guided else 1.0 for i, t in enumerate(steps)]
    angles = [scheduler.angle(t) for t in steps]
    factors = [scheduler.x0_factor(t) for t in steps]
    runs = [RecordedRun(angles, factors, weights, each.products()) for each in recorded]
    return best_lists(together(runs), len(steps))


def preset_runs(prompt: str, lists: Sequence[StepList], steps: int) -> list[TuningRun]:
    """A run for each preset, with the list of its length."""
    by_length = {len(each.steps): each.steps for each in lists}
    return [
        TuningRun(name, prompt, by_length[steps_to_compute(share, steps)])
        for name, share in PRESETS.items()
    ]


def compare(folder: TuningFolder, exact: TuningRun, others: Sequence[TuningRun]) -> list[Likeness]:
    """Compares the videos of presets with the exact one, and writes the contact sheet.

    Its rows are the exact video and then the others.
    """
    frames = folder.frames(exact).load()
    videos = [folder.frames(run).load() for run in others]
    write_picture(folder.sheet, contact_sheet([frames, *videos]))
    return [likeness(video, frames) for video in videos]
