"""What is learned, and its gradient, block by block."""

from dataclasses import dataclass
from math import log2

import mlx.core as mx

from ..diffusion.denoising import velocities
from ..diffusion.schedulers import Scheduler
from ..nn.eval_schedule import EvalSchedule
from ..nn.low_rank import without_adapters
from ..nn.transformer import CogVideoXTransformer3DModel
from .blockwise import BlockBackward

SMALLEST_MEAN = 64
"""Numbers of which the loss may be the mean for float16's gradients to be exact."""


@dataclass(frozen=True)
class Batch:
    """Clips as the transformer learns from them.

    Attributes:
        latents: ``[B, f, h, w, c]``, scaled, with 1.5's leading frame; without noise.
        text: ``[B, L, D]``, the embeddings of their captions.
        noise: like `latents`.
        timestep: ``[B]``, 0 to 999.
        image_latents: for image to video, ``[B, f, h, w, c]``; zeros but for the first frame.
        prior: how many of them, the last ones, teach to do what the model does without an adapter.
    """

    latents: mx.array
    text: mx.array
    noise: mx.array
    timestep: mx.array
    image_latents: mx.array | None = None
    prior: int = 0
    prior_weight: float = 1.0

    def total(self, losses: mx.array) -> mx.array:
        """What is made small: the mean of the clips' losses, and that of the priors by weight."""
        if not self.prior:
            return losses.mean()
        own, prior = losses[: -self.prior], losses[-self.prior :]
        return own.mean() + self.prior_weight * prior.mean()


def mean_squared_errors(velocity: mx.array, target: mx.array) -> mx.array:
    """Of each clip, in float32. The official loss, (x0_pred - x0)² / (1 - ᾱ), is the same."""
    return mx.square(velocity.astype(mx.float32) - target).mean(axis=(1, 2, 3, 4))


class AdapterLoss:
    """What a transformer with an adapter learns. What of it is frozen must stay the same."""

    def __init__(
        self, transformer: CogVideoXTransformer3DModel, scheduler: Scheduler, dtype: mx.Dtype
    ):
        """`dtype` is that of the activations."""
        self._transformer, self._scheduler, self._dtype = transformer, scheduler, dtype
        self._backward = [BlockBackward(block) for block in transformer.transformer_blocks]

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, dict[str, mx.array]]:
        """The losses of a batch's clips, and the gradients of their total in the blocks.

        The blocks run forwards one by one, of which only their inputs are kept; then backwards,
        each computed anew. Memory: the inputs of all blocks and what the backward of one holds, or
        of as many small ones as fill a portion.

        Returns:
            The losses ``[B]`` in float32, and gradients by the paths of the parameters.
        """
        transformer = self._transformer
        noisy, target = self._noisy(batch)
        x, context = transformer.embed(*self._given(noisy, batch))
        mx.eval(x, context)
        # None ahead of the one that is computed: a tenth slower on an H100, and a gigabyte less.
        inputs, schedule = [], EvalSchedule(prefetch=0)
        for block in transformer.transformer_blocks:
            inputs.append(x)
            x = block(x, context, schedule)

        # Seen from the loss, the mean over a million numbers, the gradient of each is next to
        # nothing in float16. The loss is multiplied on the way; by a power of two, so that nothing
        # is rounded.
        scale = 2.0 ** max(0, round(log2(target.size / SMALLEST_MEAN)))

        def loss_of(x: mx.array) -> tuple[mx.array, mx.array]:
            velocity = transformer.project(x, context, noisy.shape)
            losses = mean_squared_errors(velocity, target)
            return scale * batch.total(losses), losses

        (_, losses), cotangent = mx.value_and_grad(loss_of)(x)
        schedule.hold(losses)
        schedule.flush(cotangent)
        del x
        gradients: dict[str, mx.array] = {}
        cotangents = [cotangent]
        del cotangent
        for i in reversed(range(len(inputs))):
            # Both are popped: what has been used is to be free.
            of_block, of_input = self._backward[i].gradients(
                inputs.pop(), context, cotangents.pop(), schedule
            )
            cotangents.append(of_input)
            del of_input
            gradients |= {
                f"transformer_blocks.{i}.{path}": g / scale for path, g in of_block.items()
            }
        schedule.flush(cotangents.pop())
        return losses, gradients

    def loss(self, batch: Batch) -> mx.array:
        """The loss of a batch, for validation."""
        noisy, target = self._noisy(batch)
        velocity = velocities(self._transformer, *self._given(noisy, batch))
        return mean_squared_errors(velocity, target).mean()

    def _given(self, noisy: mx.array, batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
        """What the transformer is given: noisy latents, text and timesteps."""
        return noisy.astype(self._dtype), batch.text.astype(self._dtype), batch.timestep

    def _noisy(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """The transformer's input, image latents included, and the velocity it should answer."""
        latents = batch.latents.astype(mx.float32)
        noisy = self._scheduler.add_noise(latents, batch.noise, batch.timestep)
        target = self._scheduler.get_velocity(latents, batch.noise, batch.timestep)
        if batch.image_latents is not None:
            noisy = mx.concatenate([noisy, batch.image_latents], axis=-1)
        if batch.prior:
            first = len(noisy) - batch.prior
            given = (array[first:] for array in self._given(noisy, batch))
            with without_adapters(self._transformer):
                own = velocities(self._transformer, *given)
            target = mx.concatenate([target[:first], own.astype(mx.float32)])
            mx.eval(target)
        return noisy, target
