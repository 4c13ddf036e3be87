"""Trains an adapter on prepared clips, and resumes an interrupted training.

Noise, timesteps and the order of the clips are drawn by seed and step. A checkpoint is therefore
the adapter, the optimizer's state and the number of steps, and a resumed training gives the same
adapter bit for bit.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoints import save_adapter
from ..diffusion.schedulers import make_scheduler
from ..distributed import ALONE, Distributed
from ..errors import DeviceError, GenerationError, PeerLostError, mlx_errors, wider_dtype
from ..nn.low_rank import add_adapter
from ..pipeline.pipeline import CogVideoXPipeline
from .batches import Batches
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .estimates import memory_advice
from .log import LOG, append_row, cut_log, write_plot
from .loss import AdapterLoss
from .optimizer import make_optimizer
from .prepare import Sample
from .settings import TrainingSettings, new_adapter

Row = dict[str, Any]
"""A row of the log: what is reported of an update."""


class Trainer:
    """A transformer with a new adapter, and the optimizer that trains it.

    Attributes:
        step: updates done.
        batches: draws the clips of each step.
    """

    # True while the adapter and the optimizer's state may belong to different steps.
    _is_updating = False

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
    ):
        """Adds the adapter to the pipeline's transformer, which must be kept (``pipe.keeping``).

        Args:
            unconditional: file of the empty caption's embeddings.
            folder: where the adapter, its checkpoints and the log are written.
            keep: number of checkpoints to keep.
            prior: files of the embeddings of prompts whose videos should not change. In each step,
                the adapter learns the answer of the model without the adapter to
                `settings.prior_batch_size` of them, on the noisy clips of the batch.
            model: a ``checkpoints.model_identity``. A training of another model isn't resumed.
            distributed: the processes that train together, each on `settings.batch_size` clips.

        Raises:
            InvalidInputError: the processes have different settings, clips or models.
        """
        self.pipe, self.settings, self.distributed = pipe, settings, distributed
        self.folder, self.keep, self.step = folder, keep, 0
        self.data = _digests(model, pipe.dtype_name, samples, prior)
        self.batches = Batches(pipe, samples, unconditional, settings, prior, distributed)
        self.transformer = pipe.transformer
        self.transformer.freeze()
        self.layers = new_adapter(self.transformer, settings)
        add_adapter(self.transformer, self.layers)
        scheduler = make_scheduler("ddim", pipe.scheduler_config, mx.random.key(0))
        self._loss = AdapterLoss(self.transformer, scheduler, pipe.dtype)
        self.optimizer = make_optimizer(settings)
        self.optimizer.init(tree_unflatten(self._parameters()))
        distributed.check_same({"settings": settings, **self.data})

    @property
    def is_done(self) -> bool:
        return self.step >= self.settings.iters

    def _parameters(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.transformer.trainable_parameters()))

    def train(
        self,
        *,
        save_every: int = 250,
        validate_every: int = 0,
        on_step: Callable[[Row], None] = lambda row: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Trains to the last step, or until a process should stop; then the training is saved.

        Args:
            save_every: steps between two checkpoints.
            validate_every: steps between two validations; 0 never validates.
            on_step: called in the main process after each step with its row of the log.
            should_stop: asked after each step.

        Returns:
            Whether the training is done.

        Raises:
            GenerationError: the loss became NaN or infinite.
            DeviceError: MLX or the GPU failed. The steps done are saved.
            PeerLostError: another process is gone. The steps done are saved.
        """
        is_main, stop = self.distributed.is_main, False
        with self._rescued(), mlx_errors(out_of_memory=memory_advice(self.pipe)):
            if is_main:
                cut_log(self.folder / LOG, self.step)
            while not (self.is_done or stop):
                row, stop = self._update(should_stop)
                if is_main:
                    self._log(row, validate_every)
                    if stop or self.is_done or self.step % save_every == 0:
                        self.save()
                    on_step(row)
                    stop = stop or self._stops_alone(should_stop)
            self.distributed.wait()  # for what the main process saves
        return self.is_done

    def _log(self, row: Row, validate_every: int) -> None:
        """Appends a row to the log, with the validation loss where that is due."""
        if validate_every and (self.step % validate_every == 0 or self.is_done):
            row["validation"] = self.validate()
        append_row(self.folder / LOG, row)

    def _stops_alone(self, should_stop: Callable[[], bool]) -> bool:
        """Whether a single process should stop, before another step; then the training is saved.

        Several processes agree on it in the next step.
        """
        if self.distributed.size > 1 or self.is_done or not should_stop():
            return False
        self.save()
        return True

    def _update(self, should_stop: Callable[[], bool]) -> tuple[Row, bool]:
        """One update of the adapter.

        Returns:
            Its row of the log, and whether one of several processes should stop after it.
        """
        start = time.perf_counter()
        losses, gradients = self._accumulated()
        gradients = self.distributed.all_mean(tree_unflatten(gradients))
        gradients, norm = optim.clip_grad_norm(gradients, self.settings.clip_norm)
        # One exchange before the update: the log and the checkpoint are then of the same step.
        stop = self.distributed.size > 1 and should_stop()
        *losses, stops = self.distributed.mean([*losses, float(stop)])
        if not np.isfinite([*losses, norm.item()]).all():
            raise GenerationError(
                f"the loss of step {self.step + 1} is {losses[0]} and its gradient {norm.item()}: "
                f"try a lower learning rate; or {wider_dtype(self.pipe.dtype_name)}"
            )
        self._apply(gradients)
        row = {
            "step": self.step,
            **dict(zip(("loss", "prior_loss"), losses, strict=False)),
            "gradient": norm.item(),
            "learning_rate": self.optimizer.learning_rate.item(),
            "seconds": round(time.perf_counter() - start, 3),
            "peak_memory": mx.get_peak_memory(),
        }
        return row, stops > 0

    def _accumulated(self) -> tuple[list[float], dict[str, mx.array]]:
        """The mean loss and gradients of an update's batches.

        The loss of the prior prompts follows that of the clips if there are prior prompts.
        """
        count = self.settings.accumulate
        gradients, losses = {}, []
        for part in range(count):
            batch = self.batches.draw(self.step * count + part)
            batch_losses, batch_gradients = self._loss.loss_and_gradients(batch)
            losses.append(np.array(batch_losses))
            gradients = {
                path: gradient * (1 / count) + gradients.get(path, 0)
                for path, gradient in batch_gradients.items()
            }
            mx.eval(gradients)
        size = self.settings.batch_size
        means = [float(np.mean([clips[:size] for clips in losses]))]
        if self.settings.prior_batch_size:
            means.append(float(np.mean([clips[size:] for clips in losses])))
        return means, gradients

    def _apply(self, gradients: Any) -> None:
        self._is_updating = True
        parameters = self.optimizer.apply_gradients(gradients, tree_unflatten(self._parameters()))
        self.transformer.update(parameters)
        mx.eval(parameters, self.optimizer.state)
        self.step += 1
        self._is_updating = False

    def validate(self) -> float:
        """The loss at fixed timesteps and noise, which falls when the adapter learns.

        The loss of a step, at a random timestep, doesn't show that.
        """
        losses = [self._loss.loss(batch).item() for batch in self.batches.validation()]
        return float(np.mean(losses))

    def save(self) -> None:
        """Writes the adapter, a checkpoint and the plot of the loss.

        The last `keep` checkpoints are kept.
        """
        self.save_adapter(self.folder)
        settings = self._settings_together()
        save_checkpoint(self.folder, self._checkpoint(), settings, self.data, self.keep)
        write_plot(self.folder / LOG, self.folder / "loss.svg")

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter as diffusers and PEFT read it."""
        rank, alpha = self.settings.rank, self.settings.effective_alpha
        name = str(self.pipe.variant.repo if self.pipe.variant else self.pipe.folder)
        save_adapter(folder, self.layers, rank=rank, alpha=alpha, base_model=name)

    def resume(self) -> None:
        """Continues from the last checkpoint in the main process's folder.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged.
            InvalidInputError: it was saved with other settings, clips or models.
        """
        if self.distributed.is_main:
            self.step, adapter, state = load_checkpoint(
                self.folder, self._checkpoint(), self._settings_together(), self.data
            )
            self.transformer.update(tree_unflatten(adapter))
            self.optimizer.state = tree_unflatten(state)
        self.step = self.distributed.broadcast({"step": mx.array(self.step)})["step"].item()
        adapter = self.distributed.broadcast(self._parameters())
        self.transformer.update(tree_unflatten(adapter))
        state = self.distributed.broadcast(dict(tree_flatten(self.optimizer.state)))
        self.optimizer.state = tree_unflatten(state)

    def _checkpoint(self) -> Checkpoint:
        state = dict(tree_flatten(self.optimizer.state))
        return Checkpoint(self.step, self._parameters(), state)

    def _settings_together(self) -> dict[str, Any]:
        """The settings with which one process would do the same as all processes together."""
        settings, size = self.settings, self.distributed.size
        return asdict(settings) | {
            "batch_size": size * settings.batch_size,
            "prior_batch_size": size * settings.prior_batch_size,
        }

    @contextmanager
    def _rescued(self) -> Iterator[None]:
        """Saves the steps done when the block fails, and notes in the error how to continue."""
        try:
            yield
        except (DeviceError, PeerLostError) as error:
            if self.step > 0 and not self._is_updating:
                self._rescue(error)
            raise

    def _rescue(self, error: DeviceError | PeerLostError) -> None:
        resume = "--resume"
        if not self.distributed.is_main:
            # Its own folder may hold another adapter, or belong to the main process.
            whole, rank = self.folder.absolute(), self.distributed.rank
            self.folder = whole.with_name(f"{whole.name}-rescued-{rank}-{self.step:07}")
            resume = f"--resume --adapter-path {self.folder}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.save()
        note = (
            f"{self.step} steps are kept in {self.folder}: the same command with {resume} "
            "continues the training"
        )
        if isinstance(error, PeerLostError):
            note += "; with another number of processes, if their batches together are as large"
        error.add_note(note)


def _digests(
    model: dict[str, Any] | None, dtype: str, samples: Sequence[Sample], prior: Sequence[Path]
) -> dict[str, str]:
    """Digests of what must be the same, besides the settings, when a training is resumed.

    Files of the cache are named by what they were made of.
    """
    contents = {
        "model's weights": [model, dtype],
        "clips": [
            [asdict(each.spec), each.latents.name, each.text.name, each.image and each.image.name]
            for each in samples
        ],
        "prior prompts": [path.name for path in prior],
    }
    return {
        name: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        for name, content in contents.items()
    }
