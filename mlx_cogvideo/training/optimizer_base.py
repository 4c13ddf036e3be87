"""The base of the optimizers: the learning rate, and updates of one tensor or of many."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import mlx.core as mx

from ..nn.eval_schedule import PUSH_ELEMENTS, EvalSchedule
from ..nn.fusion import fused
from .rounding import round_stochastically, seed
from .settings import TrainingSettings

State = dict[str, mx.array]
"""What an optimizer keeps of one tensor, by names such as ``m`` and ``v``."""

AT_A_TIME = 2**24
"""Numbers of small tensors that are updated at a time."""


class Optimizer(ABC):
    """Updates tensors, each as soon as its gradient is there."""

    def __init__(self, settings: TrainingSettings):
        self._settings = settings
        self._compiled = fused(self._update_all)

    def learning_rate(self, step: int) -> float:
        """The learning rate of an update; the first update is `step` 0."""
        settings = self._settings
        rate, warmup = settings.effective_learning_rate, min(settings.warmup, settings.iters // 2)
        if step < warmup:
            return rate * (1 + step * (warmup - 1) / warmup) / warmup
        if settings.schedule == "constant":
            return rate
        done = (step - warmup) / max(settings.iters - warmup, 1)
        return rate * 0.5 * (1 + math.cos(math.pi * min(done, 1)))

    def update(
        self, parameter: mx.array, gradient: mx.array, state: State, *, step: int, number: int
    ) -> tuple[mx.array, State, mx.array]:
        """Updates one tensor.

        A full training has no norm over all gradients. It clips the change of each tensor, before
        the learning rate, to a root mean square of 1. Adafactor always does.

        Args:
            parameter: float32, bfloat16 or float16. An update in 16 bits is rounded
                stochastically.
            gradient: float32, bfloat16 or float16.
            step: number of updates before this one.
            number: number of the tensor among those that are trained. The random bits of the
                rounding depend on it and on `step`.

        Returns:
            The tensor in its dtype, its state, and the sum of the squares of the gradient, float32
            ``[]``. If the sum is NaN or infinite, the tensor and its state are unchanged.
        """
        (parameter,), (state,), square = self._update_all(
            [parameter], [gradient], [state], self._numbers(step), [seed(step, number)]
        )
        return parameter, state, square

    def update_all(
        self,
        parameters: list[mx.array],
        gradients: list[mx.array],
        states: list[State],
        *,
        step: int,
        numbers: Sequence[int],
        scale: mx.array | None = None,
    ) -> tuple[list[mx.array], list[State], mx.array]:
        """Updates several tensors as `update` does, in functions that are compiled on a GPU.

        Memory, beside the new tensors and states: that of `AT_A_TIME` numbers, or of one tensor.

        Args:
            scale: factor of the gradients, ``[]``.

        Returns:
            The tensors, their states, and the sum of the squares of all gradients. Not all of them
            are evaluated yet.
        """
        schedule, constants = EvalSchedule(prefetch=0), self._numbers(step)
        seeds = [seed(step, number) for number in numbers]
        scales = [] if scale is None else [scale]
        new, new_states, total = [], [], mx.array(0.0)
        for part in _parts([parameter.size for parameter in parameters]):
            found, states_found, square = self._compiled(
                parameters[part], gradients[part], states[part], constants, seeds[part], *scales
            )
            arrays = [array for state in states_found for array in state.values()]
            total = schedule.hold(total + square)
            schedule.push_all([*arrays, *found], PUSH_ELEMENTS)
            new += found
            new_states += states_found
            gradients[part] = [total] * len(found)  # frees them
        return new, new_states, total

    def _update_all(
        self,
        parameters: list[mx.array],
        gradients: list[mx.array],
        states: list[State],
        numbers: State,
        seeds: list[mx.array],
        *scales: mx.array,
    ) -> tuple[list[mx.array], list[State], mx.array]:
        new, new_states, total = [], [], mx.array(0.0)
        for parameter, gradient, state, its_seed in zip(
            parameters, gradients, states, seeds, strict=True
        ):
            for scale in scales:
                gradient = gradient * scale
            weight, state, square = self._update(parameter, gradient, state, numbers)
            new.append(round_stochastically(weight, parameter.dtype, its_seed))
            new_states.append(state)
            total = total + square
        return new, new_states, total

    @abstractmethod
    def initial(self, parameter: mx.array) -> State:
        """The state before the first update of `parameter`."""

    @abstractmethod
    def _update(
        self, parameter: mx.array, gradient: mx.array, state: State, numbers: State
    ) -> tuple[mx.array, State, mx.array]:
        """What `update` returns, with the tensor in float32.

        Args:
            numbers: those of `_numbers`.
        """

    def _numbers(self, step: int) -> State:
        """The numbers that differ from step to step: the rate, and the part of a weight that its
        decay takes away."""
        rate = self.learning_rate(step)
        return {"rate": mx.array(rate), "decay": mx.array(rate * self._settings.weight_decay)}


def _parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Divides tensors of these sizes into consecutive parts of up to `AT_A_TIME` numbers."""
    first = total = 0
    for i, size in enumerate(sizes):
        if i > first and total + size > AT_A_TIME:
            yield slice(first, i)
            first, total = i, 0
        total += size
    yield slice(first, len(sizes))


def flat_states(states: Mapping[str, State]) -> dict[str, mx.array]:
    """The arrays of many tensors' states, by the tensor's path and their own name."""
    return {
        f"{path}.{name}": array for path, state in states.items() for name, array in state.items()
    }


@fused
def squares_of(gradient: mx.array) -> mx.array:
    # The gradient itself is converted where it moves the weight. MLX would do both at once, and
    # write a float32 copy of it to memory.
    return mx.square(mx.abs(gradient).astype(mx.float32))


def clipped(rate: mx.array, mean_square: mx.array) -> mx.array:
    """The learning rate that clips a change with this mean square."""
    return rate / mx.maximum(1, mx.sqrt(mean_square))


def moved(parameter: mx.array, change: mx.array, decay: mx.array, finite: mx.array) -> mx.array:
    weight = parameter.astype(mx.float32)
    return mx.where(finite, weight - (decay * weight + change), weight)
