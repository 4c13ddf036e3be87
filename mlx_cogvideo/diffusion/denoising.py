"""From noise to latents, step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from ..errors import not_finite
from ..nn.eval_schedule import EvalSchedule, in_passes
from ..nn.transformer import CogVideoXTransformer3DModel
from .conditioning import Conditioning
from .extrapolation import EXTRAPOLATED, Extrapolation, Guided, Lines, Step
from .guidance import guidance_schedule, guided
from .schedulers import Scheduler
from .split import WHOLE, Split, StepSize, own_patches
from .step_cache import make_cache


@dataclass(frozen=True)
class Sampling:
    """The numbers of a denoising run.

    Attributes:
        steps: steps that are taken, the last ones of the scheduler's.
        guidance_scale: weight of the prompt; 1 or less takes no unconditional pass.
        guidance_schedule: see ``guidance.guidance_schedule``.
        guidance_range: first step with guidance and the one after the last; None is all.
        batch_parts: 2 computes the two passes of guidance one after the other, 1 together.
        cache: see ``step_cache`` and ``extrapolation``; None computes every step.
        cache_threshold: change up to which a cache of blocks skips a step.
        computed_steps: steps that a cache of predictions computes, counted from 0 in all of the
            scheduler's.
        polynomial: TeaCache's coefficients for the model.
        dtype: of the activations.
    """

    steps: int
    guidance_scale: float
    guidance_schedule: str
    guidance_range: tuple[int, int] | None
    batch_parts: int
    cache: str | None
    cache_threshold: float | None
    computed_steps: tuple[int, ...] | None
    polynomial: Sequence[float]
    dtype: mx.Dtype

    def guides(self, step: int) -> bool:
        """Whether a step, counted from 0, is computed without the prompt, too."""
        first, end = self.guidance_range or (0, self.steps)
        return self.guidance_scale > 1 and first <= step < end


@dataclass(frozen=True)
class DenoisingState:
    """Where a run stands between two steps.

    Together with the run's settings, the rest depends on nothing else: noise is drawn by seed and
    timestep, so that no generator's position has to be kept.

    Attributes:
        step: steps done.
        timestep: timestep of the last step.
        latents: ``[1, f, h, w, c]`` in float32.
        x0: the last prediction of the clean latents, which the DPM sampler looks back to.
        restart: with a cache of blocks, the state from which a later run gets the same result: the
            beginning of the last computed step. The cache's own arrays are too large to be kept.
        skipped: steps whose blocks a cache has skipped, or whose passes aren't all computed.
        lines: with a cache of predictions, what it extrapolates from.
    """

    step: int
    timestep: int
    latents: mx.array
    x0: mx.array
    restart: "DenoisingState | None" = None
    skipped: tuple[int, ...] = ()
    lines: Lines = field(default_factory=dict)

    @property
    def to_save(self) -> "DenoisingState | None":
        """The state that a run goes on from; None is the beginning."""
        state = self if self.restart is None else self.restart
        return state if state.step else None


def denoising_steps(
    transformer: CogVideoXTransformer3DModel,
    scheduler: Scheduler,
    sampling: Sampling,
    embeds: mx.array,
    noise: mx.array,
    conditioning: Conditioning,
    state: DenoisingState | None = None,
    after_step: Callable[[DenoisingState], DenoisingState] = lambda state: state,
    split: Split = WHOLE,
) -> Iterator[DenoisingState]:
    """Takes the steps that are left.

    Args:
        scheduler: with its timesteps set.
        embeds: ``[1 or 2, text_length, text_embed_dim]``, with guidance the unconditional first.
        noise: ``[1, f, h, w, c]``, the initial noise.
        state: where to go on; None begins.
        after_step: called with the state after each step; the run continues with its result.
        split: this process's part, where several take the steps together.

    Yields:
        The state after each step, evaluated.

    Raises:
        GenerationError: a step gave NaN or infinity.
    """
    noise = noise.astype(mx.float32)
    timesteps = [int(t) for t in scheduler.timesteps][-sampling.steps :]
    if state is None:
        latents, x0 = conditioning.first_latents(scheduler, noise, timesteps[0]), None
        done, skipped, lines = 0, (), {}
    else:
        latents, x0, done, skipped = state.latents, state.x0, state.step, state.skipped
        lines = state.lines
    model = _GuidedModel(transformer, scheduler, sampling, timesteps, embeds, conditioning, split)
    restart = None
    for i in range(done, len(timesteps)):
        t, next_t = timesteps[i], timesteps[i + 1] if i + 1 < len(timesteps) else None
        with split.watch():
            (velocity, latents, x0, lines), is_whole = model(i, latents, x0, lines)
            if not is_whole:
                skipped = (*skipped, i)
            elif model.cache is not None:
                restart = DenoisingState(i, timesteps[i - 1], latents, x0, skipped=skipped)
            latents, x0 = scheduler.step(velocity, t, latents, previous_x0=x0)
            latents = conditioning.hold(scheduler, latents, noise, next_t)
            kept = [value for line in lines.values() for value in line.values]
            _evaluate(latents, x0, kept, i, sampling.dtype, split)
            latents, x0 = split.agreed(latents, x0, i + 1)
        state = after_step(DenoisingState(i + 1, t, latents, x0, restart, skipped, lines))
        latents = state.latents
        yield state


class _GuidedModel:
    """Computes the guided velocity of a step, or approximates it.

    Attributes:
        cache: the run's cache of blocks, if it has one.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        scheduler: Scheduler,
        sampling: Sampling,
        timesteps: list[int],
        embeds: mx.array,
        conditioning: Conditioning,
        split: Split,
    ):
        """`timesteps` are those that are taken; the other arguments are as in `denoising_steps`."""
        self._transformer, self._sampling, self._split = transformer, sampling, split
        self._timesteps, self._conditioning = timesteps, conditioning
        self._embeds = embeds.astype(sampling.dtype)
        self._weight = guidance_schedule(sampling.guidance_schedule, sampling.guidance_scale)
        self.cache, self._extrapolation = None, None
        if sampling.cache in EXTRAPOLATED:
            before = len(scheduler.timesteps) - len(timesteps)
            computed = {step - before for step in sampling.computed_steps}
            steps = tuple(map(self._step, range(len(timesteps))))
            self._extrapolation = Extrapolation(sampling.cache, scheduler, steps, computed)
        elif sampling.cache is not None:
            self.cache = make_cache(
                sampling.cache,
                sampling.cache_threshold,
                transformer,
                timesteps,
                sampling.polynomial,
            )

    def __call__(
        self, number: int, latents: mx.array, x0: mx.array | None, lines: Lines
    ) -> tuple[Guided, bool]:
        """Returns what step `number` goes on with, and whether all of it was computed."""
        step = self._step(number)
        if self._extrapolation is None:
            velocity, is_whole = self._computed(number, latents, step.passes)
            return Guided(guided(velocity, step.weight), latents, x0, lines), is_whole
        passes, velocity = self._extrapolation.passes(number, lines), None
        if passes:
            velocity, _ = self._computed(number, latents, passes)
        made = self._extrapolation.guided(number, velocity, latents, x0, lines)
        return made, passes == step.passes

    def _step(self, number: int) -> Step:
        t = self._timesteps[number]
        passes = 2 if self._sampling.guides(number) else 1
        return Step(t, self._weight(number, t, len(self._timesteps)), passes)

    def _computed(self, step: int, latents: mx.array, passes: int) -> tuple[mx.array, bool]:
        """The velocities of the last passes in float32, and whether no block was skipped."""
        texts, t = self._embeds[-passes:], self._timesteps[step]
        model_input = self._conditioning.beside(latents).astype(self._sampling.dtype)
        model_input = mx.repeat(model_input, passes, axis=0)
        inputs = model_input, texts, mx.full(passes, t)
        parts = min(self._sampling.batch_parts, passes)
        if self.cache is None:
            velocity = velocities(self._transformer, *inputs, parts, self._split)
            return velocity.astype(mx.float32), True
        velocity = self.cache.velocity(self._transformer, *inputs, step, parts, self._split)
        return velocity.astype(mx.float32), step not in self.cache.skipped


def velocities(
    transformer: CogVideoXTransformer3DModel,
    latents: mx.array,
    text: mx.array,
    timestep: mx.array,
    passes: int = 1,
    split: Split = WHOLE,
) -> mx.array:
    """Computes ``transformer(latents, text, timestep)``.

    Memory: of one of the passes, into which the batch is divided.

    Args:
        split: this process's part; what the others compute comes from them.
    """
    if split.is_alone:
        return mx.concatenate(
            [_whole(transformer, *part) for part in in_passes(passes, latents, text, timestep)]
        )
    size, made = StepSize.of(transformer, latents, text), []
    share = split.share(size)
    for part in split.parts(passes, latents, text, timestep):
        schedule = EvalSchedule()
        embedded = [*transformer.embed(*part, share=share)]
        context = embedded.pop()
        # Popped: a variable here would keep these tokens in memory until the last block is done.
        x = transformer.run_blocks(embedded.pop(), context, schedule=schedule)
        made.append(schedule.flush(own_patches(transformer, x, context, size)))
    return transformer.unpatchify(split.join(made, size), latents.shape)


def _whole(transformer: CogVideoXTransformer3DModel, *part: mx.array) -> mx.array:
    schedule = EvalSchedule()
    return schedule.flush(transformer(*part, schedule=schedule))


def _evaluate(
    latents: mx.array,
    x0: mx.array,
    kept: Sequence[mx.array],
    step: int,
    dtype: mx.Dtype,
    split: Split,
) -> None:
    healthy = mx.isfinite(latents).all()
    mx.eval(latents, x0, healthy, *kept)
    if not split.all(healthy.item(), step):
        raise not_finite(
            f"step {step + 1} gave",
            str(dtype).split(".")[-1],
            "the weights of the model or of an adapter are bad, or the guidance is far too strong",
        )
