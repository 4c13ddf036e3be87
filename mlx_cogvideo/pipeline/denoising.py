"""From noise to latents, step by step."""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.guidance import guidance_schedule
from ..diffusion.schedulers import Scheduler, make_scheduler
from ..diffusion.step_cache import StepCache, make_cache
from ..errors import GenerationError
from ..nn.eval_schedule import EvalSchedule, in_passes
from ..nn.transformer import CogVideoXTransformer3DModel
from .request import Request
from .sources import Conditioning


@dataclass(frozen=True)
class DenoisingState:
    """Where a run stands between two steps.

    With the request, all that the rest depends on: noise is drawn by seed and timestep, so there
    is no generator whose position would have to be kept.

    Attributes:
        step: steps done.
        timestep: of the last one.
        latents: ``[1, f, h, w, c]`` in float32.
        x0: the last prediction of the clean latents, which the DPM sampler looks back to.
        restart: with a cache of steps, from where it comes out the same: the beginning of the last
            step that was computed. What the cache holds is too large to be kept.
        skipped: steps of which the cache has skipped the blocks.
    """

    step: int
    timestep: int
    latents: mx.array
    x0: mx.array
    restart: "DenoisingState | None" = None
    skipped: tuple[int, ...] = ()


def denoising_steps(
    model: ModelFolder,
    request: Request,
    embeds: mx.array,
    state: DenoisingState | None,
    conditioning: Conditioning,
    noise: mx.array | None,
) -> Iterator[DenoisingState]:
    """The steps that are left; see ``CogVideoXPipeline.denoise``."""
    embeds = embeds.astype(model.dtype)
    scheduler = make_run_scheduler(model, request)
    guidance = guidance_schedule(request.dynamic_cfg, request.guidance_scale)
    timesteps = [int(t) for t in scheduler.timesteps][-request.steps :]
    if noise is None:
        noise = mx.random.normal(request.geometry.latent_shape, key=_keys(request.seed)[0])
    noise = noise.astype(mx.float32)
    if state is None:
        latents, x0, skipped = conditioning.begin(scheduler, noise, timesteps[0]), None, ()
    else:
        latents, x0, skipped = state.latents, state.x0, state.skipped
    cache = restart = None
    for i, t in list(enumerate(timesteps))[state.step if state else 0 :]:
        before = DenoisingState(i, timesteps[i - 1], latents, x0, skipped=skipped)
        texts = embeds if request.guides(i) else embeds[-1:]
        batch = _input(model, latents, conditioning, len(texts))
        times = mx.full(len(texts), t)
        passes = len(texts) if request.sequential_guidance else 1
        if request.cache is None:
            velocity = velocities(model.transformer, batch, texts, times, passes)
        else:
            cache = cache or _step_cache(model, request, timesteps)
            velocity = cache.velocity(model.transformer, batch, texts, times, i, passes)
            if i in cache.skipped:
                skipped = (*skipped, i)
            else:
                restart = before
        velocity = velocity.astype(mx.float32)
        if len(texts) == 2:
            unconditional, conditional = mx.split(velocity, 2)
            velocity = unconditional + guidance(i, t, len(timesteps)) * (
                conditional - unconditional
            )
        latents, x0 = scheduler.step(velocity, t, latents, previous_x0=x0)
        latents = conditioning.hold(scheduler, latents, noise, [*timesteps, None][i + 1])
        healthy = mx.isfinite(latents).all()
        mx.eval(latents, x0, healthy)
        if not healthy.item():
            raise GenerationError(
                f"step {i + 1} gave NaN or infinity in {model.dtype_name}: "
                "try another dtype (5B models need bfloat16 or float32)"
            )
        yield DenoisingState(i + 1, t, latents, x0, restart, skipped)


def velocities(
    transformer: CogVideoXTransformer3DModel,
    latents: mx.array,
    text: mx.array,
    timestep: mx.array,
    passes: int = 1,
) -> mx.array:
    """``transformer(latents, text, timestep)``, computed.

    Memory: of one of the passes, into which the batch is divided.
    """
    made = []
    for part in in_passes(passes, latents, text, timestep):
        schedule = EvalSchedule()
        made.append(schedule.flush(transformer(*part, schedule=schedule)))
    return mx.concatenate(made)


def make_run_scheduler(model: ModelFolder, request: Request) -> Scheduler:
    """The sampler of a run, whose noise is drawn by the run's seed.

    Raises:
        InvalidInputError: it can't take so many steps.
    """
    scheduler = make_scheduler(request.scheduler, model.scheduler_config, _keys(request.seed)[1])
    scheduler.set_timesteps(request.num_inference_steps)
    return scheduler


def _input(
    model: ModelFolder, latents: mx.array, conditioning: Conditioning, count: int
) -> mx.array:
    """What the transformer gets in a step, once for each text."""
    if conditioning.image_latents is not None:
        latents = mx.concatenate([latents, conditioning.image_latents], axis=-1)
    return mx.repeat(latents.astype(model.dtype), count, axis=0)


def _step_cache(model: ModelFolder, request: Request, timesteps: list[int]) -> StepCache:
    variant = model.variant.alias if model.variant else None
    return make_cache(request.cache, request.cache_threshold, model.transformer, timesteps, variant)


def _keys(seed: int) -> mx.array:
    """Of the initial noise, and of the scheduler's."""
    return mx.random.split(mx.random.key(seed))
