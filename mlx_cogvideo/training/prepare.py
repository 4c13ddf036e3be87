"""Encodes clips to latents and captions to embeddings, each once, and caches them on disk.

Memory: first the text encoder, then the VAE with one clip at a time.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from .clip_windows import choose_windows
from .clips import Clip, choose_spec
from .latent_cache import Cache, read_cached, spec_identity

logger = logging.getLogger(__name__)

READING = 2
"""Changes with the pixels that a clip is read as, so that older latents are made anew."""

IMAGE_NOISE = -3.0, 0.5
"""Mean and standard deviation of log(sigma) of an image's noise, for pixels in [-1, 1]."""

IMAGE_DRAWS = 8
"""Noisy images of each clip for image-to-video models.

The official trainer draws new noise in each step, which would keep the VAE in memory.
"""


@dataclass(frozen=True)
class ClipOptions:
    """How the clips of a training are read. Methods raise InvalidInputError for an unreadable clip.

    Attributes:
        specs: shapes for the clips; each clip is read in the one that fits it best.
        crop: ``"center"``, or ``"random"`` for another place in each clip, which stays the same in
            every run.
        seed: seed of the random places.
        timeout: seconds that opening a file or reading from it may take.
        windows: number of windows to learn of a clip that is long enough; see `choose_windows`.
        places: one of `clip_windows.PLACES`.
    """

    specs: tuple[ClipSpec, ...]
    crop: str = "center"
    seed: int = 0
    timeout: float = TIMEOUT
    windows: int = 1
    places: str = "spread"
    _digests: dict[Path, str] = field(default_factory=dict, init=False, compare=False, repr=False)

    def measure(self, clip: Clip) -> ClipInfo:
        """Measures the size and length of a clip."""
        return self._measured(clip, replace(self.specs[0], start=clip.start, end=clip.end))

    def _measured(self, clip: Clip, part: ClipSpec) -> ClipInfo:
        times = {"start": part.start, "end": part.end}
        return measure(clip.path, part.fps, part.skip, self.timeout, **times)

    def specs_of(self, clip: Clip) -> list[ClipSpec]:
        """The specs in which a clip is learned, one for each window, in order."""
        spec = self.specs[0]
        if len(self.specs) > 1:
            spec = choose_spec(self.measure(clip), self.specs)
        spec = replace(spec, start=clip.start, end=clip.end)
        if self.windows == 1:  # which needs no measuring
            return [spec]
        random = None
        if self.places == "random":
            random = np.random.default_rng([self.seed, 1, int(self.digest(clip)[:15], 16)])
        return choose_windows(
            spec, self.windows, lambda part: self._measured(clip, part).frames, random
        )

    def read(self, clip: Clip, spec: ClipSpec) -> np.ndarray:
        """The frames that are learned of a clip, uint8 ``[F, H, W, 3]``."""
        return read_clip(clip.path, spec, self.position(self.digest(clip)), self.timeout)

    def digest(self, clip: Clip) -> str:
        """The digest of a clip's file or frames, which are read once."""
        if clip.path not in self._digests:
            self._digests[clip.path] = content_digest(clip.path, self.timeout)
        return self._digests[clip.path]

    def position(self, digest: str) -> tuple[float, float]:
        """The place at which a clip is cropped, vertical and horizontal, from 0 to 1.

        Args:
            digest: hexadecimal digest of the clip's file.
        """
        if self.crop == "center":
            return 0.5, 0.5
        random = np.random.default_rng([self.seed, int(digest[:15], 16)])
        return tuple(random.random(2).tolist())


@dataclass(frozen=True)
class Sample:
    """An encoded clip.

    Attributes:
        spec: how the clip was read.
        latents: file with the posterior of the clip's latents.
        text: file with the embeddings of the caption.
        image: file with the posteriors of the noisy images, for image-to-video models.
    """

    clip: Clip
    spec: ClipSpec
    latents: Path
    text: Path
    image: Path | None = None

    def posterior(self) -> Posterior:
        return Posterior(**read_cached(self.latents))

    def image_posteriors(self) -> Posterior:
        """The posteriors of the noisy first frames, ``[IMAGE_DRAWS, 1, h, w, c]``."""
        return Posterior(**read_cached(self.image))


def load_text(path: Path) -> mx.array:
    """Reads the embeddings of a text, ``[1, text_length, text_embed_dim]``."""
    return read_cached(path)["embeds"]


def prepare(
    pipe: CogVideoXPipeline,
    model: dict[str, Any],
    clips: Sequence[Clip],
    options: ClipOptions,
    cache: Cache,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    also: Sequence[str] = (),
) -> tuple[list[Sample], dict[str, Path]]:
    """Encodes the clips and texts that aren't in the cache yet.

    A clip that can't be read is skipped with a warning. `text_problems` tells what the text
    encoder loses.

    Args:
        model: a ``checkpoints.model_identity``.
        also: texts to encode in addition to the captions and "".

    Returns:
        The samples, and the file of the embeddings of each text.

    Raises:
        InvalidInputError: none of the clips to learn can be read, none of a data set with a weight,
            or none of those that are held out.
    """
    digests = model.get("sha256", model)
    captions = ["", *also, *(clip.caption for clip in clips)]
    texts = _texts(pipe, digests, captions, cache, on_progress)
    samples, problems = [], defaultdict(list)
    with pipe.keeping("vae"):
        on_progress("clips", 0, len(clips))
        for number, clip in enumerate(clips, start=1):
            try:
                windows = [*encode_windows(pipe, model, clip, options, cache)]
                text = texts[clip.caption]
                samples += [
                    (window, Sample(clip, spec, files[0], text, *files[1:]))
                    for window, (spec, files) in enumerate(windows)
                ]
            except InvalidInputError as error:
                problems[_purpose(clip)].append(str(error))
                logger.warning("left out: %s", error)
            on_progress("clips", number, len(clips))
    usable = {_purpose(sample.clip) for _, sample in samples}
    for purpose, (first, *others) in problems.items():
        if purpose not in usable:
            more = f" (and {len(others)} more like this)" if others else ""
            raise InvalidInputError(f"no clip{purpose} can be used: {first}{more}")
    # The first windows come first: validation takes the first samples.
    samples.sort(key=lambda each: each[0])
    return [sample for _, sample in samples], texts


def _purpose(clip: Clip) -> str:
    """What a clip is for, in words with a blank in front; "" if it is drawn with all others."""
    if clip.held_out:
        return " that is held out"
    return f" of {clip.data_set.path}" if clip.data_set.weight else ""


def encode_windows(
    pipe: CogVideoXPipeline, model: dict[str, Any], clip: Clip, options: ClipOptions, cache: Cache
) -> Iterator[tuple[ClipSpec, list[Path]]]:
    """Encodes the windows of a clip that aren't in the cache yet; see `prepare`.

    Yields:
        The spec of each window, and the files of its latents and, for image-to-video models, of
        its noisy images.

    Raises:
        InvalidInputError: the clip can't be read.
    """
    digests = model.get("sha256", model)
    for spec in options.specs_of(clip):
        yield spec, _latents(pipe, digests, clip, spec, options, cache)


def text_problems(
    pipe: CogVideoXPipeline, clips: Sequence[Clip], also: Sequence[str] = ()
) -> Iterator[str]:
    """What the text encoder loses of captions and of other texts, in a sentence each.

    Raises:
        InvalidInputError: a text isn't Unicode.
    """
    length = pipe.configs["transformer"].max_text_seq_length
    texts = [(f"the caption of {clip.path}", clip.caption) for clip in clips]
    for subject, text in [*texts, *((f"the prompt {text!r}", text) for text in also)]:
        try:
            problems = pipe.tokenizer.report(text, length).problems()
        except InvalidInputError as error:
            raise InvalidInputError(f"{subject}: {error}") from None
        yield from (f"{subject} {problem}" for problem in problems)


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
        "dtype": pipe.precision,
    }
    paths = {caption: cache.path({**about, "caption": caption}) for caption in captions}
    missing = [caption for caption, path in paths.items() if not path.is_file()]
    on_progress("captions", 0, len(missing))
    with pipe.keeping("text_encoder"):
        for number, caption in enumerate(missing, start=1):
            embeds = pipe.encode_prompt(caption, warn=False).astype(pipe.dtype)
            cache.write(paths[caption], {"embeds": embeds})
            on_progress("captions", number, len(missing))
    return paths


def _latents(
    pipe: CogVideoXPipeline,
    digests: dict[str, Any],
    clip: Clip,
    spec: ClipSpec,
    options: ClipOptions,
    cache: Cache,
) -> list[Path]:
    digest = options.digest(clip)
    about = {
        "clip": digest,
        "reading": READING,
        "vae": digests.get("vae", digests),
        "shape": spec_identity(spec),
        "position": options.position(digest),
        "dtype": pipe.dtype_name,
    }
    paths = [cache.path(about)]
    if pipe.takes_image:
        paths.append(cache.path({**about, "image noise": [*IMAGE_NOISE, IMAGE_DRAWS]}))
    if all(path.is_file() for path in paths):
        return paths
    frames = options.read(clip, spec)
    cache.write(paths[0], vars(pipe.encode_video(frames, spec.frames)))
    if pipe.takes_image:
        noisy = noisy_images(frames[0], mx.random.key(int(digest[:15], 16)))
        cache.write(paths[1], _encode_images(pipe, noisy))
    return paths


def _encode_images(pipe: CogVideoXPipeline, images: mx.array) -> dict[str, mx.array]:
    """The posteriors of images ``[B, 1, H, W, 3]``, in the tiling mode of ``encode_video``."""
    ratio = pipe.configs["vae"].spatial_compression_ratio
    height, width = (side // ratio for side in images.shape[2:4])
    tiling = choose_tiling(pipe, height, width, decode=False)
    posteriors = []
    for image in mx.split(images.astype(pipe.dtype), len(images)):
        posteriors.append(vars(pipe.vae.encode(image, tiling)))
        mx.eval(posteriors[-1])  # one image at a time, for the memory
    return {name: mx.concatenate([each[name] for each in posteriors]) for name in posteriors[0]}


def noisy_images(image: np.ndarray, key: mx.array) -> mx.array:
    """Adds noise to a first frame, uint8 ``[H, W, 3]``, as image-to-video models are trained.

    The strength of the noise differs between the images and has a log-normal distribution.

    Returns:
        ``[IMAGE_DRAWS, 1, H, W, 3]`` in float32; without the noise from -1 to 1.
    """
    mean, deviation = IMAGE_NOISE
    keys = mx.random.split(key)
    sigma = mx.exp(mean + deviation * mx.random.normal((IMAGE_DRAWS, 1, 1, 1, 1), key=keys[0]))
    pixels = mx.array(image).astype(mx.float32) / 127.5 - 1
    noise = mx.random.normal((IMAGE_DRAWS, 1, *image.shape), key=keys[1])
    return pixels + sigma * noise
