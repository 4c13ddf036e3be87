"""The optimizers of a training, which update one tensor at a time, and their learning rate."""

import math
from abc import ABC, abstractmethod

import mlx.core as mx

from .settings import TrainingSettings

State = dict[str, mx.array]
"""What an optimizer keeps of one tensor, by names such as ``m`` and ``v``."""

BETAS, EPS = (0.9, 0.95), 1e-8
"""AdamW's constants, those of the original trainers."""


class Optimizer(ABC):
    """Updates tensors, each as soon as its gradient is there."""

    def __init__(self, settings: TrainingSettings):
        self._settings = settings

    def learning_rate(self, step: int) -> float:
        """The learning rate of an update; the first update is `step` 0."""
        settings = self._settings
        rate, warmup = settings.effective_learning_rate, min(settings.warmup, settings.iters // 2)
        if step < warmup:
            return rate * (1 + step * (warmup - 1) / warmup) / warmup
        if settings.schedule == "constant":
            return rate
        length = max(settings.iters - warmup, 1)
        return rate * 0.5 * (1 + math.cos(math.pi * min((step - warmup) / length, 1)))

    @abstractmethod
    def initial(self, parameter: mx.array) -> State:
        """The state before the first update of `parameter`."""

    @abstractmethod
    def update(
        self, parameter: mx.array, gradient: mx.array, state: State, *, step: int, number: int
    ) -> tuple[mx.array, State, mx.array]:
        """Updates one tensor, in float32 arithmetic.

        Args:
            parameter: in 16 bits or float32; the result has its dtype. 16-bit results are rounded
                stochastically.
            gradient: in 16 bits or float32.
            step: number of updates before this one.
            number: number of the tensor among those that are trained. The random bits of the
                rounding depend on it and on `step`.

        Returns:
            The updated tensor, its state, and the sum of the squares of the gradient, ``[]``. If
            that isn't finite, the tensor and its state are unchanged.
        """


class AdamW(Optimizer):
    """AdamW with bias correction."""

    def initial(self, parameter: mx.array) -> State:
        return {name: mx.zeros(parameter.shape, mx.float32) for name in ("m", "v")}

    def update(
        self, parameter: mx.array, gradient: mx.array, state: State, *, step: int, number: int
    ) -> tuple[mx.array, State, mx.array]:
        rate, g = self.learning_rate(step), gradient.astype(mx.float32)
        squares = mx.square(g).sum()
        finite = mx.isfinite(squares)
        m = BETAS[0] * state["m"] + (1 - BETAS[0]) * g
        v = BETAS[1] * state["v"] + (1 - BETAS[1]) * mx.square(g)
        corrections = [1 - beta ** (step + 1) for beta in BETAS]
        change = m / corrections[0] / (mx.sqrt(v / corrections[1]) + EPS)
        if self._settings.is_full:
            change /= mx.maximum(1, mx.sqrt(mx.square(change).mean()))
        weight = parameter.astype(mx.float32) * (1 - rate * self._settings.weight_decay)
        weight = (weight - rate * change).astype(parameter.dtype)
        state = {"m": mx.where(finite, m, state["m"]), "v": mx.where(finite, v, state["v"])}
        return mx.where(finite, weight, parameter), state, squares


def make_optimizer(settings: TrainingSettings) -> Optimizer:
    """The optimizer that the settings name."""
    return AdamW(settings)
