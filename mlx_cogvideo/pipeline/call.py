"""The arguments of a pipeline's call, checked before any weight is read."""

import logging
from dataclasses import dataclass, field, fields, replace
from typing import Any

import mlx.core as mx

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.guidance import check_uncond
from ..errors import InvalidInputError
from ..nn.config import TransformerConfig
from .estimates import check_memory_limit
from .events import Progress
from .fields import about
from .output import NO_LATENTS, check_output_type
from .resolved import ResolvedSettings
from .resolver import resolve
from .run_stages import (
    TILED,
    check_decoder,
    encode_prompt,
    join_embeds,
    needs_negative,
    warn_of_lost_text,
)
from .settings import VideoSettings
from .step_hook import StepCallback, check_callback
from .unused import without_effect

logger = logging.getLogger(__name__)


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
            leading frame included. These three may be arrays of NumPy or PyTorch, too.
        output_type: one of ``output.OUTPUT_TYPES``.
        callback_on_step_end: called after each step; see ``step_hook``.
        on_progress: called with a stage's name, the steps done and their number.
    """

    prompt_embeds: mx.array | None = None
    negative_prompt_embeds: mx.array | None = None
    latents: mx.array | None = None
    output_type: str = "np"
    callback_on_step_end: StepCallback | None = None
    on_progress: Progress | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_embeds", "negative_prompt_embeds", "latents"):
            object.__setattr__(self, name, _as_array(name, getattr(self, name)))


def prepare(model: ModelFolder, call: Call) -> ResolvedSettings:
    """Checks a call, and gives every setting its value. No weight is read.

    Raises:
        InvalidInputError: an argument that the model can't follow.
    """
    settings = resolve(model, call if call.prompt_embeds is None else replace(call, prompt=None))
    if call.tiling == "auto" and settings.decoding.mode == "tiled":
        logger.warning(TILED)
    check_uncond(settings.uncond, call.negative_prompt_embeds is not None)
    check_output_type(call.output_type, settings.extend)
    check_callback("callback_on_step_end", call.callback_on_step_end, 3, 4)
    check_callback("on_progress", call.on_progress, 3)
    _check_latents(call, settings)
    missing = call.negative_prompt_embeds is None and needs_negative(settings)
    encodes = call.prompt_embeds is None or missing
    _check_texts(call, model.configs["transformer"], encodes)
    decodes = call.output_type != "latent"
    if decodes:
        check_decoder(model, settings)
    check_memory_limit(model, settings, decode=decodes, done=() if encodes else ("encode",))
    settings.source.check(settings.geometry, model.fps)
    warn_of_lost_text(model, settings)
    for line in without_effect(model, _given(call), settings, decodes=decodes):
        logger.warning("%s", line)
    return settings


def _as_array(name: str, value: Any) -> mx.array | None:
    """An array of NumPy, PyTorch or MLX, or lists of numbers, as float32 of MLX.

    Raises:
        InvalidInputError: it is none of these, or contains NaN or infinity.
    """
    if value is None:
        return None
    try:
        array = mx.array(value)
    except (TypeError, ValueError, RuntimeError):
        array = mx.array(False)
    if not any(mx.issubdtype(array.dtype, kind) for kind in (mx.floating, mx.integer)):
        raise InvalidInputError(f"{name} must be an array of numbers; got {type(value).__name__}")
    array = array.astype(mx.float32)
    if not mx.isfinite(array).all().item():
        raise InvalidInputError(f"{name} must be finite; got NaN or infinity")
    return array


def _check_latents(call: Call, settings: ResolvedSettings) -> None:
    if call.latents is None:
        return
    shape, given = settings.geometry.latent_shape, call.latents.shape
    if given != shape:
        frames, height, width, channels = shape[1:]
        is_first = given[1:] == (frames, channels, height, width)
        advice = ": move their channels last, as permute(0, 1, 3, 4, 2) does" if is_first else ""
        raise InvalidInputError(f"latents must have shape {shape}; got {given}{advice}")
    if settings.extend:
        raise InvalidInputError(NO_LATENTS)


def _check_texts(call: Call, config: TransformerConfig, encodes: bool) -> None:
    """Raises InvalidInputError unless each text is given once, as words or as embeddings that fit.

    Args:
        encodes: whether embeddings of words join the given ones.
    """
    if call.prompt is None and call.prompt_embeds is None:
        raise InvalidInputError("give a prompt or prompt_embeds")
    lengths = {config.max_text_seq_length} if encodes else set()
    if config.use_learned_positional_embeddings:
        lengths = {config.max_text_seq_length}
    for text in ("prompt", "negative_prompt"):
        embeds, dim = getattr(call, f"{text}_embeds"), config.text_embed_dim
        if embeds is None:
            continue
        if getattr(call, text):
            raise InvalidInputError(f"{text}_embeds take the place of a {text}: give one of them")
        if len(embeds.shape) != 3 or embeds.shape[0::2] != (1, dim) or embeds.size == 0:
            raise InvalidInputError(
                f"{text}_embeds must have shape (1, text_length, {dim}); got {embeds.shape}"
            )
        lengths.add(embeds.shape[1])
    if len(lengths) > 1:
        few, many = sorted(lengths)[:2]
        raise InvalidInputError(
            f"all embeddings of a run must have one text_length; got {few} and {many}"
        )


def _given(call: Call) -> set[str]:
    """Names of the arguments that don't have their default."""
    return {f.name for f in fields(call) if getattr(call, f.name) is not f.default}


def given_embeds(model: ModelFolder, call: Call, settings: ResolvedSettings) -> mx.array:
    """The embeddings of a call that gives some; the rest is encoded."""
    positive, negative = call.prompt_embeds, call.negative_prompt_embeds
    try:
        if negative is None and needs_negative(settings):
            negative = encode_prompt(model, call.negative_prompt, warn=False)
        if positive is None:
            positive = encode_prompt(model, call.prompt or "", warn=False)
    finally:
        model.free("text_encoder")
    return join_embeds(model, settings, positive, negative)
