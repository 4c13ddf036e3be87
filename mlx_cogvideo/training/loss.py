"""The loss of an adapter and its gradient, computed block by block."""

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
"""Size of a clip up to which float16 keeps the gradients of its mean loss exact."""


@dataclass(frozen=True)
class Batch:
    """Clips as the transformer receives them, with their noise and timesteps.

    Attributes:
        latents: ``[B, f, h, w, c]``, scaled and without noise; with 1.5's leading frame.
        text: ``[B, L, D]``, the embeddings of the captions.
        noise: like `latents`.
        timestep: ``[B]``, 0 to 999.
        image_latents: for image to video, ``[B, f, h, w, c]``; zeros except in the first frame.
        prior: number of prior clips, which are the last ones. Their target is the answer of the
            model without the adapter.
        prior_weight: weight of the loss of the prior clips.
    """

    latents: mx.array
    text: mx.array
    noise: mx.array
    timestep: mx.array
    image_latents: mx.array | None = None
    prior: int = 0
    prior_weight: float = 1.0

    def total(self, losses: mx.array) -> mx.array:
        """The loss of the batch: the mean of the clips, plus the weighted mean of the priors."""
        if not self.prior:
            return losses.mean()
        own, prior = losses[: -self.prior], losses[-self.prior :]
        return own.mean() + self.prior_weight * prior.mean()


def mean_squared_errors(velocity: mx.array, target: mx.array) -> mx.array:
    """The mean squared error of each clip, in float32.

    The official loss, (x0_pred - x0)² / (1 - ᾱ), is the same.
    """
    return mx.square(velocity.astype(mx.float32) - target).mean(axis=(1, 2, 3, 4))


class AdapterLoss:
    """The loss of a transformer with an adapter. Its frozen weights must not change."""

    def __init__(
        self, transformer: CogVideoXTransformer3DModel, scheduler: Scheduler, dtype: mx.Dtype
    ):
        """`dtype` is the type of the activations."""
        self._transformer, self._scheduler, self._dtype = transformer, scheduler, dtype
        self._backward = [BlockBackward(block) for block in transformer.transformer_blocks]

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, dict[str, mx.array]]:
        """Computes the losses of a batch's clips, and the gradients of their total.

        The forward pass runs block by block and keeps only the input of each block. The backward
        pass computes each block anew. Memory: the inputs of all blocks, and the backward pass of
        one block or of several small ones.

        Returns:
            The losses ``[B]`` in float32, and gradients by the paths of the parameters.
        """
        transformer = self._transformer
        arguments, target = self._arguments(batch)
        shape = arguments[0].shape
        x, context = transformer.embed(*arguments)
        del arguments
        mx.eval(x, context)
        # None ahead of the one that is computed: a tenth slower on an H100, and a gigabyte less.
        inputs, schedule = [], EvalSchedule(prefetch=0)
        for block in transformer.transformer_blocks:
            inputs.append(x)
            x = block(x, context, schedule)

        # The loss is a mean over up to millions of numbers, so the gradient of each may be too
        # small for float16. The loss is scaled by a power of two, which rounds nothing.
        scale = 2.0 ** max(0, round(log2(target.size / SMALLEST_MEAN)))

        def loss_of(x: mx.array) -> tuple[mx.array, mx.array]:
            velocity = transformer.project(x, context, shape)
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
            # Both are popped, so that their memory is free once they are used.
            block_gradients, input_gradient = self._backward[i].gradients(
                inputs.pop(), context, cotangents.pop(), schedule
            )
            cotangents.append(input_gradient)
            del input_gradient
            gradients |= {
                f"transformer_blocks.{i}.{path}": gradient / scale
                for path, gradient in block_gradients.items()
            }
        schedule.flush(cotangents.pop())
        return losses, gradients

    def loss(self, batch: Batch) -> mx.array:
        """The mean loss of a batch without gradients, for validation."""
        arguments, target = self._arguments(batch)
        velocity = velocities(self._transformer, *arguments)
        return mean_squared_errors(velocity, target).mean()

    def _arguments(self, batch: Batch) -> tuple[tuple[mx.array, mx.array, mx.array], mx.array]:
        """The transformer's noisy latents, text and timesteps, and the velocity to predict."""
        latents = batch.latents.astype(mx.float32)
        noisy = self._scheduler.add_noise(latents, batch.noise, batch.timestep)
        target = self._scheduler.get_velocity(latents, batch.noise, batch.timestep)
        if batch.image_latents is not None:
            noisy = mx.concatenate([noisy, batch.image_latents], axis=-1)
        arguments = noisy.astype(self._dtype), batch.text.astype(self._dtype), batch.timestep
        if batch.prior:
            first = len(noisy) - batch.prior
            with without_adapters(self._transformer):
                answer = velocities(self._transformer, *(array[first:] for array in arguments))
            target = mx.concatenate([target[:first], answer.astype(mx.float32)])
            mx.eval(target)
        return arguments, target
