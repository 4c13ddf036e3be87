"""The weights of a transformer in training: their update, their checkpoint and the model folder.

Each block is updated as soon as its gradients are there, so that memory holds those of one block. A
norm over all gradients isn't known by then. The update of each tensor is clipped instead.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoints.finetuned import save_finetuned
from ..checkpoints.model_folder import ModelFolder
from ..distributed import Distributed
from ..errors import InvalidInputError, OutputError
from ..files import absolute
from ..nn.low_rank import fuse_adapters
from ..nn.quantization import QuantizedLinear
from ..nn.transformer import CogVideoXTransformer3DModel
from ..pipeline.pipeline import CogVideoXPipeline
from .checkpoint import MODEL, OTHER_FOLDER, TRANSFORMER, Checkpoint
from .loss import Batch, training_loss
from .optimizer_base import State, flat_states
from .optimizers import make_optimizer
from .parameters import TrainableParameters
from .settings import TrainingSettings
from .trained_adapter import Agree

QUANTIZED = "a quantized model can't be trained as a whole: take the original, or train an adapter"


class TrainedModel:
    """A transformer whose weights are trained, all or some of them, and its optimizer.

    Attributes:
        loss: computes the loss and its gradients.
        step: updates that the weights have had; None while one changes them, or has failed.
    """

    def __init__(
        self, pipe: CogVideoXPipeline, settings: TrainingSettings, distributed: Distributed
    ):
        """Prepares the pipeline's transformer, into which its adapters are fused.

        Raises:
            InvalidInputError: it is quantized, or has no weights that the settings choose.
        """
        self._pipe, self._distributed = pipe, distributed
        self._transformer = pipe.transformer
        fuse_adapters(self._transformer)
        unfreeze_only(self._transformer, settings.train_layers)
        self.loss = training_loss(pipe)
        self.step: int | None = 0
        self._optimizer = make_optimizer(settings)
        trained = self._parameters = TrainableParameters(self._transformer)
        self._numbers = {path: number for number, path in enumerate(sorted(trained))}
        self._masters: dict[str, mx.array] = {}
        if settings.master_weights:
            self._masters = {path: array.astype(mx.float32) for path, array in trained.items()}
        self._states: dict[str, State] = {
            path: self._optimizer.initial(array) for path, array in trained.items()
        }
        mx.eval(self._masters, self._states)

    def _weight(self, path: str) -> mx.array:
        """A weight that is trained: its float32 master if it has one."""
        return self._masters.get(path, self._parameters[path])

    def _set(self, path: str, weight: mx.array) -> mx.array:
        """Changes a weight, and returns it in the type of the transformer."""
        if path in self._masters:
            self._masters[path] = weight
        self._parameters[path] = weight.astype(self._parameters[path].dtype)
        return self._parameters[path]

    def update(self, batches: Iterable[Batch], step: int, agree: Agree) -> float:
        """One update with the mean gradient of some batches.

        Args:
            step: updates done.

        Returns:
            The norm of the gradient; infinite or NaN if a gradient was. The weights are then those
            of no step.
        """
        passes = [self.loss.forward(batch) for batch in batches]
        agree([each.losses for each in passes], None)
        self.step = None
        squares, running = [], []
        for gradients in self.loss.backward(passes):
            mx.eval(running)  # one block's gradients at a time
            running = self._apply(self._distributed.all_mean(gradients), step)
            squares += [running.pop()]
            mx.async_eval(running, squares[-1])
            del gradients
        norm = mx.sqrt(mx.stack(squares).sum()).item()
        if norm < inf:
            self.step = step + 1
        return norm

    def _apply(self, gradients: dict[str, mx.array], step: int) -> list[mx.array]:
        """Updates the parameters of these gradients.

        Returns:
            The new arrays, and last the sum of the squares of the gradients.
        """
        paths = sorted(gradients)
        weights, states, square = self._optimizer.update_all(
            [self._weight(path) for path in paths],
            [gradients.pop(path) for path in paths],
            [self._states[path] for path in paths],
            step=step,
            numbers=[self._numbers[path] for path in paths],
        )
        self._states.update(zip(paths, states, strict=True))
        in_use = [self._set(path, new) for path, new in zip(paths, weights, strict=True)]
        arrays = [array for state in states for array in state.values()]
        return [*arrays, *weights, *in_use, square]

    def learning_rate(self, step: int) -> float:
        """The learning rate of an update, the first of which is step 0."""
        return self._optimizer.learning_rate(step)

    def checkpoint(self, step: int) -> Checkpoint:
        """What a training goes on from after `step` updates."""
        weights = {path: self._weight(path) for path in self._parameters}
        return Checkpoint(step, weights, flat_states(self._states), TRANSFORMER)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint. Memory: an array of it at a time, if it isn't read yet."""
        for path, state in self._states.items():
            mx.eval(self._set(path, checkpoint.weights[path]), self._masters.get(path))
            for name in state:
                state[name] = checkpoint.optimizer[f"{path}.{name}"]
            mx.eval(state)
        self.step = checkpoint.step

    def share(self, step: int) -> None:
        """Takes the weights and states of the main process after `step` updates.

        Memory: an array at a time.
        """
        for path, state in self._states.items():
            shared = self._distributed.broadcast({**state, path: self._weight(path)})
            mx.eval(self._set(path, shared.pop(path)), self._masters.get(path))
            self._states[path] = shared
        self.step = step

    def save(self, folder: Path) -> None:
        """Writes nothing beside the checkpoint: the model folder is as large."""

    def finish(self, folder: Path) -> Path:
        """Writes the model folder, and returns it."""
        save_finetuned(folder / MODEL, self._pipe, self._transformer)
        return folder / MODEL


def check_full_training(pipe: ModelFolder, settings: TrainingSettings, folder: Path) -> None:
    """Checks that the weights of a model can be trained, before any of them is read.

    Args:
        folder: of the training.

    Raises:
        InvalidInputError: they are quantized, or none of them match a pattern of the settings.
        OutputError: the folder is inside of the model.
    """
    if pipe.is_packed("transformer"):
        raise InvalidInputError(QUANTIZED)
    chosen(pipe.stored["transformer"], settings.train_layers)
    for source in (pipe.folder, *([pipe.base.folder] if pipe.base else [])):
        # Another training may have made the model, and will replace it as a whole.
        if absolute(folder).is_relative_to(source.resolve()):
            raise OutputError(f"{folder} is inside of the model {source}: {OTHER_FOLDER}")


def unfreeze_only(
    transformer: CogVideoXTransformer3DModel, patterns: tuple[str, ...] | None
) -> None:
    """Freezes all parameters of a transformer but those whose paths match a pattern; None is all.

    Raises:
        InvalidInputError: a pattern matches nothing, or layers are quantized.
    """
    if any(isinstance(module, QuantizedLinear) for module in transformer.modules()):
        raise InvalidInputError(QUANTIZED)
    transformer.freeze()
    trained = chosen(dict(tree_flatten(transformer.parameters())), patterns)
    modules = dict(transformer.named_modules())
    for path in trained:
        owner, _, name = path.rpartition(".")
        modules[owner].unfreeze(recurse=False, keys=[name])


def chosen(paths: Iterable[str], patterns: tuple[str, ...] | None) -> list[str]:
    """The paths of parameters that match one of the patterns; None is all.

    Raises:
        InvalidInputError: a pattern matches nothing.
    """
    paths = list(paths)
    if patterns is None:
        return paths
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise InvalidInputError(
                f"--train-layers {pattern} matches no weight: their paths are such as "
                f"{paths[0]} and {paths[-1]}"
            )
    return [path for path in paths if any(fnmatchcase(path, each) for each in patterns)]
