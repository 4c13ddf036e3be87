"""The optimizers of a training, which update one tensor at a time.

All arithmetic is in float32, whatever the weights and gradients are. Numbers that differ from step
to step are arrays, so that a function is compiled once for each shape.
"""

import math

import mlx.core as mx

from ..nn.fusion import fused
from .optimizer_base import Optimizer, State, clipped, moved, squares_of
from .packed_moments import can_pack, pack, unpack
from .settings import TrainingSettings

BETAS, EPS = (0.9, 0.95), 1e-8
"""AdamW's constants, those of the original trainers."""

DECAY_RATE, EPS_OF_SQUARES = -0.8, 1e-30
"""Adafactor's constants, the defaults of transformers."""

AVERAGE, ROWS, COLUMNS = "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"
"""Names of Adafactor's states."""


class AdamW(Optimizer):
    """AdamW with bias correction.

    Memory of an update, beside the new tensor and its state: 16 bytes a number, 20 if the tensor is
    float16.
    """

    def initial(self, parameter: mx.array) -> State:
        return {name: mx.zeros(parameter.shape, mx.float32) for name in ("m", "v")}

    def _numbers(self, step: int) -> State:
        corrections = [mx.array(1 - beta ** (step + 1)) for beta in BETAS]
        ratio = mx.array(largest_ratio(max(step, 1)))
        names = ("correction_m", "correction_v", "ratio")
        return super()._numbers(step) | dict(zip(names, [*corrections, ratio], strict=True))

    def _update(
        self, parameter: mx.array, gradient: mx.array, state: State, numbers: State
    ) -> tuple[mx.array, State, mx.array]:
        squares = squares_of(gradient)
        square = squares.sum()
        finite, rate = mx.isfinite(square), numbers["rate"]
        corrections = numbers["correction_m"], numbers["correction_v"]
        m, v = _new_moments(gradient, squares, *self._moments(state, numbers["ratio"]), finite)
        if self._settings.is_full:
            rate = clipped(rate, _squared_change(m, v, *corrections).mean())
        weight = _adamw(parameter, m, v, *corrections, rate, numbers["decay"], finite)
        return weight, self._new_state(m, v, state, finite), square

    def _moments(self, state: State, ratio: mx.array) -> tuple[mx.array, mx.array]:
        """m and v in float32; `ratio` is the `largest_ratio` of their updates."""
        return state["m"], state["v"]

    def _new_state(self, m: mx.array, v: mx.array, before: State, finite: mx.array) -> State:
        return {"m": m, "v": v}


def largest_ratio(updates: int) -> float:
    """The largest |m| / √v that AdamW can have after some updates.

    m and v are sums over the gradients g, the last of which is number 0. The Cauchy-Schwarz
    inequality bounds m² = (1 - b1)² (Σ b1ᵏ gₖ)² by (1 - b1)² Σ (b1² / b2)ᵏ Σ b2ᵏ gₖ².
    """
    b1, b2 = BETAS
    ratio = b1**2 / b2
    return (1 - b1) * math.sqrt((1 - ratio**updates) / ((1 - b2) * (1 - ratio)))


class AdamW8Bit(AdamW):
    """AdamW that keeps its moments in 8 bits; those of small tensors are float32.

    Memory of an update, beside the new tensor and its state: about 24 bytes a number on a GPU.
    """

    def initial(self, parameter: mx.array) -> State:
        state = super().initial(parameter)
        return pack(**state) if can_pack(parameter) else state

    def _moments(self, state: State, ratio: mx.array) -> tuple[mx.array, mx.array]:
        return super()._moments(state, ratio) if "v" in state else unpack(state, ratio)

    def _new_state(self, m: mx.array, v: mx.array, before: State, finite: mx.array) -> State:
        if "v" in before:
            return super()._new_state(m, v, before, finite)
        # Packing what was unpacked could change the last bit.
        return {name: mx.where(finite, new, before[name]) for name, new in pack(m, v).items()}


class Adafactor(Optimizer):
    """Adafactor with a given learning rate and without a first moment, as in transformers.

    The average squares are factored over the last two axes: their mean over each axis is kept.
    Memory of an update, beside the new tensor: 8 bytes a number, 12 if the tensor is float16.
    """

    def initial(self, parameter: mx.array) -> State:
        shape = parameter.shape
        if parameter.ndim < 2:
            return {AVERAGE: mx.zeros(shape)}
        return {ROWS: mx.zeros(shape[:-1]), COLUMNS: mx.zeros(shape[:-2] + shape[-1:])}

    def _numbers(self, step: int) -> State:
        return super()._numbers(step) | {"beta": mx.array(1 - (step + 1) ** DECAY_RATE)}

    def _update(
        self, parameter: mx.array, gradient: mx.array, state: State, numbers: State
    ) -> tuple[mx.array, State, mx.array]:
        beta, rate, squares = numbers["beta"], numbers["rate"], squares_of(gradient)
        if AVERAGE in state:
            square, *scales, average = _average_squares(squares, state[AVERAGE], beta, rate)
            state = {AVERAGE: average}
        else:
            square, *scales, rows, columns = _factored_squares(
                squares, state[ROWS], state[COLUMNS], beta, rate
            )
            state = {ROWS: rows, COLUMNS: columns}
        weight = _adafactor(parameter, gradient, numbers["decay"], mx.isfinite(square), *scales)
        return weight, state, square


def make_optimizer(settings: TrainingSettings) -> Optimizer:
    """The optimizer that the settings name."""
    classes = {"adamw": AdamW, "adamw_8bit": AdamW8Bit, "adafactor": Adafactor}
    return classes[settings.effective_optimizer](settings)


@fused
def _new_moments(
    gradient: mx.array, squares: mx.array, m: mx.array, v: mx.array, finite: mx.array
) -> tuple[mx.array, mx.array]:
    new_m = BETAS[0] * m + (1 - BETAS[0]) * gradient.astype(mx.float32)
    new_v = BETAS[1] * v + (1 - BETAS[1]) * squares
    return mx.where(finite, new_m, m), mx.where(finite, new_v, v)


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
    return moved(parameter, rate * _change(m, v, correction_m, correction_v), decay, finite)


@fused
def _factored_squares(
    squares: mx.array, rows: mx.array, columns: mx.array, beta: mx.array, rate: mx.array
) -> list[mx.array]:
    """Averages of squares ``[..., rows, columns]`` over each of the last two axes, and over steps.

    Returns:
        The sum of the squares; factors that turn the gradient into the change of the weight, for
        its rows ``[..., rows, 1]`` and its columns ``[..., 1, columns]``; and the new averages of
        its rows and columns.
    """
    row_sums, (height, width) = squares.sum(-1), squares.shape[-2:]
    square = row_sums.sum()
    rows = _average(rows, row_sums / width, beta, square)
    columns = _average(columns, squares.sum(-2) / height, beta, square)
    row_factor, column_factor = rows.mean(-1, keepdims=True) / rows, 1 / columns
    # The mean square of the change, without an array of the changes.
    row_squares = (squares @ column_factor[..., None])[..., 0] / width
    mean_square = (row_factor * row_squares).mean()
    row_scale = clipped(rate, mean_square) * mx.sqrt(row_factor)
    column_scale = mx.sqrt(column_factor)
    return [square, row_scale[..., None], column_scale[..., None, :], rows, columns]


@fused
def _average_squares(
    squares: mx.array, average: mx.array, beta: mx.array, rate: mx.array
) -> list[mx.array]:
    """`_factored_squares` of a tensor that isn't factored: a factor and an average per number."""
    square = squares.sum()
    average = _average(average, squares, beta, square)
    rate = clipped(rate, (squares / average).mean())
    return [square, rate * mx.rsqrt(average), average]


def _average(before: mx.array, squares: mx.array, beta: mx.array, total: mx.array) -> mx.array:
    new = beta * before + (1 - beta) * (squares + EPS_OF_SQUARES)
    return mx.where(mx.isfinite(total), new, before)


@fused
def _adafactor(
    parameter: mx.array,
    gradient: mx.array,
    decay: mx.array,
    finite: mx.array,
    *scales: mx.array,
) -> mx.array:
    return moved(parameter, math.prod(scales, start=gradient.astype(mx.float32)), decay, finite)
