"""A tuning step by step: the exact runs, the fit, a run with each preset, and the report."""

import argparse
import logging
import shlex
from collections.abc import Sequence
from functools import cached_property, partial
from math import prod
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..called import command
from ..checkpoints import BUNDLED, default_model
from ..device import Need, check_room, size
from ..diffusion.computed_steps import PRESETS, steps_to_compute
from ..distributed import Distributed, Processes
from ..errors import InvalidInputError
from ..pipeline.presets import check_presets_file, keep_tuned_lists, tuned_lists
from ..pipeline.recording import Record
from ..pipeline.resolved import ResolvedSettings
from ..pipeline.resolver import run_scheduler
from ..runs.existing import not_compared
from ..runs.jobs import Options, Plan, make_plan
from ..runs.record import check_record, model_differences, setting_differences
from ..runs.saved_run import saved_path
from ..runs.settings import BY_MEMORY, DECODING, RunSettings
from ..runs.tuning import (
    STARTED,
    TuningFolder,
    TuningRun,
    check_tunable,
    compare,
    exact_runs,
    fit_lists,
    preset_runs,
)
from ..video.paths import output_errors
from .announce import (
    announce_download,
    denoising_seconds,
    download_lines,
    memory_needs,
    note_demo,
    plan_lines,
    show_needs,
)
from .common import duration, in_bytes
from .json_events import JsonEvents
from .options import given_settings
from .processes import Team
from .session import Session
from .signals import Interrupts
from .tuning_report import Row, make_report, spans, table

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
    """A tuning as a command line asks for it.

    Attributes:
        folder: what it writes.
        continuing: the command that goes on with it.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        words: Sequence[str],
        folder: TuningFolder,
        events: JsonEvents,
    ):
        """`words` are the command line that was read as `args`."""
        self.folder, self._args, self._events = folder, args, events
        self.continuing = continuing_command(args, words)
        model = args.model or default_model()
        is_bundled = str(model) in BUNDLED or Path(model) in BUNDLED.values()
        self._prompts = args.prompt or [DEMO_PROMPT if is_bundled else PROMPT]

    @cached_property
    def plan(self) -> Plan:
        """A plan of the first exact run, for which nothing is downloaded or written.

        Raises:
            CogVideoXError: it can't be made.
        """
        here = next(path for path in self.folder.path.absolute().parents if path.is_dir())
        output = here / f".{token_hex(8)}.mp4"  # its name is never seen
        plan = make_plan(self._options(self._prompts[0], output, dry_run=True))
        check_tunable(plan.jobs[0].settings)
        return plan

    @property
    def settings(self) -> ResolvedSettings:
        """The settings of the first exact run."""
        return self.plan.jobs[0].settings

    @property
    def steps(self) -> int:
        return self.settings.num_inference_steps

    @property
    def _counts(self) -> list[tuple[str, int]]:
        """The runs and the steps that each computes."""
        exact = [(run.name, self.steps) for run in exact_runs(self._prompts)]
        shares = PRESETS.items()
        return [*exact, *((name, steps_to_compute(share, self.steps)) for name, share in shares)]

    def check(self) -> None:
        """Checks everything that can be checked before the first step; writes nothing.

        Raises:
            CogVideoXError: the tuning can neither begin nor go on.
        """
        overwrite = self._args.overwrite
        self.folder.check(overwrite=overwrite)
        if self.folder.is_unfinished and not overwrite:
            self._check_same(self.folder.started() or {})
        check_presets_file(self.plan.pipe, run_scheduler(self.plan.pipe, self.settings))
        check_room([self._room()])

    def _check_same(self, started: dict[str, Any]) -> None:
        """Raises InvalidInputError where the tuning was started with other settings."""
        then, now = started.get("record"), self.plan.jobs[0].record
        try:
            check_record(then)
        except InvalidInputError:
            raise InvalidInputError(
                f"{self.folder.path} holds a tuning whose {STARTED} is damaged: begin again with "
                "--overwrite, or choose another --output"
            ) from None
        # Before its download nothing but its name is known of a model.
        is_known = then.get("model", {}).keys() & {"revision", "sha256"}
        differences = model_differences(then, now) if is_known else []
        but = not_compared(given_settings(self._args, RunSettings))
        differences += setting_differences(then, now, but=(*but, "prompt"))
        if started.get("prompts") != self._prompts:
            differences.append("the prompts are others")
        if differences:
            raise InvalidInputError(
                f"{self.folder.path} holds a tuning that isn't finished, with other settings "
                f"({'; '.join(differences)}): continue it with {started.get('command')}, begin "
                "again with --overwrite, or choose another --output"
            )

    def announce(self) -> None:
        """Says what will be done, and what it needs."""
        plan, needs = self.plan, self._room()
        for warning in dict.fromkeys(plan.warnings):
            logger.warning("%s", warning)
        note_demo(plan.pipe, names_model=bool(self._args.model))
        in_all = sum(count for _, count in self._counts)
        runs = ", ".join(f"{name} {count}" for name, count in self._counts)
        goes_on = self.folder.is_unfinished and not self._args.overwrite
        lines = [line for line in plan_lines(plan) if line[0] != "output"]
        lines += [
            (
                "videos",
                f"{len(self._counts)}, with so many computed steps: {runs}; {in_all} in all",
            ),
            ("output", f"{self.folder.path}" + (", where a tuning goes on" if goes_on else "")),
            ("disk", f"{size(needs.bytes)} more until the end, and the videos"),
            *download_lines(plan.pipe.to_download),
        ]
        seconds, source = denoising_seconds(plan)
        if seconds is not None:
            seconds *= in_all / self.steps
            source = f"about {duration(seconds)} of denoising for all of them ({source})"
        lines += [("time", source)] if source else []
        show_needs(plan, lines, memory_needs(plan))
        self._events.emit("tuning", prompts=self._prompts, steps=in_all, seconds=seconds)

    def _room(self) -> Need:
        """What is still to be kept on the disk: predictions, and the frames of each run."""
        settings, kept, names = self.settings, 0, [name for name, _ in self._counts]
        for run in exact_runs(self._prompts):
            predictions = self.folder.predictions(run.name, settings)
            kept += 0 if predictions.are_whole else predictions.bytes
        for frames in (self.folder.frames(name, settings) for name in names):
            kept += 0 if frames.are_whole else prod(frames.shape)
        return Need(self.folder.path, kept, "the tuning", "choose another --output")

    def open(self) -> None:
        """Makes the folder, or goes on with it.

        Raises:
            OutputError: it can't be made.
        """
        started = {
            "command": self.continuing,
            "prompts": self._prompts,
            "record": self.plan.jobs[0].record,
        }
        self.folder.open(started, overwrite=self._args.overwrite)

    def run(self) -> None:
        """Makes all runs that aren't made, and what follows from them.

        Raises:
            CogVideoXError, KeyboardInterrupt: what is made is kept.
        """
        exact, settings, pipe = exact_runs(self._prompts), self.settings, self.plan.pipe
        for run in exact:
            self._make(run)
        recorded = [self.folder.predictions(run.name, settings) for run in exact]
        lists = fit_lists(pipe, settings, recorded)
        presets = preset_runs(self._prompts[0], lists, self.steps)
        for run in presets:
            self._make(run)
        compared = [exact[0], *presets]
        likenesses = [None, *compare(self.folder, settings, [run.name for run in compared])]
        rows = [
            Row(*pair, self._seconds(pair[0])) for pair in zip(compared, likenesses, strict=True)
        ]
        report = make_report(self.plan, self._started, rows, lists, len(exact))
        kept = {row.run.name: row.run.computed for row in rows[1:] if row.is_usable}
        scheduler = run_scheduler(pipe, settings)
        replaces = tuned_lists(pipe, scheduler)
        keep_tuned_lists(pipe, scheduler, {**replaces, **kept})
        self.folder.close(report)
        self._tell(report, rows, bool(replaces))

    def _make(self, run: TuningRun) -> None:
        """Makes the video of a run, or goes on with it, and keeps what is needed of it."""
        folder, settings, args = self.folder, self.settings, self._args
        video, predictions = folder.video(run.name), folder.predictions(run.name, settings)
        names = [name for name, _ in self._counts]
        which = f"{1 + names.index(run.name)} of {len(names)}"
        if folder.is_done(run, settings):
            logger.info("%-8s %s, %s, is made", "video", which, run.name)
            return
        if video.exists():
            logger.warning("%s is made again: it or what belongs to it is damaged or gone", video)
            with output_errors(video):
                video.unlink()
        resumes = saved_path(video).exists()
        if not resumes:
            predictions.remove()
        computed = run.computed or range(self.steps)
        logger.info("%-8s %s, %s: computes steps %s", "video", which, run.name, spans(computed))
        options = self._options(
            run.prompt, video, computed, resume=resumes, previews=self._previews
        )
        plan = make_plan(options, partial(announce_download, events=self._events))
        with plan.locks, folder.frames(run.name, settings) as frames:
            observers = [frames.observe]
            if run.computed is None:
                observers.append(predictions.observe)
            team = Team(Distributed(), Processes(), Interrupts())
            session = argparse.Namespace(**vars(args), json=False, save_every=None)
            Session(plan, session, self._events, team, observers).run()

    @property
    def _previews(self) -> bool:
        return self._args.preview_every is not None

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
        if computed is not None:
            # All videos are computed and decoded alike, however much memory is free by then.
            then = self._started["settings"]
            given |= {n: then[n] for n in (*DECODING, *BY_MEMORY) if then.get(n) is not None}
            given |= {"cache": "latents", "computed_steps": tuple(computed)}
        given |= {"prompt": prompt, "seed": [args.seed]}
        return Options(
            given=given,
            model=args.model,
            base=args.base,
            output=str(output),
            memory_limit=in_bytes(args.memory_limit),
            **more,
        )

    @property
    def _started(self) -> Record:
        """The record of the first exact run from when the tuning was started."""
        return (self.folder.started() or {}).get("record", self.plan.jobs[0].record)

    def _seconds(self, run: TuningRun) -> dict[str, float]:
        """The time that each stage of a run took."""
        return self.folder.timings(run.name) or {}

    def _tell(self, report: dict[str, Any], rows: Sequence[Row], replaces: bool) -> None:
        folder, settings = self.folder, self.settings
        self._events.tell("record", table(report), path=folder.report, record=report)
        logger.info("%s shows these videos in this order, a row each", folder.sheet)
        logger.info("%s can be shared: it holds no prompt", folder.report)
        for row in rows[1:]:
            if not row.is_usable:
                logger.warning(
                    "%s differs too much, and its steps aren't kept: take more --steps",
                    row.run.name,
                )
        kept = [row.run.name for row in rows[1:] if row.is_usable]
        if not kept:
            return
        logger.info(
            "the steps of %s are kept for this model with %d steps of %s%s; use them with: %s",
            " and ".join(kept),
            self.steps,
            settings.scheduler,
            ", in place of those of an earlier tuning" if replaces else "",
            self._use(kept[0]),
        )

    def _use(self, preset: str) -> str:
        """The command that makes a video with a preset."""
        words = ["--model", self._args.model] if self._args.model else []
        if self._args.num_inference_steps is not None:
            words += ["--steps", str(self.steps)]
        if self._args.scheduler is not None:
            words += ["--scheduler", self._args.scheduler]
        words += ["--image", "FILE"] if self.plan.pipe.takes_image else []
        return f"{command('generate')} {shlex.join([*words, '--preset', preset])} --prompt ..."


def continuing_command(args: argparse.Namespace, words: Sequence[str]) -> str:
    """The command that goes on with a tuning: the same one, which doesn't begin again.

    Args:
        words: of the command line.
    """
    words = [word for word in words if word not in ("--overwrite", "--no-overwrite")]
    if args.overwrite and args.config is not None:
        words.append("--no-overwrite")  # the file may have it
    return f"{command('tune')} {shlex.join(words)}"
