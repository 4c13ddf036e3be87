"""A run from text to a file of which nothing is lost: it is saved as it goes and can be resumed.

Memory: that of the pipeline's stages one after another, and a copy of the latents while they are
saved.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..called import command, shell_word
from ..errors import InvalidInputError, OutputError, mlx_errors, note_resume
from ..pipeline.events import Event, Progress, RunState, no_progress
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.recording import Meter, Record
from ..pipeline.resolved import ResolvedSettings
from ..video import FrameWriter, open_writer, write_latents
from ..video.interpolation import check_size
from ..video.paths import LATENTS, output_form
from .record import setting_differences
from .saved_run import SavedRun, owner_of, remove_saved, saved_path
from .settings import MAY_CHANGE

SAVE_EVERY_SECONDS = 60
FALLBACK_FOLDER = "mlx_cogvideo-"
"""Start of the name of a temporary folder for a run that can't be saved in its own."""

logger = logging.getLogger(__name__)

Observer = Callable[[Event], None]


@dataclass(frozen=True)
class VideoJob:
    """A video to make.

    Attributes:
        label: name of the job in messages, or "" where there is only one.
        settings: what to make.
        record: record of the run.
        output: where the video goes.
        path: where the run is saved until then.
        done: stages that an earlier run has finished.
    """

    label: str
    settings: ResolvedSettings
    record: Record
    output: str
    path: Path
    done: tuple[str, ...] = ()

    def new_run(self, run: RunState | None = None) -> SavedRun:
        """The job as a run that begins, or begins with what has been computed."""
        return SavedRun(self.record, self.output, run or RunState())


def encode_all(
    pipe: CogVideoXPipeline, jobs: Sequence[VideoJob], on_progress: Progress = no_progress
) -> Iterator[tuple[VideoJob, SavedRun]]:
    """Encodes the text of many jobs; the text encoder is loaded once, and freed after the last.

    Yields:
        Each job with its run, not yet saved, so that one set of embeddings is held at a time.
    """
    on_progress("encode", 0, len(jobs))
    with closing(pipe.encode(job.settings for job in jobs)) as all_embeds:
        for i, job in enumerate(jobs):
            meter = Meter(job.record)
            meter("encode", 0, 1)
            with mlx_errors(out_of_memory=_less_memory(job.settings, "encode")):
                embeds = next(all_embeds)
            meter("encode", 1, 1)
            on_progress("encode", i + 1, len(jobs))
            yield job, job.new_run(RunState(embeds=embeds))


def finish(
    pipe: CogVideoXPipeline,
    settings: ResolvedSettings,
    saved: SavedRun,
    path: Path,
    *,
    overwrite: bool = False,
    save_every: int | None = None,
    observers: Iterable[Observer] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Makes the video of a run from where it stands, and then removes what was saved of it.

    Args:
        settings: settings of the run.
        saved: the run; of the model and dtype of `pipe`.
        path: where it is saved.
        overwrite: whether an output that exists is replaced.
        save_every: steps between saves; None saves about once a minute.
        observers: called with each event.
        should_stop: asked after each step; True saves the run and raises KeyboardInterrupt.

    Returns:
        The run's record with timings and peak memory, as it is stored in the output.

    Raises:
        InvalidInputError: what was saved doesn't fit its own settings.
        GenerationError: the model produced no video.
        DeviceError: MLX or the GPU failed.
        OutputError: the output can't be written.
        KeyboardInterrupt: ``should_stop`` said so, or Ctrl-C. Like the errors it has a note that
            says where the steps so far are kept.
    """
    state = saved.run.denoising
    if state is not None and tuple(state.latents.shape) != settings.geometry.latent_shape:
        raise InvalidInputError(
            f"{path} holds latents of shape {tuple(state.latents.shape)} instead of "
            f"{settings.geometry.latent_shape}: remove it to start afresh"
        )
    keeper = _Keeper(saved, path, save_every, resume_options(pipe, overwrite))
    meter = Meter(saved.record)
    output_type = "latent" if output_form(saved.output) == LATENTS else "uint8"

    def watched() -> Iterator[Event]:
        story = pipe.events(settings, saved.run, output_type=output_type)
        for event in _with_our_errors(story, settings):
            meter(event.stage, event.done, event.total)
            keeper.observe(event)
            for observe in observers:
                observe(event)
            if event.stage == "denoise" and event.done and should_stop():
                raise KeyboardInterrupt
            yield event

    with keeper, closing(watched()) as events:
        _write(events, saved, overwrite)
    return saved.record


def resume_options(pipe: CogVideoXPipeline, overwrite: bool) -> str:
    """Options that the command that resumes a run repeats."""
    options = " --overwrite" if overwrite else ""
    if pipe.memory_limit is not None:
        options += f" --memory-limit {pipe.memory_limit / 2**30:g}"
    return options


def note_kept(
    error: BaseException, saved: SavedRun, steps: int, path: Path, more_options: str = ""
) -> None:
    """Adds to an error what is kept of a run, and the command that continues it.

    Args:
        steps: steps, of the window that is denoised, that the file at `path` has.
        more_options: options that the command repeats.
    """
    resume = f"{command('generate')} --resume {shell_word(path)}{more_options}"
    done = f"{steps} of {saved.steps_in_all} steps"
    if windows := len(saved.run.windows):
        done = f"{windows} windows and {done}"
    note_resume(error, f"{done} are kept; continue with: {resume}", resume)


def _less_memory(settings: ResolvedSettings, stage: str | None) -> str | None:
    """What to do where memory runs out in a stage; None is the usual advice."""
    if stage == "decode" and settings.vae == "full" and settings.decoding.mode != "tiled":
        return "resume with --tiling tiled, which decodes in little memory"
    return "close other programs" if stage in ("encode", "decode") else None


def _with_our_errors(events: Iterator[Event], settings: ResolvedSettings) -> Iterator[Event]:
    """The events; an error of MLX becomes one of ours, with advice for its stage."""
    stage = None
    while True:
        with mlx_errors(out_of_memory=_less_memory(settings, stage)):
            event = next(events, None)
        if event is None:
            return
        stage = event.stage
        yield event


def _write(events: Iterator[Event], saved: SavedRun, overwrite: bool) -> None:
    """Writes the output of a run: its frames as they come, or its latents."""
    record, writer = saved.record, None
    with ExitStack() as stack:
        for event in events:
            if event.frames is not None:
                if writer is None:
                    writer = open_output(saved.output, record, overwrite)
                    stack.enter_context(writer)
                writer.write(event.frames)
        if writer is not None:
            writer.record = record
            return
    latents = np.array(event.run.latents)
    write_latents(saved.output, latents, overwrite=overwrite, record=record)


def open_output(output: str, record: Record, overwrite: bool) -> FrameWriter:
    """The writer of a run's frames; arguments and errors as for ``open_writer``."""
    settings = record["settings"]
    if (interpolate := settings.get("interpolate", 1)) > 1:
        check_size(settings["height"], settings["width"])
    return open_writer(output, settings["fps"], overwrite=overwrite, interpolate=interpolate)


def fallback_path(path: Path) -> Path:
    """Where a saved run goes that can't be written to `path`: in a new temporary folder."""
    return Path(tempfile.mkdtemp(prefix=FALLBACK_FOLDER)) / path.name


def remove_fallback(path: Path) -> None:
    """Removes the temporary folder of a saved run once it is empty."""
    if path.parent.name.startswith(FALLBACK_FOLDER):
        with suppress(OSError):
            path.parent.rmdir()


class _Keeper:
    """Saves a run now and then and when an exception ends it, and removes it when it is complete.

    Where its file can't be written (any more) it moves to the system's temporary folder.
    """

    def __init__(self, saved: SavedRun, path: Path, every: int | None, more_options: str):
        self.saved = saved
        self._path = path
        self._every = every
        self._more_options = more_options
        # The file may lack what is new about this run, such as its output.
        self._on_disk: SavedRun | None = None
        self._steps_on_disk = saved.steps_done
        self._is_there = path.exists()
        self._replaced = owner_of(path)
        self._written = [path]
        self._time = time.monotonic()

    def observe(self, event: Event) -> None:
        """Takes note of what has been computed; saves it when that is due, and before decoding."""
        if event.run is not self.saved.run:
            self.saved = replace(self.saved, run=event.run)
        if event.ends_denoising and event.window.cache is not None:
            skipped = list(event.run.denoising.skipped)
            computed = [step for step in range(event.total) if step not in skipped]
            steps = {"skipped_steps": skipped, "computed_steps": computed, "steps": event.total}
            self.saved.record.setdefault("cache", []).append(steps)
        if event.stage == "decode" and event.done == 0:
            self.save()
        elif event.stage == "denoise" and event.done:
            self._save_if_due()

    def _save_if_due(self) -> None:
        if not self._is_there:  # the text and the source aren't computed again after a crash
            due = True
        elif self._every is not None:
            due = self.saved.steps_done - self._steps_on_disk >= self._every
        else:
            due = time.monotonic() - self._time >= SAVE_EVERY_SECONDS
        if due:
            self.save()

    def save(self) -> None:
        """Saves the latest step unless that is done. A save that fails is no reason to stop."""
        self._time = time.monotonic()
        if self._on_disk is self.saved or self.saved.run.embeds is None:
            return
        try:
            self._write()
        except (OSError, RuntimeError) as error:  # the latter from MLX, after a device has failed
            logger.warning("the run can't be saved: %s", error)

    def _check_owner(self, path: Path) -> None:
        """Locks keep other runs away, but not all file systems have them."""
        if owner_of(path) not in (None, self.saved.owner, self._replaced):
            raise OutputError(f"another run has written {path}")

    def _write(self) -> None:
        try:
            self._check_owner(self._path)
            self.saved.save(self._path)
        except OSError as error:
            if len(self._written) > 1:
                raise
            fallback = fallback_path(self._path)
            self._written.append(fallback)
            self.saved.save(fallback)
            logger.warning("%s: the run is saved as %s instead", error, fallback)
            self._path = fallback
        self._on_disk, self._is_there = self.saved, True
        self._steps_on_disk = self.saved.steps_done

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self._remove()
            return
        self.save()
        if self._is_there:
            note_kept(error, self.saved, self._steps_on_disk, self._path, self._more_options)

    def _remove(self) -> None:
        """Removes what was saved, and what the run had left beside its output before it moved."""
        beside = saved_path(self.saved.output)
        if beside not in self._written and beside.exists():
            with suppress(InvalidInputError):
                record = SavedRun.load(beside).record
                if not setting_differences(record, self.saved.record, but=MAY_CHANGE):
                    self._written.append(beside)
        for path in self._written:
            with suppress(OutputError):
                self._check_owner(path)
                remove_saved(path)
            remove_fallback(path)
