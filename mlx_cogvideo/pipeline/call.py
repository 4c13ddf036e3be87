"""The arguments of a pipeline's call, checked before any weight is read."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import mlx.core as mx

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.guidance import check_uncond
from ..errors import InvalidInputError
from .estimates import check_memory_limit
from .events import Progress
from .fields import about
from .resolved import ResolvedSettings
from .resolver import resolve
from .run_stages import TILED, join_embeds, needs_negative
from .settings import VideoSettings
from .vae_stage import check_decodable

logger = logging.getLogger(__name__)

StepCallback = Callable[[int, int, mx.array], bool | None]


@dataclass(frozen=True, kw_only=True)
class PromptedSettings(VideoSettings):
    """Settings whose prompts may be given by position."""

    prompt: str | None = field(default=None, kw_only=False, metadata=about(VideoSettings, "prompt"))
    negative_prompt: str = field(
        default="", kw_only=False, metadata=about(VideoSettings, "negative_prompt")
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Call(PromptedSettings):
    """The arguments of a pipeline's call beside its settings.

    Attributes:
        prompt_embeds: ``[1, text_length, text_embed_dim]`` in place of `prompt`.
        negative_prompt_embeds: the same in place of `negative_prompt`.
        latents: initial noise ``[1, frames, height, width, channels]`` in latents, 1.5's extra
            leading frame included.
        output_type: ``"np"`` for uint8 ``[F, H, W, 3]``, ``"float"`` for float32 in [0, 1],
            ``"latent"`` for the final latents in float32, shaped like `latents`.
        callback_on_step_end: called with the step's index, timestep and latents; returning False
            ends the denoising there, and leaves out the windows after it.
        on_progress: called with a stage's name, the steps done and their number.
    """

    prompt_embeds: mx.array | None = None
    negative_prompt_embeds: mx.array | None = None
    latents: mx.array | None = None
    output_type: str = "np"
    callback_on_step_end: StepCallback | None = None
    on_progress: Progress | None = None


def prepare(model: ModelFolder, call: Call) -> ResolvedSettings:
    """Checks a call, and gives every setting its value. No weight is read.

    Raises:
        InvalidInputError: an argument that the model can't follow.
    """
    if call.prompt is None and call.prompt_embeds is None:
        raise InvalidInputError("give a prompt or prompt_embeds")
    settings = resolve(model, call if call.prompt_embeds is None else replace(call, prompt=None))
    if call.tiling == "auto" and settings.decoding.mode == "tiled":
        logger.warning(TILED)
    check_uncond(settings.uncond, call.negative_prompt_embeds is not None)
    check_output_type(call.output_type, settings)
    _check_latents(call, settings)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        _check_embeds(name, getattr(call, name), model.configs["transformer"].text_embed_dim)
    decodes = call.output_type != "latent"
    if decodes:
        check_decodable(model.configs["vae"], settings.decoded_shape, settings.decoding)
    missing = call.negative_prompt_embeds is None and needs_negative(settings)
    encodes = call.prompt_embeds is None or missing
    check_memory_limit(model, settings, decode=decodes, done=() if encodes else ("encode",))
    settings.source.check(settings.geometry, model.fps)
    return settings


def check_output_type(output_type: str, settings: ResolvedSettings) -> None:
    """Raises InvalidInputError for an unknown output, or one that a video doesn't have."""
    if output_type not in ("np", "float", "latent"):
        raise InvalidInputError(f"output_type must be np, float or latent; got {output_type!r}")
    if settings.extend and output_type == "latent":
        raise InvalidInputError("a video of several windows has no latents of its own")


def _check_latents(call: Call, settings: ResolvedSettings) -> None:
    shape = settings.geometry.latent_shape
    if call.latents is not None and tuple(call.latents.shape) != shape:
        raise InvalidInputError(f"latents must have shape {shape}; got {tuple(call.latents.shape)}")
    if settings.extend and call.latents is not None:
        raise InvalidInputError("a video of several windows has no latents of its own")


def _check_embeds(name: str, embeds: mx.array | None, dim: int) -> None:
    if embeds is not None and (len(embeds.shape) != 3 or embeds.shape[0::2] != (1, dim)):
        raise InvalidInputError(
            f"{name} must have shape (1, text_length, {dim}); got {tuple(embeds.shape)}"
        )


def given_embeds(
    model: ModelFolder, encode: Callable[[str], mx.array], call: Call, settings: ResolvedSettings
) -> mx.array:
    """The embeddings of a call that gives some; the rest is encoded."""
    given = call.prompt_embeds, call.negative_prompt_embeds
    positive, negative = (None if each is None else mx.array(each) for each in given)
    try:
        if negative is None and needs_negative(settings):
            negative = encode(call.negative_prompt)
        if positive is None:
            positive = encode(call.prompt or "")
    finally:
        model.free("text_encoder")
    return join_embeds(model, settings, positive, negative)
