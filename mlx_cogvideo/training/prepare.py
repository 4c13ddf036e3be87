"""Clips to latents and captions to embeddings, each once, kept on disk.

Memory: the text encoder, then the VAE, and one clip at a time.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import file_digest
from ..errors import InvalidInputError
from ..nn.autoencoder import Posterior
from ..pipeline import CogVideoXPipeline
from .cache import Cache
from .clips import Clip, Shape, read_clip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A clip ready to be learned.

    Attributes:
        latents, text: files of the cache.
    """

    clip: Clip
    latents: Path
    text: Path

    def posterior(self) -> Posterior:
        arrays = mx.load(str(self.latents))
        return Posterior(arrays["mean"], arrays["logvar"])


def load_text(path: Path) -> mx.array:
    """``[1, text_length, text_embed_dim]``."""
    return mx.load(str(path))["embeds"]


def prepare(
    pipe: CogVideoXPipeline,
    model: dict[str, Any],
    clips: Sequence[Clip],
    shape: Shape,
    cache: Cache,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    also: Sequence[str] = (),
) -> tuple[list[Sample], dict[str, Path]]:
    """Encodes what the cache doesn't have yet. A clip that can't be read is reported and left out.

    Args:
        model: a ``checkpoints.model_identity``.
        also: texts to encode besides the captions and "".

    Returns:
        The samples, and the file of each text's embeddings.

    Raises:
        InvalidInputError: none of the clips can be read.
    """
    digests = model.get("sha256", model)
    captions = ["", *also, *(clip.caption for clip in clips)]
    texts = _texts(pipe, digests, captions, cache, on_progress)
    samples, problems = [], []
    with pipe.keeping("vae"):
        on_progress("clips", 0, len(clips))
        for number, clip in enumerate(clips, start=1):
            try:
                latents = _latents(pipe, digests, clip, shape, cache)
                samples.append(Sample(clip, latents, texts[clip.caption]))
            except InvalidInputError as error:
                problems.append(str(error))
                logger.warning("left out: %s", error)
            on_progress("clips", number, len(clips))
    if not samples:
        more = f" (and {len(problems) - 1} more like this)" if len(problems) > 1 else ""
        raise InvalidInputError(f"no clip can be used: {problems[0]}{more}")
    return samples, texts


def _texts(
    pipe: CogVideoXPipeline,
    digests: dict[str, Any],
    captions: Sequence[str],
    cache: Cache,
    on_progress: Callable[[str, int, int], None],
) -> dict[str, Path]:
    about = {
        "encoder": [digests.get(name, digests) for name in ("text_encoder", "tokenizer")],
        "length": pipe.configs["transformer"].max_text_seq_length,
        "dtype": pipe.dtype_name,
    }
    paths = {caption: cache.path({**about, "caption": caption}) for caption in captions}
    missing = [caption for caption, path in paths.items() if not path.is_file()]
    on_progress("captions", 0, len(missing))
    with pipe.keeping("text_encoder"):
        for number, caption in enumerate(missing, start=1):
            embeds = pipe.encode_prompt(caption).astype(pipe.dtype)
            cache.write(paths[caption], {"embeds": embeds})
            on_progress("captions", number, len(missing))
    return paths


def _latents(
    pipe: CogVideoXPipeline, digests: dict[str, Any], clip: Clip, shape: Shape, cache: Cache
) -> Path:
    path = cache.path(
        {
            "clip": file_digest(clip.path),
            "vae": digests.get("vae", digests),
            "shape": asdict(shape),
            "dtype": pipe.dtype_name,
        }
    )
    if not path.is_file():
        posterior = pipe.encode_video(read_clip(clip.path, shape), shape.frames)
        cache.write(path, {"mean": posterior.mean, "logvar": posterior.logvar})
    return path
