"""The loss of a training and its gradients, computed block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log2

import mlx.core as mx

from ..diffusion.denoising import velocities
from ..diffusion.schedulers import Scheduler, make_scheduler
from ..nn.eval_schedule import EvalSchedule
from ..nn.low_rank import without_adapters
from ..nn.transformer import BlockContext, CogVideoXTransformer3DModel
from ..pipeline.pipeline import CogVideoXPipeline
from .blockwise import TEMB, BlockBackward, Gradients, module_vjp
from .head import HEAD, HeadBackward, mean_squared_errors
from .parameters import TrainableParameters

BLOCKS = "transformer_blocks."
TIME = ("time_embedding.", "ofs_embedding.")
"""Beginnings of the paths of the blocks' parameters, and of those that make the time embedding."""

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
            model before the training.
        prior_answers: these answers, ``[prior, f, h, w, c]``. None computes them with the adapter
            switched off.
        prior_weight: weight of the loss of the prior clips.
    """

    latents: mx.array
    text: mx.array
    noise: mx.array
    timestep: mx.array
    image_latents: mx.array | None = None
    prior: int = 0
    prior_answers: mx.array | None = None
    prior_weight: float = 1.0

    @property
    def weights(self) -> mx.array:
        """The weights ``[B]`` of the clips in the loss: the mean of the clips, plus the weighted
        mean of the priors."""
        own = len(self.latents) - self.prior
        weights = [1 / own] * own + [self.prior_weight / max(1, self.prior)] * self.prior
        return mx.array(weights)


class ForwardPass:
    """A batch after its forward pass, with what the backward pass needs. That uses it up.

    Attributes:
        losses: of the clips, ``[B]`` in float32.
        arguments: the transformer's inputs.
        inputs: the input of each block, ``[B, tokens, dim]``.
        gradients: of the trainable parameters behind the blocks, multiplied by `scale`.
        cotangents: one array, the gradient of the last block's output, multiplied by `scale`.
        temb: the gradient of the time embedding so far in float32, multiplied by `scale`.
    """

    def __init__(self, arguments: tuple[mx.array, ...], context: BlockContext, scale: float):
        self.arguments, self.context, self.scale = arguments, context, scale
        self.inputs: list[mx.array] = []
        self.cotangents: list[mx.array] = []
        self.gradients: Gradients = {}
        self.losses = self.temb = mx.array(0.0)

    def add_temb(self, gradient: mx.array | None) -> None:
        if gradient is not None:
            self.temb = self.temb + gradient.astype(mx.float32)


class TransformerLoss:
    """The loss of a transformer and its gradients. Frozen weights must not change."""

    def __init__(
        self, transformer: CogVideoXTransformer3DModel, scheduler: Scheduler, dtype: mx.Dtype
    ):
        """`dtype` is the type of the activations."""
        self._transformer, self._scheduler, self._dtype = transformer, scheduler, dtype
        self._parameters = trained = TrainableParameters(transformer)
        self._embedding = [name for name in trained if not name.startswith((*HEAD, BLOCKS))]
        self._with_temb = any(name.startswith(TIME) for name in trained)
        self._head = HeadBackward(transformer, with_temb=self._with_temb)
        self._backward = [
            BlockBackward(block, with_temb=self._with_temb)
            for block in transformer.transformer_blocks
        ]
        trains = [bool(block.trainable_parameters()) for block in transformer.transformer_blocks]
        self._first = 0 if self._embedding else next((i for i, it in enumerate(trains) if it), 0)

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Gradients]:
        """Computes the losses of a batch's clips, and the gradients of the loss.

        Memory: as `forward` and `backward`, and the gradients.

        Returns:
            The losses ``[B]`` in float32, and gradients by the paths of the parameters.
        """
        done = self.forward(batch)
        losses, gradients = done.losses, {}
        for part in self.backward([done]):
            gradients |= part
        return losses, gradients

    def forward(self, batch: Batch) -> ForwardPass:
        """Computes the losses of a batch's clips, and keeps the input of each block.

        Memory: the inputs of all blocks, and the temporaries of one block.
        """
        transformer = self._transformer
        arguments, target = self._arguments(batch)
        scale = 1.0
        if self._dtype == mx.float16:
            # The loss is a mean over up to millions of numbers, so the gradient of each may be too
            # small. The loss is scaled by a power of two, which rounds nothing.
            scale = 2.0 ** max(0, round(log2(target.size / SMALLEST_MEAN)))
        x, context = transformer.embed(*arguments)
        mx.eval(x, context)
        done = ForwardPass(arguments, context, scale)
        schedule = EvalSchedule()
        for i, block in enumerate(transformer.transformer_blocks):
            if i >= self._first:
                done.inputs.append(x)
            x = block(x, context, schedule)
        done.losses, done.gradients, cotangent = self._head(
            x, context, target, scale * batch.weights
        )
        done.cotangents.append(cotangent)
        done.add_temb(done.gradients.pop(TEMB, None))
        mx.eval(done.temb)
        return done

    def backward(self, passes: Sequence[ForwardPass]) -> Iterator[Gradients]:
        """Takes the gradients of the mean of the passes' losses, a part of the network at a time.

        The parameters of a part may be changed once its gradients are there. Each block is
        computed anew. Memory: the backward pass of one block or of several small ones, and the
        gradients of one block.

        Yields:
            Gradients by the paths of the parameters: those behind the blocks, those of each block
            from the last to the first, and those before the blocks.
        """
        scales = [done.scale for done in passes]
        if gradients := _mean([done.gradients for done in passes], scales):
            yield gradients
        schedule = EvalSchedule()
        for i in reversed(range(self._first, len(self._backward))):
            found = []
            for done in passes:
                # Both are popped, so that their memory is free once they are used. So are the
                # gradients, of which no variable here holds one.
                flow = [
                    *self._backward[i].gradients(
                        done.inputs.pop(), done.context, done.cotangents.pop(), schedule
                    )
                ]
                found.append(flow.pop(0))
                done.cotangents.append(flow.pop(0))
                done.add_temb(flow.pop())
            if gradients := _mean(found, scales):
                yield {f"{BLOCKS}{i}.{path}": gradients.pop(path) for path in list(gradients)}
        for done in passes:
            schedule.flush(done.cotangents[0])
        if self._embedding:
            yield _mean([self._differentiate_embedding(done) for done in passes], scales)

    def _differentiate_embedding(self, done: ForwardPass) -> Gradients:
        """The gradients of the parameters before the first block."""

        def embed() -> list[mx.array]:
            x, context = self._transformer.embed(*done.arguments)
            return [x, context.temb]

        cotangents = [done.cotangents.pop(), done.temb.astype(done.context.temb.dtype)]
        if not self._with_temb:
            cotangents[1] = mx.zeros_like(done.context.temb)
        parameters = {name: self._parameters[name] for name in self._embedding}
        return module_vjp(self._transformer, embed, parameters, [], cotangents)[1]

    def loss(self, batch: Batch) -> mx.array:
        """The mean loss of a batch without gradients, for validation."""
        arguments, target = self._arguments(batch)
        velocity = velocities(self._transformer, *arguments)
        return mean_squared_errors(velocity, target).mean()

    def prior_answers(self, batch: Batch) -> mx.array:
        """The answers of the model without its adapter to a batch's prior clips, evaluated."""
        arguments = self._inputs(batch)
        with without_adapters(self._transformer):
            answers = velocities(self._transformer, *(array[-batch.prior :] for array in arguments))
        mx.eval(answers)
        return answers

    def _inputs(self, batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
        """The transformer's noisy latents, text and timesteps."""
        latents = batch.latents.astype(mx.float32)
        noisy = self._scheduler.add_noise(latents, batch.noise, batch.timestep)
        if batch.image_latents is not None:
            noisy = mx.concatenate([noisy, batch.image_latents], axis=-1)
        return noisy.astype(self._dtype), batch.text.astype(self._dtype), batch.timestep

    def _arguments(self, batch: Batch) -> tuple[tuple[mx.array, mx.array, mx.array], mx.array]:
        """The transformer's inputs, and the velocity to predict."""
        latents = batch.latents.astype(mx.float32)
        target = self._scheduler.get_velocity(latents, batch.noise, batch.timestep)
        if batch.prior:
            answers = batch.prior_answers
            if answers is None:
                answers = self.prior_answers(batch)
            target = mx.concatenate([target[: -batch.prior], answers.astype(mx.float32)])
        return self._inputs(batch), target


def training_loss(pipe: CogVideoXPipeline) -> TransformerLoss:
    """The loss of a pipeline's transformer, whose trained parameters must be chosen before."""
    scheduler = make_scheduler("ddim", pipe.scheduler_config, mx.random.key(0))
    return TransformerLoss(pipe.transformer, scheduler, pipe.dtype)


def _mean(found: list[Gradients], scales: Sequence[float]) -> Gradients:
    """The mean of several passes' gradients, without their scales. Empties `found`.

    The gradients of one pass keep their types, since a scale is a power of two. Several passes are
    added in float32.
    """
    if len(found) == 1:
        (gradients,), (scale,) = found, scales
        found.clear()
        return gradients if scale == 1 else {path: g / scale for path, g in gradients.items()}
    means: Gradients = {}
    for scale in scales:
        gradients = found.pop(0)
        for path in list(gradients):
            part = gradients.pop(path).astype(mx.float32) / (scale * len(scales))
            means[path] = mx.add(means[path], part) if path in means else part
        mx.eval(means)
    return means
