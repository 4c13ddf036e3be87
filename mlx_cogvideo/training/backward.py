"""The gradients of a block of the transformer, in bounded memory.

All of a block but attention treats each token by itself, so that its gradients are taken for some
tokens at a time, and those of attention between by a function of their own. Each piece is computed
before the next is begun: nothing of a lazy graph is left to be held.
"""

from collections.abc import Callable, Sequence
from math import ceil

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..nn.attention import attention, attention_gradients
from ..nn.portions import Portions
from ..nn.transformer import BlockContext, CogVideoXBlock

WIDE_ELEMENTS = 2**26
"""Of the feed-forward part's wide layer that gradients are taken of at a time."""

TO_ATTEND = ("norm1.", "attn1.to_q.", "attn1.to_k.", "attn1.to_v.", "attn1.norm_")
ATTENDED = ("norm1.", "attn1.to_out.")
FEED_FORWARD = ("norm2.", "ff.")
"""What the parameters of the parts are called."""

Gradients = dict[str, mx.array]


def block_gradients(
    block: CogVideoXBlock, x: mx.array, context: BlockContext, cotangent: mx.array
) -> tuple[Gradients, mx.array]:
    """The gradients of ``block(x, *context)``, computed.

    Memory: a dozen arrays as large as `x`, the pieces of the wide layer, and tables of scores: a
    few of `SCORES_AT_A_TIME`, or of Metal's own backward about three of 1024 x 1024 for each head
    of each clip.

    Args:
        x: ``[B, tokens, dim]``.
        cotangent: the gradient of what the block made of it.

    Returns:
        Those of its trainable parameters by their paths, and that of `x`.
    """
    temb, is_text, rotation = context
    work = Portions()
    queries, keys, values = block.to_attend(x, *context, work)
    attended = attention(queries, keys, values)
    between = work.finish(block.add_attention(x, attended, temb, is_text))
    backward = _Backward(block, x.shape)

    (cotangent,) = backward(
        FEED_FORWARD,
        lambda rows, x: [block.add_feed_forward(x, temb, is_text[rows])],
        [between],
        [cotangent],
    )
    del between
    residual, of_attended = backward(
        ATTENDED,
        lambda rows, x, attended: [block.add_attention(x, attended, temb, is_text[rows])],
        [x, attended],
        [cotangent],
    )
    del cotangent
    cotangents = attention_gradients(queries, keys, values, attended, of_attended)
    del queries, keys, values, attended, of_attended

    def to_attend(rows: slice, x: mx.array) -> Sequence[mx.array]:
        turn = None if rotation is None else tuple(table[rows] for table in rotation)
        return block.to_attend(x, temb, is_text[rows], turn)

    (of_x,) = backward(TO_ATTEND, to_attend, [x], cotangents)
    of_x = of_x + residual
    mx.eval(of_x)
    return backward.gradients, of_x


class _Backward:
    """Takes the gradients of a block's parts.

    Attributes:
        gradients: of the parameters, as far as they have been taken.
    """

    def __init__(self, block: CogVideoXBlock, shape: tuple[int, ...]):
        """`shape` is ``[B, tokens, dim]``."""
        self._block = block
        self._parameters = dict(tree_flatten(block.trainable_parameters()))
        self.gradients: Gradients = {}
        batch, self._tokens, dim = shape
        self._count = ceil(4 * batch * self._tokens * dim / WIDE_ELEMENTS)

    def __call__(
        self,
        names: tuple[str, ...],
        part: Callable[..., Sequence[mx.array]],
        inputs: Sequence[mx.array],
        cotangents: Sequence[mx.array],
    ) -> list[mx.array]:
        """The gradients of the inputs of a part; those of its parameters are added up.

        Args:
            names: what the parameters that it uses begin with.
            part: is given a slice of tokens, and those of the inputs.
            inputs, cotangents: arrays whose last axis but one are the tokens.
        """
        mine = {n: p for n, p in self._parameters.items() if n.startswith(names)}
        pieces = []
        for i in range(self._count):
            first, end = (k * self._tokens // self._count for k in (i, i + 1))
            rows = slice(first, end)

            def run(*arrays: mx.array, rows: slice = rows) -> list[mx.array]:
                self._block.update(tree_unflatten(dict(zip(mine, arrays, strict=False))))
                return list(part(rows, *arrays[len(mine) :]))

            primals = [*mine.values(), *(x[..., rows, :] for x in inputs)]
            try:
                _, found = mx.vjp(run, primals, [g[..., rows, :] for g in cotangents])
            finally:  # tracing has left its own arrays in the block
                self._block.update(tree_unflatten(mine))
            of_parameters = dict(zip(mine, found, strict=False))
            for name, gradient in of_parameters.items():
                before = self.gradients.get(name)
                self.gradients[name] = gradient if before is None else before + gradient
            pieces.append(found[len(mine) :])
            mx.eval(pieces[-1], [self.gradients[name] for name in mine])
        whole = [mx.concatenate(parts, axis=-2) for parts in zip(*pieces, strict=True)]
        mx.eval(whole)
        return whole
