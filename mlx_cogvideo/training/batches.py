"""The batches of a training, each drawn by the seed and its number.

A training that is resumed therefore draws the same batches as one that was never interrupted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..diffusion.conditioning import place_image, with_leading
from ..distributed import ALONE, Distributed
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.sources import image_latent_scale
from .layouts import DataSet
from .loss import Batch
from .prepare import Sample, load_text
from .settings import TrainingSettings

VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)
VALIDATION_CLIPS = 8
"""Clips of a validation: more would make it as long as many steps."""


class Draw(NamedTuple):
    """What chance decides about one clip of a batch."""

    sample: Sample
    drop_caption: bool
    timestep: int
    noise_seed: int
    with_image: bool


class Batches:
    """Draws batches of clips and, with prior preservation, of prior prompts."""

    def __init__(
        self,
        pipe: CogVideoXPipeline,
        samples: Sequence[Sample],
        unconditional: Path,
        settings: TrainingSettings,
        prior: Sequence[Path] = (),
        distributed: Distributed = ALONE,
    ):
        """See `Trainer` for the arguments."""
        self._pipe, self._settings = pipe, settings
        self._learned = [sample for sample in samples if not sample.clip.held_out]
        self._held_out = [sample for sample in samples if sample.clip.held_out]
        by_data_set: dict[DataSet, list[Sample]] = {}
        for sample in self._learned:
            data_set = sample.clip.data_set if sample.clip.data_set.weight else DataSet()
            by_data_set.setdefault(data_set, []).append(sample)
        self._data_sets = list(by_data_set.values())
        weights = np.cumsum([data_set.weight or 1.0 for data_set in by_data_set])
        self._bounds = weights / weights[-1]
        self._prior, self._distributed = prior, distributed
        self._unconditional = load_text(unconditional)

    def draw(self, number: int) -> Batch:
        """This process's share of a batch.

        The processes together draw what one process would draw with a batch as large as all of
        theirs.
        """
        settings, distributed = self._settings, self._distributed
        random = np.random.default_rng([settings.seed, 1, number])
        drawn = [
            Draw(
                sample,
                drop_caption=random.random() < settings.caption_dropout,
                timestep=int(random.integers(1000)),
                noise_seed=int(random.integers(2**63)),
                with_image=random.random() >= settings.image_dropout,
            )
            for sample in self._clips(number)
        ]
        priors = distributed.size * settings.prior_batch_size
        texts = [self._prior[random.integers(len(self._prior))] for _ in range(priors)]

        @cache
        def noisy_clip(index: int) -> Batch:
            draw = drawn[index]
            text = self._unconditional if draw.drop_caption else load_text(draw.sample.text)
            key = mx.random.key(draw.noise_seed)
            return self._clip(draw.sample, draw.timestep, key, text, draw.with_image)

        clips = [noisy_clip(index) for index in distributed.own(len(drawn))]
        clips += [
            replace(noisy_clip(index % len(drawn)), text=load_text(texts[index]))
            for index in distributed.own(priors)
        ]
        batch = _joined(clips)
        return replace(batch, prior=settings.prior_batch_size, prior_weight=settings.prior_weight)

    def _clips(self, number: int) -> list[Sample]:
        """The clips of all processes' batch, which have one shape and are of one data set.

        Each epoch has all clips of a data set in a new order. The last batch of a shape in an epoch
        is filled up with clips from its beginning.
        """
        data_set, number = self._data_set(number)
        size = self._settings.batch_size * self._distributed.size
        by_shape: dict[tuple[int, int, int], list[Sample]] = {}
        for sample in data_set:
            shape = sample.spec.frames, sample.spec.height, sample.spec.width
            by_shape.setdefault(shape, []).append(sample)
        count = sum(ceil(len(samples) / size) for samples in by_shape.values())
        epoch, place = divmod(number, count)
        random = np.random.default_rng([self._settings.seed, 0, epoch])
        batches = []
        for samples in by_shape.values():
            order = [samples[index] for index in random.permutation(len(samples))]
            batches += [
                [order[index % len(order)] for index in range(first, first + size)]
                for first in range(0, len(order), size)
            ]
        return batches[random.permutation(count)[place]]

    def _data_set(self, number: int) -> tuple[list[Sample], int]:
        """The data set of a batch, drawn by weight, and the number of the batch in it."""
        if len(self._data_sets) == 1:
            return self._data_sets[0], number
        random = np.random.default_rng([self._settings.seed, 2])
        drawn = np.searchsorted(self._bounds, random.random(number + 1), side="right")
        return self._data_sets[drawn[-1]], int((drawn[:-1] == drawn[-1]).sum())

    @property
    def holds_out(self) -> bool:
        """Whether there are clips for validation only."""
        return bool(self._held_out)

    def validation(self, *, held_out: bool) -> Iterator[Batch]:
        """The first clips at fixed timesteps, with fixed noise.

        Args:
            held_out: whether to take the clips that are held out, or those that are learned.
        """
        samples = self._held_out if held_out else self._learned
        for seed, sample in enumerate(samples[:VALIDATION_CLIPS]):
            for timestep in VALIDATION_TIMESTEPS:
                yield self._clip(sample, timestep, mx.random.key(seed), load_text(sample.text))

    def _clip(
        self, sample: Sample, timestep: int, key: mx.array, text: mx.array, with_image: bool = True
    ) -> Batch:
        """A batch of one clip."""
        keys = mx.random.split(key, 3)
        vae, transformer = self._pipe.configs["vae"], self._pipe.configs["transformer"]
        latents = sample.posterior().sample(keys[0]).astype(mx.float32) * vae.scaling_factor
        latents = with_leading(latents, transformer.leading_frames(latents.shape[1]))
        noise = mx.random.normal(latents.shape, key=keys[1])
        image = None
        if self._pipe.takes_image:
            images = sample.image_posteriors().sample(keys[2]).astype(mx.float32)
            chosen = mx.random.randint(0, len(images), (1,), key=keys[2])
            scale = image_latent_scale(vae, self._settings.image_latent_scale) * with_image
            image = place_image(images[chosen] * scale, latents.shape[1])
        return Batch(latents, text, noise, mx.array([timestep]), image)


def _joined(clips: Sequence[Batch]) -> Batch:
    names = ["latents", "text", "noise", "timestep"]
    if clips[0].image_latents is not None:
        names.append("image_latents")
    return Batch(
        **{name: mx.concatenate([getattr(clip, name) for clip in clips]) for name in names}
    )
