"""Makes the videos of a plan, one after another."""

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from ..errors import CogVideoXError, DeviceError, OutputError, with_notes
from ..pipeline.denoising import DenoisingState
from ..pipeline.request import Request
from ..runs.jobs import Failure, Plan
from ..runs.preview import preview_path, remove_preview
from ..runs.resumable import Job, begin, finish
from ..runs.saved_run import SavedRun
from .common import FAILED, StageBars, say
from .signals import Interrupts

logger = logging.getLogger(__name__)


class Session:
    """A plan being carried out, and what has come of it so far.

    All texts are encoded first and saved, so that the text encoder is loaded once and no more than
    one video's state is in memory. In a batch a video that fails is reported and the rest go on.
    """

    def __init__(self, plan: Plan, args: argparse.Namespace):
        self.plan = plan
        self.args = args
        self.made: list[dict[str, Any]] = []
        others = sum(job.request.steps_of_all_windows for job in plan.jobs[1:])
        self._bars = StageBars(len(plan.jobs), others, quiet=args.quiet)
        self._interrupts = Interrupts()

    def run(self) -> int | None:
        """Makes the videos, prints where they are, and returns the exit code."""
        plan = self.plan
        try:
            with self._interrupts:
                for job in self._encode():
                    with self._reported(job):
                        self._finish(job)
        except (KeyboardInterrupt, CogVideoXError) as error:
            if plan.is_batch and (self.made or any(job.path.exists() for job in plan.jobs)):
                error.add_note(
                    f"{len(self.made)} of {len(plan.jobs)} videos are made: the same command with "
                    "--resume makes the rest"
                )
            raise
        finally:
            self._bars.close()
            if self.args.json:
                print(json.dumps(self._results(), ensure_ascii=False), flush=True)
        if plan.is_batch:
            counts = len(self.made), len(plan.finished), len(plan.failed)
            logger.info("%d made, %d made before, %d failed", *counts)
        return FAILED if plan.failed else None

    def _encode(self) -> list[Job]:
        """Saves each run that is new with its text encoded; returns those that can go on."""
        new = [job for job in self.plan.jobs if job.path not in self.plan.begun]
        ready = {job.path for job in self.plan.jobs} - {job.path for job in new}
        if new:
            with closing(begin(self.plan.pipe, new, self._bars)) as runs:
                for job, saved in runs:
                    with self._reported(job):
                        saved.save(job.path)
                        ready.add(job.path)
        return [job for job in self.plan.jobs if job.path in ready]

    def _finish(self, job: Job) -> None:
        self._interrupts.patient = False
        begun = SavedRun.load(job.path)
        saved = replace(begun, record=job.record, output=job.output)
        windows = job.request.extend - len(saved.windows)
        self._bars.later = windows * job.request.num_inference_steps
        record = finish(
            self.plan.pipe,
            saved,
            job.path,
            overwrite=self.args.overwrite,
            save_every=self.args.save_every,
            on_progress=self._note,
            on_state=self._previewed(job.output),
            should_stop=lambda: self._interrupts.wanted,
        )
        for output in {begun.output, job.output}:
            remove_preview(output)
        self.made.append({"output": job.output, "record": record})
        if not self.args.json:
            print(job.output, flush=True)

    def _previewed(self, output: str) -> Callable[[Request, DenoisingState], None]:
        """Draws a preview every few steps; one that can't be written is no reason to stop."""
        every, path = self.args.preview_every, preview_path(output)

        def draw(window: Request, state: DenoisingState) -> None:
            if every and state.step % every == 0:
                try:
                    latents = state.x0[:, window.geometry.leading_latents :]
                    self.plan.preview.write(path, latents)
                except OutputError as error:
                    logger.warning("no preview: %s", error)

        return draw

    def _note(self, stage: str, done: int, total: int) -> None:
        # Only a step of denoising is worth waiting for: the rest is saved, or quickly done again.
        self._interrupts.patient = stage == "denoise" and done < total
        self._bars(stage, done, total)

    @contextmanager
    def _reported(self, job: Job) -> Iterator[None]:
        """Lets a batch go on after an error, which is said at once."""
        try:
            yield
        except CogVideoXError as error:
            failure = Failure(job.label, type(error), with_notes(error))
            self.plan.failed.append(failure)
            if not self.plan.is_batch:
                raise
            if isinstance(error, DeviceError) and error.ends_process:
                raise
            say(f"error: {failure.label}: {failure.reason}")

    def _results(self) -> dict[str, Any]:
        return {
            "made": self.made,
            "made_before": self.plan.finished,
            "failed": [
                {"item": failure.label, "error": failure.reason} for failure in self.plan.failed
            ],
        }
