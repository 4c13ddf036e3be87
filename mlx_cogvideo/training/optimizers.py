"""The optimizers of a training, which update one tensor at a time, and their learning rate.

All arithmetic is in float32, whatever the weights and gradients are. Numbers that differ from step
to step are arrays, so that a function is compiled once for each shape.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import mlx.core as mx

from ..nn.fusion import fused
from .rounding import round_stochastically
from .settings import TrainingSettings

State = dict[str, mx.array]
"""What an optimizer keeps of one tensor, by names such as ``m`` and ``v``."""

BETAS, EPS = (0.9, 0.95), 1e-8
"""AdamW's constants, those of the original trainers."""

DECAY_RATE, EPS_OF_SQUARES = -0.8, 1e-30
"""Adafactor's constants, the defaults of transformers."""

AVERAGE, ROWS, COLUMNS = "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"
"""Names of Adafactor's states."""

GROUP, FEWEST_PACKED = 64, 4096
"""Numbers that share a scale in 8 bits, and the smallest tensor whose states are packed."""

PACKED = tuple((name, f"{name}_scales", f"{name}_biases") for name in ("m", "root_v"))
"""Names of packed states."""


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
            The tensor in its dtype, its state, and whether the gradient was finite, a bool ``[]``.
            If it wasn't, or the sum of its squares was not, the tensor and its state are unchanged.
        """
        weight, state, finite = self._update(parameter, gradient, state, step)
        weight = round_stochastically(weight, parameter.dtype, step=step, number=number)
        return weight, state, finite

    @abstractmethod
    def initial(self, parameter: mx.array) -> State:
        """The state before the first update of `parameter`."""

    @abstractmethod
    def _update(
        self, parameter: mx.array, gradient: mx.array, state: State, step: int
    ) -> tuple[mx.array, State, mx.array]:
        """What `update` returns, with the tensor in float32."""

    def _decay(self, step: int) -> mx.array:
        """The part of a weight that its decay takes away."""
        return mx.array(self.learning_rate(step) * self._settings.weight_decay)


class AdamW(Optimizer):
    """AdamW with bias correction.

    An update of n numbers has up to 16 n bytes of temporary arrays, and those of the new state.
    """

    def initial(self, parameter: mx.array) -> State:
        return {name: mx.zeros(parameter.shape, mx.float32) for name in ("m", "v")}

    def _update(
        self, parameter: mx.array, gradient: mx.array, state: State, step: int
    ) -> tuple[mx.array, State, mx.array]:
        finite = mx.isfinite(_squares(gradient).sum())
        corrections = [mx.array(1 - beta ** (step + 1)) for beta in BETAS]
        rate = mx.array(self.learning_rate(step))
        m, v = self._moments(gradient, state, finite)
        if self._settings.is_full:
            rate = _clipped(rate, _squared_change(m, v, *corrections).mean())
        weight = _adamw(parameter, m, v, *corrections, rate, self._decay(step), finite)
        return weight, self._state(m, v, state, finite), finite

    def _moments(
        self, gradient: mx.array, state: State, finite: mx.array
    ) -> tuple[mx.array, mx.array]:
        return _moments(gradient, state["m"], state["v"], finite)

    def _state(self, m: mx.array, v: mx.array, before: State, finite: mx.array) -> State:
        return {"m": m, "v": v}


class AdamW8Bit(AdamW):
    """AdamW that keeps m and the root of v in 8 bits; those of small tensors are float32.

    v itself would need too many bits: the root of a number that is rounded to 0 divides m.
    """

    def initial(self, parameter: mx.array) -> State:
        state = super().initial(parameter)
        fits = parameter.ndim >= 2 and parameter.shape[-1] % GROUP == 0
        return _pack(**state) if fits and parameter.size >= FEWEST_PACKED else state

    def _moments(
        self, gradient: mx.array, state: State, finite: mx.array
    ) -> tuple[mx.array, mx.array]:
        if "v" in state:
            return super()._moments(gradient, state, finite)
        return _moments_from_packed(gradient, *_unpack(state), finite)

    def _state(self, m: mx.array, v: mx.array, before: State, finite: mx.array) -> State:
        if "v" in before:
            return super()._state(m, v, before, finite)
        # Packing what was unpacked could change the last bit.
        return {name: mx.where(finite, new, before[name]) for name, new in _pack(m, v).items()}


class Adafactor(Optimizer):
    """Adafactor with a given learning rate and without a first moment, as in transformers.

    The last two axes share the average squares: their mean over each axis is kept. An update of n
    numbers has up to 8 n bytes of temporary arrays.
    """

    def initial(self, parameter: mx.array) -> State:
        shape = parameter.shape
        if parameter.ndim < 2:
            return {AVERAGE: mx.zeros(shape)}
        return {ROWS: mx.zeros(shape[:-1]), COLUMNS: mx.zeros(shape[:-2] + shape[-1:])}

    def _update(
        self, parameter: mx.array, gradient: mx.array, state: State, step: int
    ) -> tuple[mx.array, State, mx.array]:
        beta = mx.array(1 - (step + 1) ** DECAY_RATE)
        squares, rate = _squares(gradient), mx.array(self.learning_rate(step))
        if AVERAGE in state:
            finite, *scales, average = _average_squares(squares, state[AVERAGE], beta, rate)
            state = {AVERAGE: average}
        else:
            finite, *scales, rows, columns = _factored_squares(
                squares, state[ROWS], state[COLUMNS], beta, rate
            )
            state = {ROWS: rows, COLUMNS: columns}
        weight = _adafactor(parameter, gradient, self._decay(step), finite, *scales)
        return weight, state, finite


def flat_states(states: Mapping[str, State]) -> dict[str, mx.array]:
    """The arrays of many tensors' states, by the tensor's path and their own name."""
    return {
        f"{path}.{name}": array for path, state in states.items() for name, array in state.items()
    }


def make_optimizer(settings: TrainingSettings) -> Optimizer:
    """The optimizer that the settings name."""
    classes = {"adamw": AdamW, "adamw_8bit": AdamW8Bit, "adafactor": Adafactor}
    return classes[settings.effective_optimizer](settings)


@fused
def _squares(gradient: mx.array) -> mx.array:
    return mx.square(gradient.astype(mx.float32))


def _clipped(rate: mx.array, mean_square: mx.array) -> mx.array:
    """The learning rate that clips a change with this mean square."""
    return rate / mx.maximum(1, mx.sqrt(mean_square))


def _moved(parameter: mx.array, change: mx.array, decay: mx.array, finite: mx.array) -> mx.array:
    weight = parameter.astype(mx.float32)
    return mx.where(finite, weight - (decay * weight + change), weight)


def _new_moments(
    gradient: mx.array, m: mx.array, v: mx.array, finite: mx.array
) -> tuple[mx.array, mx.array]:
    gradient = gradient.astype(mx.float32)
    new_m = BETAS[0] * m + (1 - BETAS[0]) * gradient
    new_v = BETAS[1] * v + (1 - BETAS[1]) * mx.square(gradient)
    return mx.where(finite, new_m, m), mx.where(finite, new_v, v)


_moments = fused(_new_moments)


def _change(m: mx.array, v: mx.array, correction_m: mx.array, correction_v: mx.array) -> mx.array:
    return m / correction_m / (mx.sqrt(v / correction_v) + EPS)


@fused
def _squared_change(m: mx.array, v: mx.array, *corrections: mx.array) -> mx.array:
    return mx.square(_change(m, v, *corrections))


@fused
def _adamw(
    parameter: mx.array,
    m: mx.array,
    v: mx.array,
    correction_m: mx.array,
    correction_v: mx.array,
    rate: mx.array,
    decay: mx.array,
    finite: mx.array,
) -> mx.array:
    return _moved(parameter, rate * _change(m, v, correction_m, correction_v), decay, finite)


# |m| is at most this many times the root of v. Both are sums over the gradients, and the
# Cauchy-Schwarz inequality compares them: ((1 - b1) sum b1^k |g_k|)^2 is at most
# (1 - b1)^2 sum (b1^2 / b2)^k sum b2^k g_k^2.
LARGEST_RATIO = (1 - BETAS[0]) / math.sqrt((1 - BETAS[1]) * (1 - BETAS[0] ** 2 / BETAS[1]))

# mx.quantize has no steps below 1e-7, and gradients are often as small. A power of 2 scales them
# without rounding.
MAGNIFIED = 2.0**60


def _pack(m: mx.array, v: mx.array) -> State:
    """Packs m and the root of v in 8 bits, with a scale and a bias for each group of a row."""
    state = {}
    for names, array in zip(PACKED, _magnified(m, v), strict=True):
        state |= zip(names, mx.quantize(array, group_size=GROUP, bits=8), strict=True)
    return state


def _unpack(state: State) -> list[mx.array]:
    """m and the root of v, magnified."""
    arrays = [[state[name] for name in names] for names in PACKED]
    return [mx.dequantize(w, scales, biases, GROUP, 8) for w, scales, biases in arrays]


@fused
def _magnified(m: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
    return m * MAGNIFIED, mx.sqrt(v) * MAGNIFIED


@fused
def _moments_from_packed(
    gradient: mx.array, m: mx.array, root_v: mx.array, finite: mx.array
) -> tuple[mx.array, mx.array]:
    m = m / MAGNIFIED
    # A small root beside large ones of its group is rounded to 0, and m perhaps is not. With the
    # ratio that float32 has at most, the next change stays within float32's bound, too.
    root = mx.maximum(root_v / MAGNIFIED, mx.abs(m) / LARGEST_RATIO)
    return _new_moments(gradient, m, mx.square(root), finite)


@fused
def _factored_squares(
    squares: mx.array, rows: mx.array, columns: mx.array, beta: mx.array, rate: mx.array
) -> list[mx.array]:
    """Averages of squares ``[..., rows, columns]`` over each of the last two axes, and over steps.

    Returns:
        Whether the squares are finite; factors by which the gradient becomes the change of the
        weight, for its rows ``[..., rows, 1]`` and its columns ``[..., 1, columns]``; and the new
        averages over the columns and over the rows.
    """
    row_means, column_means = squares.mean(-1), squares.mean(-2)
    finite = mx.isfinite(row_means.sum() + column_means.sum())
    rows = _average(rows, row_means, beta, finite)
    columns = _average(columns, column_means, beta, finite)
    row_factor, column_factor = rows.mean(-1, keepdims=True) / rows, 1 / columns
    # The mean square of the change, without an array of the changes.
    mean_square = (row_factor * (squares @ column_factor[..., None])[..., 0]).mean()
    row_scale = _clipped(rate, mean_square) * mx.sqrt(row_factor)
    column_scale = mx.sqrt(column_factor)
    return [finite, row_scale[..., None], column_scale[..., None, :], rows, columns]


@fused
def _average_squares(
    squares: mx.array, average: mx.array, beta: mx.array, rate: mx.array
) -> list[mx.array]:
    """`_factored_squares` of a tensor that isn't factored: one factor and average per number."""
    finite = mx.isfinite(squares.sum())
    average = _average(average, squares, beta, finite)
    rate = _clipped(rate, (squares / average).mean())
    return [finite, rate * mx.rsqrt(average), average]


def _average(before: mx.array, squares: mx.array, beta: mx.array, finite: mx.array) -> mx.array:
    new = beta * before + (1 - beta) * (squares + EPS_OF_SQUARES)
    return mx.where(finite, new, before)


@fused
def _adafactor(
    parameter: mx.array,
    gradient: mx.array,
    decay: mx.array,
    finite: mx.array,
    *scales: mx.array,
) -> mx.array:
    return _moved(parameter, math.prod(scales, start=gradient.astype(mx.float32)), decay, finite)
