"""Makes the videos of a plan, one after another."""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoints import model_identity
from ..errors import CogVideoXError, DeviceError, OutputError, PeerLostError, with_notes
from ..pipeline.events import Event
from ..runs.helpers import Helpers
from ..runs.jobs import Failure, Plan
from ..runs.preview import preview_path, remove_preview
from ..runs.resumable import Observer, VideoJob, encode_all, finish, resume_options
from ..runs.saved_run import SavedRun
from .announce import decoded_frames, report_failure, video_fields
from .common import FAILED, StageBars
from .json_events import JsonEvents
from .processes import Team
from .streams import json_text, tell

logger = logging.getLogger(__name__)


class Session:
    """A plan being carried out, and what has come of it so far.

    No more than one video's state is in memory. In a batch a video that fails is reported and the
    others are made.
    """

    def __init__(
        self,
        plan: Plan,
        args: argparse.Namespace,
        events: JsonEvents,
        team: Team,
        observers: Sequence[Observer] = (),
    ):
        """`observers` are called with each event, after it is noted."""
        self.plan = plan
        self.args = args
        self.made: list[dict[str, Any]] = []
        self._events = events
        names = ("video", "label", "output", "window", "windows")
        events.progress.about = dict.fromkeys(names)  # until one video is made
        self._bars = StageBars(events, len(plan.jobs), quiet=args.quiet)
        self._interrupts, self._helpers = team.interrupts, team.helpers
        self._observers = observers

    def run(self) -> int | None:
        """Makes the videos, prints where they are, and returns the exit code."""
        plan = self.plan
        try:
            with self._interrupts:
                for job, run in self._runs():
                    with self._reported(job):
                        self._finish(job, run())
        except (KeyboardInterrupt, CogVideoXError) as error:
            if plan.is_batch and (self.made or any(job.path.exists() for job in plan.jobs)):
                self._events.can_resume()
                error.add_note(
                    f"{len(self.made)} of {len(plan.jobs)} videos are made: the same command with "
                    "--resume makes the rest"
                )
            raise
        finally:
            self._bars.close()
            if self.args.json:
                tell(json_text(self._results()))
        if plan.is_batch:
            counts = len(self.made), len(plan.finished), len(plan.failed)
            logger.info("%d made, %d made before, %d failed", *counts)
        return FAILED if plan.failed else None

    def _runs(self) -> Iterator[tuple[VideoJob, Callable[[], SavedRun]]]:
        """The jobs that can be made, each with what gives its run.

        One video begins with its text. The texts of several are encoded first, and their runs
        saved, so that the text encoder is loaded once.
        """
        jobs, resumed = self.plan.jobs, self.plan.resumed
        new = [job for job in jobs if job.path not in resumed]
        if len(jobs) == 1 and new:
            yield jobs[0], jobs[0].new_run
            return
        ready: dict[Path, str | None] = dict.fromkeys(resumed)
        if new:
            with closing(encode_all(self.plan.pipe, new, self._bars)) as runs:
                for job, saved in runs:
                    with self._reported(job):
                        saved.save(job.path)
                        ready[job.path] = saved.owner
        for job in jobs:
            if job.path in ready:
                yield job, partial(SavedRun.load, job.path, ready[job.path])

    def _finish(self, job: VideoJob, saved: SavedRun) -> None:
        self._interrupts.patient, before = False, saved.output
        windows = job.settings.extend - len(saved.run.windows)
        self._bars.later = windows * job.settings.num_inference_steps
        self._expect(job, saved.steps_in_all - saved.steps_done + self._bars.later)
        saved = replace(saved, record=job.record, output=job.output)
        observers = [self._note, self._previewed(job), *self._observers]
        if self._helpers is not None:
            job.record["processes"] = self.plan.pipe.processes.size
            observers.insert(0, partial(self._take_part, self._helpers, job, saved))
        record = finish(
            self.plan.pipe,
            job.settings,
            saved,
            job.path,
            overwrite=self.args.overwrite,
            save_every=self.args.save_every,
            observers=observers,
            should_stop=self._should_stop,
        )
        for output in {before, job.output}:
            remove_preview(output)
        self._bars.close()  # or the output's name would be written behind it
        self._warn_of_change(job.output)
        self.made.append({"output": job.output, "record": record})
        if not self.args.json:
            self._events.tell("output", str(job.output), **self._about(job), record=record)

    def _take_part(self, helpers: Helpers, job: VideoJob, saved: SavedRun, event: Event) -> None:
        """Has the other processes take part in a run."""
        more_options = resume_options(self.plan.pipe, self.args.overwrite)
        helpers.take_part(event, replace(saved, run=event.run), job.path, more_options)

    def _should_stop(self) -> bool:
        """Whether to stop after a step: several processes stop after the same one."""
        if self._helpers is not None and self._interrupts.patient:
            return self._helpers.splits.stopping
        return self._interrupts.wanted

    def _about(self, job: VideoJob) -> dict[str, Any]:
        return video_fields(1 + self.plan.jobs.index(job), job)

    def _expect(self, job: VideoJob, steps: int) -> None:
        """Prepares the reports of progress for a video with so many steps to do."""
        progress = self._events.progress
        progress.about = {**self._about(job), "window": 1, "windows": 1 + job.settings.extend}
        rest = self.plan.jobs[self.plan.jobs.index(job) :]
        progress.time.work = {
            "steps": steps + sum(each.settings.steps_of_all_windows for each in rest[1:]),
            "frames": sum(map(decoded_frames, rest)),
        }

    def _warn_of_change(self, output: str) -> None:
        """Tells of files that were replaced while they were used: a record has their digests."""
        pipe, then = self.plan.pipe, self.plan.model
        try:
            changed = model_identity(then["name"], pipe.folder, pipe.base) != then
        except OSError:
            changed = True
        if changed:
            logger.warning("the model's files changed during the run: %s may show both", output)

    def _previewed(self, job: VideoJob) -> Callable[[Event], None]:
        """Draws a preview every few steps; one that can't be written is no reason to stop."""
        every, path = self.args.preview_every, preview_path(job.output)

        def draw(event: Event) -> None:
            if every and event.stage == "denoise" and event.done and event.done % every == 0:
                try:
                    leading = event.window.geometry.leading_latents
                    self.plan.preview.write(path, event.run.denoising.x0[:, leading:])
                except OutputError as error:
                    logger.warning("no preview: %s", error)
                else:
                    step = {"step": event.done, "total": event.total}
                    self._events.emit("preview", **self._about(job), path=path, **step)

        return draw

    def _note(self, event: Event) -> None:
        # Only a step of denoising is worth waiting for: the rest is saved, or quickly done again.
        self._interrupts.patient = event.stage == "denoise" and event.done < event.total
        self._bars(event.stage, event.done, event.total)
        if event.stage == "decode" and event.done == event.total:
            self._events.progress.about["window"] += 1  # what is reported next

    @contextmanager
    def _reported(self, job: VideoJob) -> Iterator[None]:
        """Lets a batch continue after an error, which is reported at once."""
        try:
            yield
        except CogVideoXError as error:
            failure = Failure(job.label, type(error), with_notes(error))
            self.plan.failed.append(failure)
            if self._ends_process(error) or not self.plan.is_batch:
                raise
            report_failure(failure, self._events, **self._about(job))

    def _ends_process(self, error: CogVideoXError) -> bool:
        """Whether no other video can be made after an error."""
        if isinstance(error, DeviceError):  # the other processes would wait for the rest of a step
            return error.ends_process or self._helpers is not None
        return isinstance(error, PeerLostError)

    def _results(self) -> dict[str, Any]:
        return {
            "made": self.made,
            "made_before": self.plan.finished,
            "failed": [
                {"item": failure.label, "error": failure.reason} for failure in self.plan.failed
            ],
        }
