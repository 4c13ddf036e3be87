"""Validates a training at fixed noise and timesteps, and knows its best step."""

import logging
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from ..errors import GenerationError
from .batches import Batches
from .checkpoint import Best
from .log import TRAINING
from .loss import Batch

logger = logging.getLogger(__name__)


class Validation:
    """The validation of a training.

    Attributes:
        best: the step with the lowest loss on held-out clips so far.
    """

    def __init__(self, batches: Batches, loss: Callable[[Batch], mx.array], clips: str):
        """
        Args:
            loss: computes the mean loss of a batch.
            clips: digest of the clips that are held out.
        """
        self._batches, self._loss, self._clips = batches, loss, clips
        self.best: Best | None = None

    def row(self, step: int) -> dict[str, float]:
        """The losses after a step, as the log has them: they fall when the training learns.

        The loss of a step, at a random timestep, doesn't show that. Where clips are held out,
        ``validation`` is their loss and ``training_validation`` that of clips that are learned.
        The first keeps falling only if the training learns what is common to both. Where none are
        held out, ``validation`` is the loss of clips that are learned.

        Raises:
            GenerationError: a loss is NaN or infinite.
        """
        if not self._batches.holds_out:
            return {"validation": self._mean(step, held_out=False)}
        held_out, learned = (self._mean(step, held_out=which) for which in (True, False))
        if self.best is None or held_out < self.best.validation:
            self.best = Best(step, held_out, self._clips)
        return {"validation": held_out, TRAINING: learned}

    def is_best(self, step: int) -> bool:
        return self.best is not None and self.best.step == step

    def resume(self, best: Best | None) -> None:
        """Continues with the best step that a checkpoint records."""
        if best and self._batches.holds_out and best.clips != self._clips:
            logger.warning(
                "the held-out clips differ from those of step %d, the best one so far: the best "
                "step is chosen anew",
                best.step,
            )
            best = None
        self.best = best

    def _mean(self, step: int, *, held_out: bool) -> float:
        losses = [self._loss(batch).item() for batch in self._batches.validation(held_out=held_out)]
        if not np.isfinite(losses).all():
            raise GenerationError(
                f"the validation loss after step {step} is {np.mean(losses)}: try a lower learning "
                "rate, or another dtype"
            )
        return float(np.mean(losses))
