"""A tuning step by step: the exact runs, the fit, a run with each preset, and the report."""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

from ..called import command
from ..checkpoints import BUNDLED, default_model
from ..device import Need, check_room, size
from ..diffusion.computed_steps import PRESETS, steps_to_compute
from ..distributed import Distributed, Processes
from ..pipeline.presets import keep_tuned_lists
from ..pipeline.resolved import ResolvedSettings
from ..pipeline.resolver import run_scheduler
from ..runs.jobs import Options, Plan, make_plan
from ..runs.saved_run import saved_path
from ..runs.settings import RunSettings
from ..runs.tuning import (
    TuningFolder,
    TuningRun,
    check_tunable,
    compare,
    exact_runs,
    fit_lists,
    preset_runs,
)
from ..video import read_record
from .announce import (
    announce_download,
    denoising_seconds,
    download_lines,
    memory_needs,
    plan_lines,
    show_needs,
)
from .common import duration
from .json_events import JsonEvents
from .options import given_settings
from .processes import Team
from .session import Session
from .signals import Interrupts
from .tuning_report import Row, make_report, table

DEMO_PROMPT = "a red circle moves right on a white background"
PROMPT = (
    "A grey heron wades slowly through a shallow lake at dawn, lifting one leg after the other. "
    "Mist drifts over the water, and low golden light glitters on the ripples that spread from its "
    "steps. Reeds sway in the foreground. The camera follows the bird from the side, close to the "
    "surface, in sharp natural detail."
)
"""The prompt of a tuning that is given none, for an official model."""

logger = logging.getLogger(__name__)


class TuningJob:
    """A tuning as a command line asks for it."""

    def __init__(self, args: argparse.Namespace, folder: TuningFolder, events: JsonEvents):
        self.folder, self._args, self._events = folder, args, events
        model = args.model or default_model()
        is_bundled = str(model) in BUNDLED or Path(model) in BUNDLED.values()
        self._prompts = args.prompt or [DEMO_PROMPT if is_bundled else PROMPT]

    @cached_property
    def plan(self) -> Plan:
        """A plan of the first exact run, for which nothing is downloaded or written.

        Raises:
            CogVideoXError: it can't be made.
        """
        output = self.folder.path.with_name(f"{self.folder.path.name}.mp4")
        options = self._options(self._prompts[0], output, overwrite=True, dry_run=True)
        plan = make_plan(options)
        check_tunable(plan.jobs[0].settings)
        return plan

    @property
    def settings(self) -> ResolvedSettings:
        """The settings of the first exact run."""
        return self.plan.jobs[0].settings

    @property
    def steps(self) -> int:
        return self.settings.num_inference_steps

    def announce(self) -> None:
        """Says what will be done, and what it needs.

        Raises:
            OutputError: the disk is too full.
        """
        plan, needs = self.plan, self._room()
        check_room([needs])
        for warning in dict.fromkeys(plan.warnings):
            logger.warning("%s", warning)
        counts = {name: steps_to_compute(share, self.steps) for name, share in PRESETS.items()}
        in_all = len(self._prompts) * self.steps + sum(counts.values())
        presets = ", ".join(f"{name} ({count})" for name, count in counts.items())
        many = f"{len(self._prompts)} exact ones" if len(self._prompts) > 1 else "an exact one"
        lines = [line for line in plan_lines(plan) if line[0] != "output"]
        lines += [
            ("runs", f"{many}, then {presets}: {in_all} computed steps in all"),
            ("disk", f"{size(needs.bytes)} in {self.folder.path} until the end"),
            *download_lines(plan.pipe.to_download),
        ]
        seconds, source = denoising_seconds(plan)
        if seconds is not None:
            seconds *= in_all / self.steps
            source = f"about {duration(seconds)} of denoising in all ({source})"
        lines += [("time", source)] if source else []
        show_needs(plan, lines, memory_needs(plan))
        self._events.emit("tuning", prompts=self._prompts, steps=in_all, seconds=seconds)

    def _room(self) -> Need:
        """What is kept on the disk until the end: all predictions, and the frames of each run."""
        settings, runs = self.settings, len(self._prompts)
        predictions = self.steps * (1 + settings.guided) * prod(settings.geometry.latent_shape) * 4
        geometry = settings.geometry
        frames = geometry.num_frames * geometry.height * geometry.width * 3
        in_all = runs * predictions + (runs + len(PRESETS)) * frames
        return Need(self.folder.path, in_all, "the tuning", "choose another --output")

    def run(self) -> None:
        """Makes all runs that aren't made, and what follows from them.

        Raises:
            CogVideoXError, KeyboardInterrupt: what is made is kept.
        """
        exact, steps = exact_runs(self._prompts), self.steps
        for run in exact:
            self._make(run)
        lists = fit_lists(
            self.plan.pipe, self.settings, [self.folder.predictions(run, steps) for run in exact]
        )
        presets = preset_runs(self._prompts[0], lists, steps)
        for run in presets:
            logger.info("%-8s steps %s", run.name, " ".join(map(str, run.computed)))
            self._make(run)
        likenesses = [None, *compare(self.folder, exact[0], presets)]
        rows = [
            Row(run, self._seconds(run), found)
            for run, found in zip([exact[0], *presets], likenesses, strict=True)
        ]
        pipe = self.plan.pipe
        report = make_report(pipe, self.settings, rows, lists, len(exact))
        found = {run.name: run.computed for run in presets}
        keep_tuned_lists(pipe, run_scheduler(pipe, self.settings), found)
        self.folder.close(report)
        self._tell(report)

    def _make(self, run: TuningRun) -> None:
        """Makes the video of a run, or goes on with it, and keeps what is needed of it."""
        folder, args = self.folder, self._args
        video, predictions = folder.video(run), folder.predictions(run, self.steps)
        is_done = folder.is_done(run, self.steps)
        resumes = is_done or saved_path(video).exists()
        if not is_done:
            video.unlink(missing_ok=True)  # what is needed of it is gone
        if not resumes:
            predictions.remove()
        computed = run.computed or range(self.steps)
        options = self._options(run.prompt, video, computed, resume=resumes)
        plan = make_plan(options, partial(announce_download, events=self._events))
        with plan.locks, folder.frames(run) as frames:
            if not plan.jobs:
                logger.info("%-8s %s, made before", run.name, video)
                return
            observers = [frames.observe]
            if run.computed is None:
                observers.append(predictions.observe)
            team = Team(Distributed(), Processes(), Interrupts())
            session = argparse.Namespace(**vars(args), json=False, save_every=None)
            Session(plan, session, self._events, team, observers).run()

    def _options(
        self, prompt: str, output: Path, computed: Sequence[int] | None = None, **more: Any
    ) -> Options:
        """What `make_plan` is asked for.

        Args:
            computed: steps that are computed in full; None plans an exact run.
            more: other attributes of the options.
        """
        args = self._args
        given = given_settings(args, RunSettings)
        given |= {"prompt": prompt, "seed": [args.seed]}
        if computed is not None:
            given |= {"cache": "latents", "computed_steps": tuple(computed)}
        limit = args.memory_limit
        return Options(
            given=given,
            model=args.model,
            base=args.base,
            output=str(output),
            memory_limit=None if limit is None else int(min(limit * 2**30, sys.maxsize)),
            **more,
        )

    def _seconds(self, run: TuningRun) -> dict[str, float]:
        """The time that each stage of a run took."""
        record = read_record(self.folder.video(run)) or {}
        return record.get("timings", {})

    def _tell(self, report: dict[str, Any]) -> None:
        folder = self.folder
        self._events.tell("record", table(report), path=folder.report, record=report)
        logger.info("%s shows these videos in this order, a row each", folder.sheet)
        logger.info("%s can be shared: it holds no prompt", folder.report)
        logger.info("use them with: %s --preset balanced", command("generate"))
