"""Trains an adapter or a whole transformer on prepared clips, and resumes such a training.

Noise, timesteps and the order of the clips are drawn by seed and step. A checkpoint is therefore
the weights, the optimizer's state and the number of steps, and a resumed training gives the same
weights bit for bit.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints import Adapter
from ..distributed import ALONE, Distributed
from ..errors import (
    CheckpointError,
    GenerationError,
    PeerLostError,
    mlx_errors,
    wider_dtype,
)
from ..pipeline.events import Progress, no_progress
from ..pipeline.pipeline import CogVideoXPipeline
from .batches import Batches
from .checkpoint import BEST, Checkpoint, load_checkpoint, save_checkpoint, ways_on
from .digests import content_digests, held_out_digest
from .estimates import memory_advice
from .latent_cache import Cache
from .log import LOG, append_row, cut_log, write_plot
from .prepare import Sample
from .prior_answers import PriorAnswers
from .rescue import rescued
from .settings import TrainingSettings
from .trained_adapter import TrainedAdapter
from .trained_model import TrainedModel
from .validation import Validation

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""A row of the log: what is reported of an update."""


class Trainer:
    """A training: what is trained, the clips, and the folder that gets the result.

    Attributes:
        step: updates done.
        result: the folder that the training has made, once it is done.
        best_result: the same of the best step, where clips are held out.
        batches: draws the clips of each step.
        validation: validates the training.
    """

    def __init__(
        self,
        pipe: CogVideoXPipeline,
        samples: Sequence[Sample],
        unconditional: Path,
        settings: TrainingSettings,
        folder: Path,
        keep: int = 3,
        prior: Sequence[Path] = (),
        model: dict[str, Any] | None = None,
        distributed: Distributed = ALONE,
        existing: Adapter | None = None,
        on_save: Callable[[Path, int], None] = lambda checkpoint, step: None,
    ):
        """Prepares the pipeline's transformer, which must be kept (``pipe.keeping``).

        Args:
            samples: the clips to learn, and those that are held out.
            unconditional: file of the empty caption's embeddings.
            folder: where the adapter, its checkpoints and the log are written.
            keep: number of checkpoints to keep.
            prior: files of the embeddings of prompts whose videos should not change. In each step,
                the training learns the answer of the model before the training to
                `settings.prior_batch_size` of them, on the noisy clips of the batch. Answers that
                a full training needs are kept in the folder of these files.
            model: a ``checkpoints.model_identity``. A training of another model isn't resumed.
            distributed: the processes that train together, each on `settings.batch_size` clips.
            existing: the adapter to start from, which fits `settings`; None starts a new one.
            on_save: called with each checkpoint that is written, and its number of steps.

        Raises:
            InvalidInputError: the processes have different settings, clips or models.
        """
        self.pipe, self.settings, self.distributed = pipe, settings, distributed
        self.folder, self.keep, self.step = folder, keep, 0
        self.result = self.best_result = folder
        self._saved: tuple[Path, int] | None = None
        self._on_save = on_save
        self.data = content_digests(model, pipe.precision, samples, prior, pipe.adapters)
        self.batches = Batches(pipe, samples, unconditional, settings, prior, distributed)
        self.trained: TrainedAdapter | TrainedModel
        if settings.is_full:
            self.trained = TrainedModel(pipe, settings, distributed)
        else:
            self.trained = TrainedAdapter(pipe, settings, distributed, existing)
        self._prior = None
        if settings.is_full and settings.prior_batch_size:
            cache = Cache(unconditional.parent)
            self._prior = PriorAnswers(
                cache, self.batches, self.trained.loss, settings, self.data, distributed
            )
        held_out = held_out_digest(samples)
        self.validation = Validation(self.batches, self.trained.loss.loss, held_out)
        source = existing and existing.identity(1.0)["sha256"]
        distributed.check_same(
            {
                "settings": settings,
                **self.data,
                "held-out clips": held_out,
                "adapters to start from": source,
            }
        )

    @property
    def is_done(self) -> bool:
        return self.step >= self.settings.iters

    def train(
        self,
        *,
        save_every: int = 250,
        validate_every: int = 0,
        on_step: Callable[[Row], None] = lambda row: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Trains to the last step, or until a process should stop; then the training is saved.

        If an error ends it, the steps done are saved, too, and no checkpoint is removed. The note
        of the error says how to go on.

        Args:
            save_every: steps between two checkpoints.
            validate_every: steps between two validations; 0 never validates.
            on_step: called in the main process after each step with its row of the log.
            should_stop: asked after each step.

        Returns:
            Whether the training is done.

        Raises:
            GenerationError: the loss or the adapter became NaN or infinite.
            DeviceError: MLX or the GPU failed.
            PeerLostError: another process is gone.
            CheckpointError: a file of the cache is gone.
            OSError: a file can't be written.
        """
        stop, is_main = False, self.distributed.is_main
        advice = memory_advice(self.pipe, self.settings)
        with rescued(self._rescue, self.distributed), mlx_errors(out_of_memory=advice):
            if is_main:
                cut_log(self.folder / LOG, self.step)
            while not (self.is_done or stop):
                row, stop = self._update(should_stop)
                if is_main:
                    self._log(row, validate_every)
                    due = self.step % save_every == 0 or self.validation.is_best(self.step)
                    if stop or self.is_done or due:
                        self.save()
                    on_step(row)
                    stop = stop or self._stops_alone(should_stop)
            if is_main and self.is_done:
                self._finish()
            self.distributed.wait()  # for what the main process saves
        return self.is_done

    def _log(self, row: Row, validate_every: int) -> None:
        """Appends a row to the log, with the validation loss where that is due."""
        try:
            if validate_every and (self.step % validate_every == 0 or self.is_done):
                row |= self.validation.row(self.step)
        finally:
            append_row(self.folder / LOG, row)

    def _finish(self) -> None:
        """Has `result` made, and that of the best step."""
        self.result = self.best_result = self.trained.finish(self.folder)
        best = self.validation.best
        if best and not self.settings.is_full:
            self.best_result = self.folder / BEST
        elif best and best.step != self.step:
            try:
                checkpoint = self._load(best.step)
            except CheckpointError as error:
                logger.warning("the best step, %d, can't be made a model: %s", best.step, error)
                return
            self.trained.restore(checkpoint)
            self.best_result = self.trained.finish(self.folder / BEST)

    def _stops_alone(self, should_stop: Callable[[], bool]) -> bool:
        """Whether a single process should stop, before another step; then the training is saved.

        Several processes agree on it in the next step.
        """
        if self.distributed.size > 1 or self.is_done or not should_stop():
            return False
        self.save()
        return True

    def _update(self, should_stop: Callable[[], bool]) -> tuple[Row, bool]:
        """One update of the weights.

        Returns:
            Its row of the log, and whether one of several processes should stop after it.
        """
        start, means, stops = time.perf_counter(), [], [0.0]

        def agree(losses: Sequence[mx.array], norm: float | None) -> None:
            # One exchange before the update: the log and the checkpoint are then of the same step.
            stop = self.distributed.size > 1 and should_stop()
            means[:], stops[:] = self._means(losses, stop)
            if not np.isfinite([*means, norm or 0]).all():
                raise self._not_finite(means[0], norm)

        count = self.settings.accumulate
        draw = self._prior.draw if self._prior else self.batches.draw
        batches = map(draw, range(self.step * count, (self.step + 1) * count))
        norm = self.trained.update(batches, self.step, agree)
        if not np.isfinite(norm):
            raise self._not_finite(means[0], norm)
        self.step += 1
        row = {
            "step": self.step,
            **dict(zip(("loss", "prior_loss"), means, strict=False)),
            "gradient": norm,
            "learning_rate": self.trained.learning_rate(self.step - 1),
            "seconds": round(time.perf_counter() - start, 3),
            "peak_memory": mx.get_peak_memory(),
        }
        return row, stops[0] > 0

    def _means(self, losses: Sequence[mx.array], stop: bool) -> tuple[list[float], list[float]]:
        """The mean loss of all processes' clips, and of their prior prompts if there are any.

        Returns:
            They, and whether a process should stop, as a number above 0.
        """
        size = self.settings.batch_size
        arrays = [np.array(clips) for clips in losses]
        means = [float(np.mean([clips[:size] for clips in arrays]))]
        if self.settings.prior_batch_size:
            means.append(float(np.mean([clips[size:] for clips in arrays])))
        *means, stops = self.distributed.mean([*means, float(stop)])
        return means, [stops]

    def _not_finite(self, loss: float, norm: float | None) -> GenerationError:
        gradient = "" if norm is None else f" and its gradient {norm}"
        return GenerationError(
            f"the loss of step {self.step + 1} is {loss}{gradient}: try a lower learning rate; or "
            f"{wider_dtype(self.pipe.dtype_name)}"
        )

    def save(self) -> None:
        """Writes the adapter, a checkpoint and the plot of the loss, once for each step.

        The last `keep` checkpoints and the best one are kept.

        Raises:
            GenerationError: the adapter is NaN or infinite, and nothing was written.
            OutputError: a file can't be written.
        """
        self._save(self.keep)

    def _save(self, keep: int | None) -> None:
        if self._saved == (self.folder, self.step):
            return
        checkpoint = self.trained.checkpoint(self.step)._replace(best=self.validation.best)
        if not checkpoint.is_finite():
            raise GenerationError(
                f"the weights are NaN or infinite after step {self.step}: try a lower learning rate"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trained.save(self.folder)
        if self.validation.is_best(self.step) and not self.settings.is_full:
            (self.folder / BEST).mkdir(exist_ok=True)
            self.trained.save(self.folder / BEST)
        settings = self.settings.of_all(self.distributed.size)
        saved = save_checkpoint(self.folder, checkpoint, settings, self.data, keep)
        write_plot(self.folder / LOG, self.folder / "loss.svg")
        self._saved = self.folder, self.step
        self._on_save(saved, self.step)

    def prepare(self, on_progress: Progress = no_progress) -> None:
        """Computes what the remaining steps need of the model before the training.

        Nothing is to do but in a full training with prior prompts.
        """
        if self._prior:
            count = self.settings.accumulate
            numbers = range(self.step * count, self.settings.iters * count)
            self._prior.prepare(numbers, on_progress)

    def resume(self, on_progress: Progress = no_progress) -> None:
        """Continues from the last checkpoint in the main process's folder, after `prepare`.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged.
            InvalidInputError: it was saved with other settings, clips or models.
        """
        checkpoint = self._load() if self.distributed.is_main else None
        step = checkpoint.step if checkpoint else 0
        self.step = self.distributed.broadcast({"step": mx.array(step)})["step"].item()
        self.prepare(on_progress)
        if checkpoint:
            self.validation.resume(checkpoint.best)
            self.trained.restore(checkpoint)
            self._saved = self.folder, self.step
        self.trained.share(self.step)

    def _load(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of a step; None takes the last one."""
        like = self.trained.checkpoint(self.step)
        settings = self.settings.of_all(self.distributed.size)
        return load_checkpoint(self.folder, like, settings, self.data, step)

    def _rescue(self, error: BaseException) -> None:
        """Saves the steps done, and notes in the error how to go on."""
        resume = "--resume"
        if self.trained.step is None:
            error.add_note("an update was half done: the steps since the last checkpoint are lost")
        else:
            # The error may have come right after an update.
            self.step = max(self.step, self.trained.step)
            resume += self._save_rescued(error)
        note = ways_on(self.folder, self.settings, resume)
        if isinstance(error, PeerLostError):
            note += "; with another number of processes, if their batches together are as large"
        error.add_note(note)

    def _save_rescued(self, error: BaseException) -> str:
        """Saves the steps done, and returns the option that names the folder, if it is another."""
        other, rank = "", self.distributed.rank
        if rank:  # its own folder may hold another adapter, or belong to the main process
            whole = self.folder.absolute()
            self.folder = whole.with_name(f"{whole.name}-rescued-{rank}-{self.step:07}")
            other = f" --adapter-path {self.folder}"
        try:
            if self.step > 0:
                self._save(keep=None)
        except Exception as problem:  # the first error is the one to report, whatever this is
            if str(problem) != str(error):
                error.add_note(f"step {self.step} can't be saved: {problem}")
        return other
