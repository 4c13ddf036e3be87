"""The gradients of a block of the transformer, in bounded memory.

Everything in a block but attention treats each token by itself. The gradients of these pieces are
taken for some tokens at a time; attention between them has a backward of its own. All arrays go
through an evaluation schedule, so that no lazy graph holds its temporaries.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..nn import attention_backward
from ..nn.eval_schedule import LAZY, PUSH_ELEMENTS, EvalSchedule, RecordedSchedule, replay
from ..nn.fusion import fused
from ..nn.modulation import gated_residual
from ..nn.transformer import BlockContext, CogVideoXBlock
from .parameters import TrainableParameters

WIDE_ELEMENTS = 5 * 2**23
"""Elements of the feed-forward part's wide layer whose gradients are taken at a time."""

TEMB = "temb"
"""The time embedding's name among the gradients of a piece."""

Piece = Callable[..., Sequence[mx.array]]
Gradients = dict[str, mx.array]


def _to_attend(
    block: CogVideoXBlock, context: BlockContext, x: mx.array, schedule: EvalSchedule = LAZY
) -> Sequence[mx.array]:
    """Queries, keys and values."""
    modulation = block.norm1.modulation(context.temb)
    modulated = block.norm1(x, context.is_text, modulation, schedule)
    return block.attn1.queries_keys_values(modulated, context.rotation, schedule)


def _add_attention(
    block: CogVideoXBlock, context: BlockContext, x: mx.array, attended: mx.array
) -> Sequence[mx.array]:
    gates = block.norm1.modulation(context.temb).gates
    return [gated_residual(x, block.attn1.project(attended), context.is_text, *gates)]


def _feed_forward(block: CogVideoXBlock, context: BlockContext, x: mx.array) -> Sequence[mx.array]:
    return [block.feed_forward(x, context)]


PIECES: dict[Piece, tuple[str, ...]] = {
    _to_attend: ("norm1.", "attn1.to_q.", "attn1.to_k.", "attn1.to_v.", "attn1.norm_", TEMB),
    _add_attention: ("norm1.", "attn1.to_out.", TEMB),
    _feed_forward: ("norm2.", "ff.", TEMB),
}
"""The pieces that treat each token by itself, and the beginnings of their parameters' names."""


class BlockGradients(NamedTuple):
    """The gradients of a block.

    Attributes:
        parameters: of the trainable parameters, by their paths.
        x: of the block's input.
        temb: of the time embedding, or None.
    """

    parameters: Gradients
    x: mx.array
    temb: mx.array | None


class BlockBackward:
    """Takes the gradients of a block. The block's frozen weights must not change."""

    def __init__(self, block: CogVideoXBlock, *, with_temb: bool = False):
        """`with_temb` takes the gradient of the time embedding, too."""
        self._block, self._with_temb = block, with_temb
        self._parameters = TrainableParameters(block)
        # Compiled as a whole: inside a gradient, MLX undoes the compilation of single functions.
        self._gradients_of = {piece: fused(partial(_gradients, block, piece)) for piece in PIECES}
        self._traced = fused(self._trace)
        self._elements: dict[tuple[int, ...], list[int]] = {}

    # Not `__call__`, which holds its arguments until it returns: `cotangent` couldn't be freed.
    def gradients(
        self, x: mx.array, context: BlockContext, cotangent: mx.array, schedule: EvalSchedule
    ) -> BlockGradients:
        """The gradients of ``block(x, context)``.

        Memory: a dozen arrays as large as `x`, the parts of the wide layer, and tables of scores:
        a few of `SCORES_AT_A_TIME`, or in Metal's own backward about three of 1024 x 1024 for each
        head of each clip.

        Args:
            x: ``[B, tokens, dim]``.
            cotangent: the gradient of the block's output.
            schedule: the evaluation schedule that they are part of.
        """
        parameters = dict(self._parameters)
        if self._with_temb:
            parameters[TEMB] = context.temb
        if attention_backward.has_own_backward(x.dtype):
            # Arrays of a function that MLX differentiates keep their inputs until it ends. They are
            # evaluated after that, in the same order.
            shape = x.shape
            arrays, found, of_x = self._traced(parameters, context, x, cotangent)
            del x, cotangent
            replay(arrays, self._elements[shape], schedule)
        else:
            found, of_x = self._run(parameters, context, x, cotangent, schedule)
        of_temb = found.pop(TEMB, None)
        return BlockGradients(found, of_x, of_temb)

    def _trace(
        self, parameters: Gradients, context: BlockContext, x: mx.array, cotangent: mx.array
    ) -> tuple[list[mx.array], Gradients, mx.array]:
        """`_run` without evaluation.

        Returns:
            The arrays to evaluate, in order, and the gradients.
        """
        recorded = RecordedSchedule()
        own = {name: array for name, array in parameters.items() if name != TEMB}
        with _updated(self._block, own):
            found, of_x = self._run(parameters, context, x, cotangent, recorded)
        self._elements[x.shape] = recorded.elements
        return recorded.arrays, found, of_x

    def _run(
        self,
        parameters: Gradients,
        context: BlockContext,
        x: mx.array,
        cotangent: mx.array,
        schedule: EvalSchedule,
    ) -> tuple[Gradients, mx.array]:
        """The gradients of the parameters, and of `x`."""
        block, found, residuals = self._block, {}, []
        cotangents = [cotangent]
        del cotangent
        take = partial(self._take, parameters, context, schedule, found)
        queries, keys, values = _to_attend(block, context, x, schedule)

        def of_attended(attended: mx.array) -> mx.array:
            between = schedule.push(*_add_attention(block, context, x, attended))
            (cotangent,) = take(_feed_forward, [between], [cotangents.pop()])
            del between
            residual, cotangent = take(_add_attention, [x, attended], [cotangent])
            residuals.append(residual)
            return cotangent

        of_heads = attention_backward.attention_gradients(
            queries, keys, schedule.hold(values), of_attended, schedule
        )
        of_heads = schedule.push_all(of_heads)
        del queries, keys, values
        (of_x,) = take(_to_attend, [x], of_heads)
        return found, schedule.push(of_x + residuals.pop())

    def _take(
        self,
        parameters: dict[str, mx.array],
        context: BlockContext,
        schedule: EvalSchedule,
        gradients: Gradients,
        piece: Piece,
        inputs: Sequence[mx.array],
        cotangents: Sequence[mx.array],
    ) -> list[mx.array]:
        """The gradients of a piece's inputs; those of its parameters are added to `gradients`.

        Args:
            parameters: all trainable parameters of the block, and the time embedding if its
                gradient is taken.
            gradients: the gradients of parameters that have been found so far.
            inputs, cotangents: arrays whose last axis but one is the tokens.
        """
        own = {name: p for name, p in parameters.items() if name.startswith(PIECES[piece])}
        batch, tokens, dim = inputs[0].shape
        count = ceil(4 * batch * tokens * dim / WIDE_ELEMENTS)
        parts = []
        for i in range(count):
            first, end = (k * tokens // count for k in (i, i + 1))
            of_parameters, of_inputs = self._gradients_of[piece](
                own,
                context.of_rows(first, end),
                [x[..., first:end, :] for x in inputs],
                [g[..., first:end, :] for g in cotangents],
            )
            for name, gradient in of_parameters.items():
                if name in gradients:
                    # Without the dependency a compilation fuses the additions of all parts, and the
                    # first part's gradients can only be evaluated together with those of the last.
                    gradient = mx.depends(gradients[name], of_inputs) + gradient
                gradients[name] = schedule.hold(gradient)
            # Each of several parts is a piece of the evaluation, though it may be a bit too small.
            wide = 4 * batch * (end - first) * dim if count == 1 else PUSH_ELEMENTS
            parts.append(schedule.push_all(of_inputs, wide))
        whole = [mx.concatenate(arrays, axis=-2) for arrays in zip(*parts, strict=True)]
        return schedule.push_all(whole)


def _gradients(
    block: CogVideoXBlock,
    piece: Piece,
    parameters: dict[str, mx.array],
    context: BlockContext,
    inputs: list[mx.array],
    cotangents: list[mx.array],
) -> tuple[Gradients, list[mx.array]]:
    """The gradients of some parameters, and of the inputs of a piece of `block`."""

    def run(temb: mx.array, *inputs: mx.array) -> Sequence[mx.array]:
        return piece(block, context._replace(temb=temb), *inputs)

    own = dict(parameters)
    temb = own.pop(TEMB, None)
    if temb is None:
        _, found, of_inputs = module_vjp(block, partial(run, context.temb), own, inputs, cotangents)
        return found, of_inputs
    _, found, (of_temb, *of_inputs) = module_vjp(block, run, own, [temb, *inputs], cotangents)
    return {**found, TEMB: of_temb}, of_inputs


def module_vjp(
    module: nn.Module,
    function: Piece,
    parameters: dict[str, mx.array],
    inputs: Sequence[mx.array],
    cotangents: Sequence[mx.array],
) -> tuple[list[mx.array], Gradients, list[mx.array]]:
    """The outputs of ``function(*inputs)``, and gradients of some parameters and of the inputs.

    Args:
        module: what `function` computes with.
        parameters: parameters of `module` by their paths.
        cotangents: the gradients of the outputs.
    """
    names = list(parameters)

    def run(*arrays: mx.array) -> list[mx.array]:
        with _updated(module, dict(zip(names, arrays, strict=False))):
            return list(function(*arrays[len(names) :]))

    outputs, found = mx.vjp(run, [*parameters.values(), *inputs], [*cotangents])
    return outputs, dict(zip(names, found, strict=False)), found[len(names) :]


@contextmanager
def _updated(module: nn.Module, parameters: dict[str, mx.array]) -> Iterator[None]:
    """Gives a module other parameters within the block, such as those of a tracing."""
    own = TrainableParameters(module)
    before = {path: own[path] for path in parameters}
    try:
        own.update(parameters)
        yield
    finally:
        own.update(before)
