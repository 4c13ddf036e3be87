"""The losses of a batch and the gradients of what lies behind the last block, in bounded memory.

The final norms, the projection and the loss treat each token by itself. They are computed for some
frames at a time.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, prod

import mlx.core as mx

from ..nn.eval_schedule import EvalSchedule
from ..nn.fusion import fused
from ..nn.transformer import BlockContext, CogVideoXTransformer3DModel
from .blockwise import TEMB, Gradients, module_vjp
from .parameters import TrainableParameters

HEAD = ("norm_final.", "norm_out.", "proj_out.")
"""Beginnings of the paths of the parameters behind the blocks."""

HEAD_ELEMENTS = 2**23
"""Elements of the hidden states whose losses are computed at a time."""


def mean_squared_errors(velocity: mx.array, target: mx.array) -> mx.array:
    """The mean squared error of each clip, in float32.

    The official loss, (x0_pred - x0)² / (1 - ᾱ), is the same.
    """
    return mx.square(velocity.astype(mx.float32) - target).mean(axis=(1, 2, 3, 4))


class HeadBackward:
    """Computes losses, and takes the gradients behind the blocks.

    Frozen weights must not change.
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel, *, with_temb: bool):
        """`with_temb` takes the gradient of the time embedding, too."""
        self._transformer, self._with_temb = transformer, with_temb
        self._parameters = TrainableParameters(transformer)
        self._names = [name for name in self._parameters if name.startswith(HEAD)]
        self._part = fused(self._differentiate)

    def __call__(
        self, x: mx.array, context: BlockContext, target: mx.array, weights: mx.array
    ) -> tuple[mx.array, Gradients, mx.array]:
        """The losses of clips and the gradients of their weighted sum, evaluated.

        Args:
            x: the last block's output, ``[B, tokens, dim]``, text first.
            target: the velocity to predict, ``[B, f, h, w, c]`` in float32.
            weights: of the clips' losses in the sum, ``[B]``.

        Returns:
            The losses ``[B]``; the gradients of the trained parameters by path, and that of the
            time embedding by `TEMB` if it is taken; and the gradient of `x`.
        """
        parameters = {name: self._parameters[name] for name in self._names}
        text = x.shape[1] - prod(self._transformer.config.patch_grid(target.shape))
        losses, gradients = mx.zeros(len(x)), Gradients()
        of_x, schedule = [mx.zeros_like(x[:, :text])], EvalSchedule()
        for frames, tokens in self._parts(x.shape, target.shape, text):
            share = (frames.stop - frames.start) / target.shape[1]
            found, of_parameters, of_tokens, of_temb = self._part(
                parameters, x[:, tokens], context.temb, target[:, frames], share * weights
            )
            losses = schedule.hold(losses + share * found)
            of_parameters |= {TEMB: of_temb[0]} if of_temb else {}
            for name, gradient in of_parameters.items():
                before = gradients.get(name)
                gradients[name] = schedule.hold(gradient if before is None else before + gradient)
            of_x.append(schedule.push(of_tokens, HEAD_ELEMENTS * 4))
        whole = mx.concatenate(of_x, axis=1)
        of_x.clear()
        schedule.flush(whole)
        return losses, gradients, whole

    def _parts(
        self, hidden: tuple[int, ...], latents: tuple[int, ...], text: int
    ) -> Sequence[tuple[slice, slice]]:
        """Parts of the latent frames, each with its tokens."""
        config = self._transformer.config
        patches, rows, columns = config.patch_grid(latents)
        count = min(patches, ceil(prod(hidden) / HEAD_ELEMENTS))
        edges = [i * patches // count for i in range(count + 1)]
        parts = []
        for first, end in pairwise(edges):
            frames = slice(first * config.patch[0], end * config.patch[0])
            tokens = slice(text + first * rows * columns, text + end * rows * columns)
            parts.append((frames, tokens))
        return parts

    def _differentiate(
        self,
        parameters: Gradients,
        x: mx.array,
        temb: mx.array,
        target: mx.array,
        weights: mx.array,
    ) -> tuple[mx.array, Gradients, mx.array, list[mx.array]]:
        """The losses of some frames, and gradients of the parameters, of `x` and of `temb`."""

        def losses_of(x: mx.array, temb: mx.array = temb) -> list[mx.array]:
            velocity = self._transformer.project(x, temb, target.shape)
            return [mean_squared_errors(velocity, target)]

        inputs = [x, temb] if self._with_temb else [x]
        (losses,), found, (of_x, *of_temb) = module_vjp(
            self._transformer, losses_of, parameters, inputs, [weights]
        )
        return losses, found, of_x, of_temb
