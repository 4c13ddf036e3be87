"""A run from text to a file of which nothing is lost: it is saved on the way and can go on.

Memory: that of the pipeline's stages one after another, and a copy of the latents while they are
saved.
"""

import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import InvalidInputError, mlx_errors
from ..pipeline.denoising import DenoisingState
from ..pipeline.pipeline import CogVideoXPipeline, Progress
from ..pipeline.request import Request
from ..video import open_writer, write_latents
from ..video.paths import LATENTS, output_form
from .record import MAY_CHANGE, Meter, Record, request_again, setting_differences
from .saved_run import SavedRun, remove_saved, saved_path

SAVE_EVERY_SECONDS = 60
FALLBACK_FOLDER = "mlx_cogvideo-"
"""Start of the name of a temporary folder for a run that can't be saved in its own."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A video to make.

    Attributes:
        label: what messages call it, or "" where there is but one.
        request: what to make.
        record: of the run.
        output: where the video goes.
        path: where the run is saved until then.
        done: stages that are behind it.
    """

    label: str
    request: Request
    record: Record
    output: str
    path: Path
    done: tuple[str, ...] = ()


def begin(
    pipe: CogVideoXPipeline, jobs: Sequence[Job], on_progress: Progress | None = None
) -> Iterator[tuple[Job, SavedRun]]:
    """Encodes the text of many jobs; the text encoder is loaded once, and freed after the last.

    Yields:
        Each job with its run, not yet saved, so that one set of embeddings is held at a time.
    """
    report = on_progress or (lambda stage, done, total: None)
    report("encode", 0, len(jobs))
    with closing(pipe.encode(job.request for job in jobs)) as all_embeds:
        for i, job in enumerate(jobs):
            meter = Meter(job.record)
            meter("encode", 0, 1)
            with mlx_errors():
                embeds = next(all_embeds)
            meter("encode", 1, 1)
            report("encode", i + 1, len(jobs))
            yield job, SavedRun(job.record, job.output, embeds)


def finish(
    pipe: CogVideoXPipeline,
    saved: SavedRun,
    path: Path,
    *,
    overwrite: bool = False,
    save_every: int | None = None,
    on_progress: Progress | None = None,
    on_state: Callable[[Request, DenoisingState], None] = lambda window, state: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Denoises from where a run stands, decodes and writes the output; then removes what was saved.

    Before the first step, what the video starts from is encoded.

    Args:
        saved: the run; of the model and dtype of `pipe`.
        path: where it is saved.
        overwrite: replace an output that is there.
        save_every: steps between saves; None saves about once a minute.
        on_progress: called with a stage's name, the steps done and their number.
        on_state: called with the request of the window and where it stands, after each step.
        should_stop: asked after each step; true saves the run and raises KeyboardInterrupt.

    Returns:
        The run's record with timings and peak memory, as it is stored in the output.

    Raises:
        InvalidInputError: what was saved doesn't fit its own settings.
        GenerationError: the model produced no video.
        DeviceError: MLX or the GPU failed.
        OutputError: the output can't be written.
        KeyboardInterrupt: as ``should_stop`` wished, or Ctrl-C. Like the errors it has a note that
            tells where the steps so far are kept.
    """
    request = request_again(pipe, saved.record["settings"])
    state = saved.state
    if state is not None and tuple(state.latents.shape) != request.geometry.latent_shape:
        raise InvalidInputError(
            f"{path} holds latents of shape {tuple(state.latents.shape)} instead of "
            f"{request.geometry.latent_shape}: remove it to start afresh"
        )
    meter = Meter(saved.record, on_progress)
    options = " --overwrite" if overwrite else ""
    if pipe.memory_limit is not None:
        options += f" --memory-limit {pipe.memory_limit / 2**30:g}"
    keeper = _Keeper(saved, path, save_every, options)
    with keeper, mlx_errors():
        if output_form(saved.output) == LATENTS:
            latents = _denoised(pipe, request, keeper, meter, on_state, should_stop)
            write_latents(saved.output, np.array(latents), overwrite=overwrite, record=saved.record)
        else:
            _write(pipe, request, keeper, overwrite, meter, on_state, should_stop)
    return saved.record


def _denoised(
    pipe: CogVideoXPipeline,
    window: Request,
    keeper: "_Keeper",
    meter: Meter,
    on_state: Callable[[Request, DenoisingState], None],
    should_stop: Callable[[], bool],
) -> mx.array:
    """The latents of a window, from where its run stands."""
    saved = keeper.saved
    if saved.state is None and saved.conditioning is None:
        saved = replace(saved, conditioning=pipe.condition(window, on_progress=meter))
        keeper.saved = saved
    state, given = saved.state, saved.conditioning
    meter("denoise", saved.steps_done, window.steps)
    for now in pipe.denoise(window, saved.embeds, saved.state, conditioning=given):
        state = now
        meter("denoise", state.step, window.steps)
        kept = state if state.restart is None else state.restart
        keeper.update(replace(saved, state=kept if kept.step else None))
        on_state(window, state)
        if should_stop():
            raise KeyboardInterrupt
    if window.cache is not None and state is not saved.state:
        told = {"skipped_steps": list(state.skipped), "steps": window.steps}
        saved.record.setdefault("cache", []).append(told)
    if state.restart is not None:
        keeper.update(replace(saved, state=replace(state, restart=None)))
    keeper.save()
    return state.latents


def _write(
    pipe: CogVideoXPipeline,
    request: Request,
    keeper: "_Keeper",
    overwrite: bool,
    meter: Meter,
    on_state: Callable[[Request, DenoisingState], None],
    should_stop: Callable[[], bool],
) -> None:
    """Denoises and decodes window after window into the output; one that is denoised is kept."""
    finished = iter(keeper.saved.windows)

    def denoised(window: Request) -> mx.array:
        done = next(finished, None)
        if done is not None:
            return done
        with mlx_errors():
            latents = _denoised(pipe, window, keeper, meter, on_state, should_stop)
        if request.extend:
            saved = keeper.saved
            windows = (*saved.windows, latents)
            keeper.saved = replace(saved, windows=windows, state=None, conditioning=None)
            keeper.save()
        return latents

    less = "go on with --tiling tiled, which decodes in the least"
    if request.tiling.mode == "tiled":
        less = "close other programs"
    frames = pipe.join(request, denoised, on_progress=meter)
    with mlx_errors(out_of_memory=less):
        first = next(frames)
    record = keeper.saved.record
    with open_writer(keeper.saved.output, record["settings"]["fps"], overwrite=overwrite) as writer:
        writer.write(first)
        with mlx_errors(out_of_memory=less):
            for more in frames:
                writer.write(more)
        writer.record = record


def remove_fallback(path: Path) -> None:
    """Removes the temporary folder that a run was saved in, once nothing is left in it."""
    if path.parent.name.startswith(FALLBACK_FOLDER):
        with suppress(OSError):
            path.parent.rmdir()


class _Keeper:
    """Saves a run now and then, when an exception ends it, and removes it when it is complete.

    Where its file can't be written (any more) it moves to the system's temporary folder.
    """

    def __init__(self, saved: SavedRun, path: Path, every: int | None, more_options: str):
        self.saved = saved
        self._path = path
        self._every = every
        self._more_options = more_options
        # What is there may lack what is new about this run: its output, say.
        self._on_disk: SavedRun | None = None
        self._steps_on_disk = saved.steps_done
        self._is_there = path.exists()
        self._written = [path]
        self._time = time.monotonic()

    def update(self, saved: SavedRun) -> None:
        """Takes note of another step."""
        self.saved = saved
        if self._every is not None:
            due = saved.steps_done - self._steps_on_disk >= self._every
        else:
            due = time.monotonic() - self._time >= SAVE_EVERY_SECONDS
        if due:
            self.save()

    def save(self) -> None:
        """Saves the latest step unless that is done. Failing to is no reason to stop a run."""
        self._time = time.monotonic()
        if self._on_disk is self.saved:
            return
        try:
            self._write()
        except (OSError, RuntimeError) as error:  # the latter from MLX, after a device has failed
            logger.warning("the run can't be saved: %s", error)

    def _write(self) -> None:
        try:
            self.saved.save(self._path)
        except OSError as error:
            if len(self._written) > 1:
                raise
            refuge = Path(tempfile.mkdtemp(prefix=FALLBACK_FOLDER)) / self._path.name
            self._written.append(refuge)
            self.saved.save(refuge)
            logger.warning("%s: the run is saved as %s instead", error, refuge)
            self._path = refuge
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
            file = shlex.quote(str(self._path))
            go_on = f"python generate.py --resume {file}{self._more_options}"
            done = f"{self._steps_on_disk} of {self.saved.steps_in_all} steps"
            if windows := len(self.saved.windows):
                done = f"{windows} windows and {done}"
            error.add_note(f"{done} are kept, and this goes on: {go_on}")

    def _remove(self) -> None:
        """Removes what was saved, and what the run had left beside its output before it moved."""
        beside = saved_path(self.saved.output)
        if beside not in self._written and beside.exists():
            with suppress(InvalidInputError):
                record = SavedRun.load(beside).record
                if not setting_differences(record, self.saved.record, but=MAY_CHANGE):
                    self._written.append(beside)
        for path in self._written:
            remove_saved(path)
            remove_fallback(path)
