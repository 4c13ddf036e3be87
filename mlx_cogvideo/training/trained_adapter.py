"""An adapter in training: its update, its checkpoint and its files."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import mlx.core as mx

from ..checkpoints import Adapter, save_adapter
from ..checkpoints.published_names import base_repository, published_adapters, published_model
from ..distributed import Distributed
from ..nn.fusion import fused
from ..nn.low_rank import add_adapter
from ..pipeline.pipeline import CogVideoXPipeline
from .checkpoint import Checkpoint
from .existing_adapter import existing_layers
from .loss import Batch, training_loss
from .optimizer_base import flat_states
from .optimizers import make_optimizer
from .parameters import TrainableParameters
from .settings import TrainingSettings, new_adapter

Agree = Callable[[Sequence[mx.array], float | None], None]
"""Is called with the losses of an update's batches, and the norm of its gradient if that is known,
before any weight is changed. Raises GenerationError unless they are finite."""


class TrainedAdapter:
    """A transformer with an adapter, and the optimizer that trains it.

    Attributes:
        loss: computes the loss and its gradients.
        step: updates that the adapter has had; None while one changes it.
    """

    def __init__(
        self,
        pipe: CogVideoXPipeline,
        settings: TrainingSettings,
        distributed: Distributed,
        existing: Adapter | None = None,
    ):
        """Adds the adapter to the pipeline's transformer.

        Args:
            existing: the adapter to start from, which fits `settings`; None starts a new one.
        """
        self._pipe, self._settings, self._distributed = pipe, settings, distributed
        self._transformer = pipe.transformer.freeze()
        if existing is None:
            self._layers = new_adapter(self._transformer, settings)
        else:
            self._layers = existing_layers(existing, settings)
        add_adapter(self._transformer, self._layers)
        self.loss = training_loss(pipe)
        self._optimizer = make_optimizer(settings)
        self.step: int | None = 0
        self._parameters = TrainableParameters(self._transformer)
        self._states = {path: self._optimizer.initial(p) for path, p in self._parameters.items()}
        mx.eval(self._states)

    def update(self, batches: Iterable[Batch], step: int, agree: Agree) -> float:
        """One update with the mean gradient of some batches.

        Args:
            step: updates done.

        Returns:
            The norm of the gradient.
        """
        losses, gradients = self._accumulated(batches)
        gradients = self._distributed.all_mean(gradients)
        norm = _norm([*gradients.values()]).item()
        agree(losses, norm)
        self._apply(gradients, step, mx.array(min(1, self._settings.clip_norm / (norm + 1e-6))))
        return norm

    def _accumulated(self, batches: Iterable[Batch]) -> tuple[list[mx.array], dict[str, mx.array]]:
        """The losses of the batches, and their mean gradients."""
        share = 1 / self._settings.accumulate
        gradients: dict[str, mx.array] = {}
        losses = []
        for batch in batches:
            batch_losses, found = self.loss.loss_and_gradients(batch)
            losses.append(batch_losses)
            if share < 1:
                found = {path: share * gradient for path, gradient in found.items()}
            gradients = {path: g + gradients[path] if gradients else g for path, g in found.items()}
            mx.eval(gradients)
        return losses, gradients

    def _apply(self, gradients: dict[str, mx.array], step: int, scale: mx.array) -> None:
        """Updates the adapter and the optimizer's states, or neither if that fails."""
        paths = sorted(self._parameters)
        weights, states, _ = self._optimizer.update_all(
            [self._parameters[path] for path in paths],
            [gradients[path] for path in paths],
            [self._states[path] for path in paths],
            step=step,
            numbers=range(len(paths)),
            scale=scale,
        )
        mx.eval(weights, states)
        self.step = None
        self._parameters.update(dict(zip(paths, weights, strict=True)))
        self._states = dict(zip(paths, states, strict=True))
        self.step = step + 1

    def learning_rate(self, step: int) -> float:
        """The learning rate of an update, the first of which is step 0."""
        return self._optimizer.learning_rate(step)

    def checkpoint(self, step: int) -> Checkpoint:
        """What a training goes on from after `step` updates."""
        return Checkpoint(step, dict(self._parameters), flat_states(self._states))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint."""
        mx.eval(checkpoint.weights, checkpoint.optimizer)
        self._parameters.update(checkpoint.weights)
        for path, state in self._states.items():
            state.update({name: checkpoint.optimizer[f"{path}.{name}"] for name in state})
        self.step = checkpoint.step

    def share(self, step: int) -> None:
        """Takes the adapter and the optimizer's state of the main process after `step` updates."""
        own = self.checkpoint(step)
        weights, optimizer = map(self._distributed.broadcast, (own.weights, own.optimizer))
        self.restore(own._replace(weights=weights, optimizer=optimizer))

    def save(self, folder: Path) -> None:
        """Writes the adapter as diffusers and PEFT read it."""
        settings, pipe = self._settings, self._pipe
        # Names of whole paths adapt some of the blocks only.
        targets = settings.targets if set(settings.targets) == self._layers.keys() else None
        save_adapter(
            folder,
            self._layers,
            rank=settings.rank,
            alpha=settings.effective_alpha,
            use_rslora=settings.use_rslora,
            base_model=base_repository(pipe) or published_model(pipe),
            targets=targets,
            others=published_adapters(pipe.adapters),
        )

    def finish(self, folder: Path) -> Path:
        """What the training has made, which `save` has written."""
        return folder


@fused
def _norm(arrays: Sequence[mx.array]) -> mx.array:
    """The Euclidean norm of all arrays together, ``[]``."""
    squares = [mx.square(array.astype(mx.float32)).sum() for array in arrays]
    return mx.sqrt(mx.stack(squares).sum())
