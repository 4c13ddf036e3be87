"""Clips to latents and captions to embeddings, each once, kept on disk.

Memory: the text encoder, then the VAE, and one clip at a time.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InvalidInputError
from ..nn.autoencoder import Posterior
from ..pipeline.estimates import choose_tiling
from ..pipeline.pipeline import CogVideoXPipeline
from ..video import ClipInfo, ClipSpec, content_digest, measure, read_clip
from ..video.clip import TIMEOUT
from .clips import Clip, choose_shape
from .latent_cache import Cache, read_cached

logger = logging.getLogger(__name__)


IMAGE_NOISE = -3.0, 0.5
"""Mean and deviation of the logarithm of the noise on a picture, of pixels from -1 to 1."""

IMAGE_DRAWS = 8
"""Noisy pictures a clip that an image-to-video model learns from. The official trainer draws new
noise each step, for which the VAE would have to stay."""


@dataclass(frozen=True)
class ClipOptions:
    """How the clips of a training are read.

    Attributes:
        shapes: of these, each clip gets the one that suits it best.
        crop: ``"center"``, or ``"random"``: another place for each clip, the same each time.
        seed: of random places.
        timeout: seconds that a file may take to be opened, or read from.
    """

    shapes: tuple[ClipSpec, ...]
    crop: str = "center"
    seed: int = 0
    timeout: float = TIMEOUT

    def shape(self, clip: Clip) -> ClipSpec:
        """That which a clip is learned in.

        Raises:
            InvalidInputError: the clip can't be read.
        """
        if len(self.shapes) == 1:  # which spares measuring
            return self.shapes[0]
        return choose_shape(self.measure(clip), self.shapes)

    def measure(self, clip: Clip) -> ClipInfo:
        """How large and long a clip is.

        Raises:
            InvalidInputError: the clip can't be read.
        """
        first = self.shapes[0]
        return measure(clip.path, first.fps, first.skip, self.timeout)

    def position(self, digest: str) -> tuple[float, float]:
        """Where a clip is cropped, by what is in its file."""
        if self.crop == "center":
            return 0.5, 0.5
        random = np.random.default_rng([self.seed, int(digest[:15], 16)])
        return tuple(random.random(2).tolist())


@dataclass(frozen=True)
class Sample:
    """A clip ready to be learned.

    Attributes:
        shape: what it was read as.
        latents, text, image: files of the cache; the last one for image-to-video models.
    """

    clip: Clip
    shape: ClipSpec
    latents: Path
    text: Path
    image: Path | None = None

    @property
    def files(self) -> tuple[Path | None, ...]:
        return self.latents, self.text, self.image

    def posterior(self) -> Posterior:
        return _posterior(self.latents)

    def image_posteriors(self) -> Posterior:
        """Those of `IMAGE_DRAWS` noisy first frames, ``[IMAGE_DRAWS, 1, h, w, c]``."""
        return _posterior(self.image)


def _posterior(path: Path) -> Posterior:
    arrays = read_cached(path)
    return Posterior(arrays["mean"], arrays["logvar"])


def load_text(path: Path) -> mx.array:
    """``[1, text_length, text_embed_dim]``."""
    return read_cached(path)["embeds"]


def prepare(
    pipe: CogVideoXPipeline,
    model: dict[str, Any],
    clips: Sequence[Clip],
    reading: ClipOptions,
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
                shape = reading.shape(clip)
                files = _latents(pipe, digests, clip, shape, reading, cache)
                samples.append(Sample(clip, shape, files[0], texts[clip.caption], *files[1:]))
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
    pipe: CogVideoXPipeline,
    digests: dict[str, Any],
    clip: Clip,
    shape: ClipSpec,
    reading: ClipOptions,
    cache: Cache,
) -> list[Path]:
    """The file of a clip's latents and, for image-to-video models, that of its noisy pictures."""
    try:
        digest = content_digest(clip.path)
    except OSError as error:
        raise InvalidInputError(f"{clip.path} can't be read: {error.strerror}") from None
    position = reading.position(digest)
    about = {
        "clip": digest,
        "vae": digests.get("vae", digests),
        "shape": asdict(shape),
        "position": position,
        "dtype": pipe.dtype_name,
    }
    paths = [cache.path(about)]
    if pipe.takes_image:
        paths.append(cache.path({**about, "image noise": [*IMAGE_NOISE, IMAGE_DRAWS]}))
    if all(path.is_file() for path in paths):
        return paths
    frames = read_clip(clip.path, shape, position, reading.timeout)
    _write(cache, paths[0], pipe.encode_video(frames, shape.frames))
    if pipe.takes_image:
        noisy = noisy_images(frames[0], mx.random.key(int(digest[:15], 16)))
        _write(cache, paths[1], _encode_images(pipe, noisy))
    return paths


def _encode_images(pipe: CogVideoXPipeline, images: mx.array) -> Posterior:
    """``[B, 1, H, W, 3]`` to a posterior, picture by picture, as ``encode_video`` takes frames."""
    ratio = pipe.configs["vae"].spatial_compression_ratio
    height, width = (side // ratio for side in images.shape[2:4])
    tiling = choose_tiling(pipe, height, width, decode=False)
    each = []
    for image in mx.split(images.astype(pipe.dtype), len(images)):
        posterior = pipe.vae.encode(image, tiling)
        mx.eval(posterior.mean, posterior.logvar)
        each.append(posterior)
    return Posterior(*(mx.concatenate([getattr(p, f) for p in each]) for f in ("mean", "logvar")))


def _write(cache: Cache, path: Path, posterior: Posterior) -> None:
    cache.write(path, {"mean": posterior.mean, "logvar": posterior.logvar})


def noisy_images(image: np.ndarray, key: mx.array) -> mx.array:
    """A first frame, uint8 ``[H, W, 3]``, as models learn to start from it.

    Its noise is of another strength in each, exp of a normal distribution of `IMAGE_NOISE`.

    Returns:
        ``[IMAGE_DRAWS, 1, H, W, 3]``, about -1 to 1, in float32.
    """
    mean, deviation = IMAGE_NOISE
    keys = mx.random.split(key)
    sigma = mx.exp(mean + deviation * mx.random.normal((IMAGE_DRAWS, 1, 1, 1, 1), key=keys[0]))
    pixels = mx.array(image).astype(mx.float32) / 127.5 - 1
    noise = mx.random.normal((IMAGE_DRAWS, 1, *image.shape), key=keys[1])
    return pixels + sigma * noise
