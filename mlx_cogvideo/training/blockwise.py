"""The gradients of a block of the transformer, in bounded memory.

All of a block but attention treats each token by itself, so that its gradients are taken for some
tokens at a time, and those of attention between by a function of their own. The pieces are handed
to the device in portions: nothing of a lazy graph is left to be held.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..nn.attention import attention, attention_gradients
from ..nn.eval_schedule import EvalSchedule
from ..nn.fusion import fused
from ..nn.transformer import BlockContext, CogVideoXBlock

WIDE_ELEMENTS = 2**26
"""Of the feed-forward part's wide layer that gradients are taken of at a time."""

Part = Callable[..., Sequence[mx.array]]
Gradients = dict[str, mx.array]


def _to_attend(block: CogVideoXBlock, context: BlockContext, x: mx.array) -> Sequence[mx.array]:
    return block.to_attend(x, *context)


def _add_attention(
    block: CogVideoXBlock, context: BlockContext, x: mx.array, attended: mx.array
) -> Sequence[mx.array]:
    return [block.add_attention(x, attended, context.temb, context.is_text)]


def _add_feed_forward(
    block: CogVideoXBlock, context: BlockContext, x: mx.array
) -> Sequence[mx.array]:
    return [block.add_feed_forward(x, context.temb, context.is_text)]


PARTS: dict[Part, tuple[str, ...]] = {
    _to_attend: ("norm1.", "attn1.to_q.", "attn1.to_k.", "attn1.to_v.", "attn1.norm_"),
    _add_attention: ("norm1.", "attn1.to_out."),
    _add_feed_forward: ("norm2.", "ff."),
}
"""What treats each token by itself, and what its parameters' names begin with."""


class BlockBackward:
    """Takes the gradients of a block. Its frozen weights must stay the same."""

    def __init__(self, block: CogVideoXBlock):
        self._block = block
        # As a whole: where gradients are taken, MLX undoes the fusing of single functions.
        self._gradients_of = {part: fused(partial(_gradients, block, part)) for part in PARTS}

    # By its name: an argument of `__call__` is held until it returns, and `cotangent` couldn't be
    # let go.
    def gradients(
        self, x: mx.array, context: BlockContext, cotangent: mx.array, schedule: EvalSchedule
    ) -> tuple[Gradients, mx.array]:
        """The gradients of ``block(x, *context)``.

        Memory: a dozen arrays as large as `x`, the pieces of the wide layer, and tables of scores:
        a few of `SCORES_AT_A_TIME`, or of Metal's own backward about three of 1024 x 1024 for each
        head of each clip.

        Args:
            x: ``[B, tokens, dim]``.
            cotangent: the gradient of what the block made of it.
            schedule: what they are part of.

        Returns:
            Those of its trainable parameters by their paths, and that of `x`.
        """
        block, found = self._block, {}
        parameters = dict(tree_flatten(block.trainable_parameters()))
        take = partial(self._take, parameters, context, schedule, found)
        queries, keys, values = block.to_attend(x, *context, schedule)
        attended = schedule.hold(attention(queries, keys, schedule.hold(values)))
        between = schedule.push(block.add_attention(x, attended, context.temb, context.is_text))
        (cotangent,) = take(_add_feed_forward, [between], [cotangent])
        del between
        residual, of_attended = take(_add_attention, [x, attended], [cotangent])
        del cotangent
        cotangents = attention_gradients(queries, keys, values, attended, of_attended)
        cotangents = schedule.push_all(cotangents)
        del queries, keys, values, attended, of_attended
        (of_x,) = take(_to_attend, [x], cotangents)
        return found, schedule.push(of_x + residual)

    def _take(
        self,
        parameters: dict[str, mx.array],
        context: BlockContext,
        schedule: EvalSchedule,
        gradients: Gradients,
        part: Part,
        inputs: Sequence[mx.array],
        cotangents: Sequence[mx.array],
    ) -> list[mx.array]:
        """The gradients of the inputs of a part; those of its parameters are added to the others.

        Args:
            parameters: all that are trained.
            gradients: what has been found of them.
            inputs, cotangents: arrays whose last axis but one are the tokens.
        """
        mine = {name: p for name, p in parameters.items() if name.startswith(PARTS[part])}
        batch, tokens, dim = inputs[0].shape
        count = ceil(4 * batch * tokens * dim / WIDE_ELEMENTS)
        pieces = []
        for i in range(count):
            first, end = (k * tokens // count for k in (i, i + 1))
            of_parameters, of_inputs = self._gradients_of[part](
                mine,
                context.of_rows(first, end),
                [x[..., first:end, :] for x in inputs],
                [g[..., first:end, :] for g in cotangents],
            )
            for name, gradient in of_parameters.items():
                if name in gradients:
                    gradient = gradients[name] + gradient
                gradients[name] = schedule.hold(gradient)
            wide = 4 * batch * (end - first) * dim
            pieces.append(schedule.push_all(of_inputs, wide))
        whole = [mx.concatenate(parts, axis=-2) for parts in zip(*pieces, strict=True)]
        return schedule.push_all(whole)


def _gradients(
    block: CogVideoXBlock,
    part: Part,
    parameters: dict[str, mx.array],
    context: BlockContext,
    inputs: list[mx.array],
    cotangents: list[mx.array],
) -> tuple[Gradients, list[mx.array]]:
    """Those of some parameters, and of the inputs of a part of `block`."""
    names = list(parameters)

    def run(*arrays: mx.array) -> list[mx.array]:
        block.update(tree_unflatten(list(zip(names, arrays, strict=False))))
        return list(part(block, context, *arrays[len(names) :]))

    own = block.trainable_parameters()
    try:
        _, found = mx.vjp(run, [*parameters.values(), *inputs], cotangents)
    finally:  # tracing has left its own arrays in the block
        block.update(own)
    return dict(zip(names, found, strict=False)), found[len(names) :]
