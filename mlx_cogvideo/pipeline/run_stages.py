"""The stages of a run beside denoising: the text, what a video starts from, and decoding."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import mlx.core as mx
import numpy as np

from ..checkpoints.model_folder import ModelFolder
from ..checkpoints.tiny_vae import load_tiny_decoder, need_tiny_vae
from ..diffusion.conditioning import Conditioning, place_image, with_leading
from ..errors import InvalidInputError
from ..nn.autoencoder import Posterior
from ..nn.eval_schedule import EvalSchedule
from .estimates import choose_tiling
from .resolved import ResolvedSettings
from .sources import image_latent_scale
from .vae_stage import (
    Dealer,
    Tiling,
    check_decodable,
    check_frame,
    deal_to_none,
    decode_frames,
    decode_frames_tiny,
    encode_frames,
)

logger = logging.getLogger(__name__)

TILED = "memory is short: frames are computed in tiles, whose edges may show"


def encode_prompt(model: ModelFolder, prompt: str, *, warn: bool = True) -> mx.array:
    """Encodes a text to ``[1, text_length, text_embed_dim]``; may warn of what is lost."""
    length = model.configs["transformer"].max_text_seq_length
    for problem in model.tokenizer.report(prompt, length).problems() if warn else ():
        logger.warning("the prompt %s", problem)
    ids = model.tokenizer([prompt], max_length=length)
    return model.text_encoder(ids, EvalSchedule(prefetch=0))


def lost_text(model: ModelFolder, settings: ResolvedSettings) -> Iterator[tuple[str, str]]:
    """Describes what the model doesn't get of a video's texts.

    Yields:
        Which text it is, ``"prompt"`` or ``"negative prompt"``, and a clause of which that is the
        subject.

    Raises:
        InvalidInputError: a text isn't Unicode.
    """
    length = model.configs["transformer"].max_text_seq_length
    texts = {"prompt": settings.prompt}
    if needs_negative(settings):
        texts["negative prompt"] = settings.negative_prompt
    for name, text in texts.items():
        problems = model.tokenizer.report(text, length).problems() if text else ()
        yield from ((name, problem) for problem in problems)


def warn_of_lost_text(model: ModelFolder, settings: ResolvedSettings) -> None:
    """Logs a warning for each problem that ``lost_text`` finds."""
    for name, problem in lost_text(model, settings):
        logger.warning("the %s %s", name, problem)


def encode_texts(
    model: ModelFolder, encode: Callable[[str], mx.array], videos: Iterable[ResolvedSettings]
) -> Iterator[mx.array]:
    """Encodes the texts of many videos, then frees the text encoder.

    A text that two neighbours share is encoded once.

    Args:
        encode: encodes a text; see ``encode_prompt``.

    Yields:
        ``[1, text_length, text_embed_dim]``, or with guidance ``[2, ...]``: the unconditional,
        then the prompt's.
    """
    known: dict[str, mx.array] = {}
    try:
        for settings in videos:
            texts = [settings.prompt]
            if needs_negative(settings):
                texts.insert(0, settings.negative_prompt)
            known = {text: known[text] for text in texts if text in known}
            for text in texts:
                if text not in known:
                    known[text] = encode(text)
            negative = known[settings.negative_prompt] if len(texts) > 1 else None
            yield join_embeds(model, settings, known[settings.prompt], negative)
    finally:
        model.free("text_encoder")


def needs_negative(settings: ResolvedSettings) -> bool:
    """Whether the unconditional pass gets the embeddings of a text."""
    return settings.guided and settings.uncond == "empty"


def join_embeds(
    model: ModelFolder, settings: ResolvedSettings, positive: mx.array, negative: mx.array | None
) -> mx.array:
    """The embeddings of a run, in the model's dtype; without a negative, zeros stand for it."""
    embeds = [positive]
    if settings.guided:
        embeds.insert(0, mx.zeros_like(positive) if negative is None else negative)
    joined = mx.concatenate(embeds).astype(model.dtype)
    mx.eval(joined)
    return joined


def condition(model: ModelFolder, settings: ResolvedSettings) -> Conditioning | None:
    """Encodes what a video starts from; see ``CogVideoXPipeline.condition``."""
    source, geometry, config = settings.source, settings.geometry, model.configs["vae"]
    if source.is_noise:
        return None
    if source.image is not None:
        frames = source.read_image(geometry)[None]
        scale = image_latent_scale(config, source.image_latent_scale)
    else:
        frames, scale = source.prefix, config.scaling_factor
        if frames is None:
            frames = source.read_video(geometry, model.fps)
    posterior = _encode(model, frames, len(frames), settings.encoding)
    # The latents of a picture or clip are drawn, too, by a key of their own.
    key = mx.random.key(settings.seed + 2**63)
    latents = posterior.sample(key).astype(mx.float32) * scale
    if source.image is not None:
        made = Conditioning(image_latents=place_image(latents, geometry.latent_shape[1]))
    else:
        latents = with_leading(latents, geometry.leading_latents)
        made = Conditioning(**{"start" if source.prefix is None else "prefix": latents})
    mx.eval(*made.arrays().values())
    return made


def encode_video(
    model: ModelFolder,
    frames: Iterable[np.ndarray],
    num_frames: int | None,
    tiling: str,
    tile_size: tuple[int, int] | None,
    tile_overlap: tuple[float, float] | None,
) -> Posterior:
    """Encodes a clip; see ``CogVideoXPipeline.encode_video``."""
    if num_frames is None or num_frames < 1:
        raise InvalidInputError(f"num_frames must be at least 1; got {num_frames}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InvalidInputError(f"the clip has no frames and {num_frames} are needed")
    config = model.configs["vae"]
    ratio = config.spatial_compression_ratio
    check_frame(first, ratio)
    height, width = (side // ratio for side in first.shape[:2])
    chosen = Tiling.choose(
        config,
        tiling,
        tile_size,
        tile_overlap,
        automatic=lambda: choose_tiling(model, height, width, decode=False),
    )
    if tiling == "auto" and chosen.mode == "tiled":
        logger.warning(TILED)
    return _encode(model, chain([first], frames), num_frames, chosen)


def _encode(
    model: ModelFolder, frames: Iterable[np.ndarray], num_frames: int, tiling: Tiling
) -> Posterior:
    try:
        posterior = encode_frames(model.vae, frames, num_frames, tiling)
        mx.eval(posterior.mean, posterior.logvar)
        return posterior
    finally:
        model.free("vae")


def check_decoder(model: ModelFolder, settings: ResolvedSettings) -> None:
    """Checks that the latents of a run can be decoded.

    Raises:
        InvalidInputError: an array would be too large for MLX, or the small decoder's weights are
            missing.
        CheckpointError: those are another network's.
    """
    if settings.vae == "tiny":
        need_tiny_vae(model, settings.tiny_vae)
    else:
        check_decodable(model.configs["vae"], settings.decoded_shape, settings.decoding)


def decode(
    model: ModelFolder,
    settings: ResolvedSettings,
    latents: mx.array,
    output_type: str,
    deal: Dealer = deal_to_none,
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Decodes the latents of a run, without the leading ones; yields as ``decode_frames`` does."""
    latents = latents[:, settings.geometry.leading_latents :]
    config = model.configs["vae"]
    latents = (latents / config.scaling_factor).astype(model.dtype)
    if settings.vae == "tiny":
        path = need_tiny_vae(model, settings.tiny_vae)
        decoder = load_tiny_decoder(path, config.latent_channels, model.dtype)
        yield from decode_frames_tiny(decoder, latents, output_type)
        return
    try:
        yield from decode_frames(model.vae, latents, settings.decoding, output_type, deal)
    finally:
        model.free("vae")
