"""Samples for trainers of the demo, without clips that would have to be encoded."""

from pathlib import Path

import mlx.core as mx

from mlx_cogvideo.training.clips import Clip
from mlx_cogvideo.training.latent_cache import Cache
from mlx_cogvideo.training.loss import Batch
from mlx_cogvideo.training.prepare import Sample
from mlx_cogvideo.video import ClipSpec


def write_samples(folder: Path, *counts: int) -> list[Sample]:
    """Writes samples of 9 frames, and then samples of 17 frames.

    Each number in the text embeddings of a sample is the sample's place in the list.
    """
    cache = Cache(folder)

    def write(name: str, arrays: dict[str, mx.array]) -> Path:
        path = cache.path({"name": name})
        cache.write(path, arrays)
        return path

    samples = []
    for frames, count in zip((9, 17), counts, strict=False):
        shape = ClipSpec(frames, 32, 48, 8)
        zeros = mx.zeros((1, (frames + 7) // 4, 4, 6, 16))
        latents = write(f"latents {frames}", {"mean": zeros, "logvar": zeros})
        for _ in range(count):
            number = len(samples)
            text = write(f"text {number}", {"embeds": mx.full((1, 32, 64), number)})
            samples.append(Sample(Clip(Path(f"{number}.mp4"), ""), shape, latents, text))
    return samples


def sample_numbers(batch: Batch) -> list[int]:
    """Returns which samples of `write_samples` a batch holds."""
    return [int(number) for number in batch.text[:, 0, 0].tolist()]
