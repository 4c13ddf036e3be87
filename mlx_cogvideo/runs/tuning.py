"""Finds which steps presets compute for a model, from runs of it that compute all of them.

With a list of all steps, ``--cache latents`` makes the exact video, and the lines of its run go
through what the model predicted. From these predictions alone the error of every list is known.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.computed_steps import FITTED_AT_MOST, PRESETS, steps_to_compute
from ..diffusion.guidance import guidance_schedule
from ..diffusion.step_lists import RecordedRun, StepList, best_lists, together
from ..errors import GenerationError, InvalidInputError, OutputError
from ..pipeline.resolved import ResolvedSettings
from ..pipeline.resolver import run_scheduler
from ..video import read_record
from ..video.likeness import Likeness, likeness
from ..video.paths import output_errors, publish, write_temporary
from ..video.picture_writer import contact_sheet, write_picture
from .kept_frames import KeptFrames
from .predictions import Predictions
from .preview import preview_path
from .saved_run import saved_path

EXACT = "exact"
PROMPTS_AT_MOST = 3
UNFINISHED = "unfinished"
"""Folder of what is needed until the presets are found."""
STARTED, SHEET, REPORT = "tuning.json", "sheet.png", "report.json"

FORMAT = 1
KEY = "tuning"
"""Key of both JSON files, with their format: what has it was written by a tuning."""


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

    @property
    def is_unfinished(self) -> bool:
        return not _is_ours(self.report) and self.started() is not None

    def video(self, name: str) -> Path:
        return self.path / f"{name}.mp4"

    def frames(self, name: str, settings: ResolvedSettings) -> KeptFrames:
        geometry = settings.geometry
        shape = geometry.num_frames, geometry.height, geometry.width, 3
        return KeptFrames(self.unfinished / f"{name}.frames.npy", shape)

    def predictions(self, name: str, settings: ResolvedSettings) -> Predictions:
        shape = 1 + settings.guided, *settings.geometry.latent_shape
        return Predictions(self.unfinished / name, settings.num_inference_steps, shape)

    def is_done(self, run: TuningRun, settings: ResolvedSettings) -> bool:
        """Whether a run's video is made, and all that is needed of it is kept."""
        kept = self.frames(run.name, settings).are_whole and self.timings(run.name) is not None
        if run.computed is None:
            kept = kept and self.predictions(run.name, settings).are_whole
        return kept

    def timings(self, name: str) -> dict[str, float] | None:
        """The seconds that each stage of a run took; None where there is no video of it."""
        try:
            record = read_record(self.video(name))
        except InvalidInputError:
            return None
        return None if record is None else record.get("timings", {})

    def started(self) -> dict[str, Any] | None:
        """What the unfinished tuning here was started with; None if there is none."""
        return _read(self.unfinished / STARTED)

    def check(self, *, overwrite: bool) -> None:
        """Checks that a tuning can begin or go on.

        Nothing is written; what a finished tuning didn't come to remove is removed.

        Args:
            overwrite: whether what an earlier tuning has left is going to be removed.

        Raises:
            OutputError: the folder holds something else, or a finished tuning.
        """
        if not self.path.absolute().parent.is_dir():
            raise OutputError(f"there is no folder {self.path.absolute().parent}: make it first")
        if not self.path.exists():
            return
        with output_errors(self.path):
            is_finished = _is_ours(self.report)
            is_ours = is_finished or self.started() is not None
            if not self.path.is_dir() or not (is_ours or self._is_empty()):
                raise OutputError(f"{self.path} exists and is no tuning: choose another --output")
        if is_finished and not overwrite:
            self._remove_unfinished()
            raise OutputError(
                f"{self.path} holds a finished tuning, see {self.report}: choose another --output, "
                "or --overwrite it"
            )

    def open(self, started: dict[str, Any], *, overwrite: bool) -> None:
        """Makes the folder, or goes on with one that `check` takes.

        Args:
            started: what the tuning is started with.

        Raises:
            OutputError: it can't be made.
        """
        with output_errors(self.path):
            self.unfinished.mkdir(parents=True, exist_ok=True)
        if overwrite or self.started() is None:
            _write(self.unfinished / STARTED, started)  # first, so that the folder stays a tuning's
        if not overwrite:
            return
        self._remove_kept()
        for name in (*_EXACT_NAMES, *PRESETS):
            video = self.video(name)
            for file in (video, saved_path(video), preview_path(video)):
                with output_errors(file):
                    file.unlink(missing_ok=True)
        for file in (self.report, self.sheet):
            with output_errors(file):
                file.unlink(missing_ok=True)

    def _is_empty(self) -> bool:
        """Whether the folder has nothing but what a tuning makes before it says what it is."""
        shown = [file for file in self.path.iterdir() if not file.name.startswith(".")]
        inside = self.unfinished.iterdir() if self.unfinished.is_dir() else ()
        return shown in ([], [self.unfinished]) and all(file.name[0] == "." for file in inside)

    def close(self, report: dict[str, Any]) -> None:
        """Writes the report, and removes what isn't needed any more.

        Raises:
            OutputError: it can't be written.
        """
        _write(self.report, report)
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Removes what a tuning has kept; other files stay, and then the folder, too."""
        self._remove_kept()
        with suppress(OSError):
            (self.unfinished / STARTED).unlink(missing_ok=True)
            self.unfinished.rmdir()

    def _remove_kept(self) -> None:
        """Removes predictions and frames. What can't be removed does no harm."""
        for name in _EXACT_NAMES:
            with suppress(OSError):
                Predictions(self.unfinished / name, 0, ()).remove()
        for name in (*_EXACT_NAMES, *PRESETS):
            with suppress(OSError):
                (self.unfinished / f"{name}.frames.npy").unlink(missing_ok=True)


_EXACT_NAMES = (EXACT, *(f"{EXACT}-{number}" for number in range(2, PROMPTS_AT_MOST + 1)))


def _is_ours(file: Path) -> bool:
    return _read(file) is not None


def _read(file: Path) -> dict[str, Any] | None:
    """The contents of a JSON file of a tuning; None if it is no such file."""
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(contents, dict) and type(contents.get(KEY)) is int
    return contents if is_ours and contents[KEY] == FORMAT else None


def _write(file: Path, contents: dict[str, Any]) -> None:
    text = json.dumps({KEY: FORMAT, **contents}, indent=2, ensure_ascii=False) + "\n"
    publish(write_temporary(file, text.encode()), file, overwrite=True)


def exact_runs(prompts: Sequence[str]) -> list[TuningRun]:
    """The runs that lists are fitted to, one for each of one to three prompts."""
    return [TuningRun(*pair) for pair in zip(_EXACT_NAMES, prompts, strict=False)]


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
    """The best list of each length, from 2 to the number of steps.

    Args:
        settings: of the exact runs, which differ in their prompts alone.
        recorded: their predictions.

    Raises:
        GenerationError: predictions are missing, or aren't those of a run.
    """
    scheduler = run_scheduler(model, settings)
    steps = [int(t) for t in scheduler.timesteps]
    weight = guidance_schedule(settings.dynamic_cfg, settings.guidance_scale)
    weights = [weight(i, t, len(steps)) if settings.guided else 1.0 for i, t in enumerate(steps)]
    angles = [scheduler.angle(t) for t in steps]
    factors = [scheduler.x0_factor(t) for t in steps]
    runs = []
    for predictions in recorded:
        products = predictions.products() if predictions.are_whole else np.zeros((1, 1))
        if not np.isfinite(products).all() or products[-1, -1] + products[0, 0] <= 0:
            raise GenerationError(
                f"{predictions.folder} lacks predictions, or they are damaged: remove it, and give "
                "the same command again"
            )
        runs.append(RecordedRun(angles, factors, weights, products))
    return best_lists(together(runs), len(steps))


def preset_runs(prompt: str, lists: Sequence[StepList], steps: int) -> list[TuningRun]:
    """A run for each preset, with the list of its length."""
    by_length = {len(each.steps): each.steps for each in lists}
    return [
        TuningRun(name, prompt, by_length[steps_to_compute(share, steps)])
        for name, share in PRESETS.items()
    ]


def compare(
    folder: TuningFolder, settings: ResolvedSettings, names: Sequence[str]
) -> list[Likeness]:
    """Compares videos with the first of them, and writes the contact sheet, a row for each.

    Args:
        names: of the runs.

    Returns:
        The likeness of each but the first.
    """
    first, *others = [folder.frames(name, settings).load() for name in names]
    write_picture(folder.sheet, contact_sheet([first, *others]))
    return [likeness(video, first) for video in others]
