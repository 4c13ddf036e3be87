"""Trains an adapter on prepared clips, and goes on where it stopped.

Noise, timesteps and the order of the clips are drawn by seed and step, so that a checkpoint is the
adapter, the optimizer's state and the number of steps: what follows is the same bit for bit.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoints import save_adapter
from ..diffusion.conditioning import place_image, with_leading
from ..diffusion.schedulers import make_scheduler
from ..distributed import ALONE, Distributed
from ..errors import DeviceError, GenerationError, PeerLostError, mlx_errors
from ..nn.low_rank import add_adapter
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.sources import image_latent_scale
from ..video import ClipSpec
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .loss import AdapterLoss, Batch
from .loss_plot import cut_log, write_curve
from .prepare import Sample, load_text
from .settings import Settings, new_adapter

LESS_MEMORY = "a smaller size, fewer frames or a quantized --model need less"
LOG = "log.jsonl"
VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)


class Trainer:
    """A transformer with a new adapter, and the optimizer that trains it."""

    # Whether the adapter and the optimizer's state may be of different steps.
    _is_updating = False

    def __init__(
        self,
        pipe: CogVideoXPipeline,
        samples: Sequence[Sample],
        unconditional: Path,
        settings: Settings,
        folder: Path,
        keep: int = 3,
        prior: Sequence[Path] = (),
        model: dict[str, Any] | None = None,
        peers: Distributed = ALONE,
    ):
        """Adds the adapter to the pipeline's transformer, which must be kept (``pipe.keeping``).

        Args:
            unconditional: file of the empty caption's embeddings.
            folder: where the adapter, its checkpoints and the log go.
            keep: checkpoints to keep.
            prior: files of embeddings of prompts that are to give what they give without the
                adapter. Of `settings.prior_batch_size` of them a step, and the noisy clips of the
                batch, the model's own answer is learned.
            model: a ``checkpoints.model_identity``, so that no other one goes on.
            peers: the processes that train together, each on a batch of `settings.batch_size`.

        Raises:
            InvalidInputError: they have other settings, clips or models.
        """
        self.pipe, self.samples, self.settings = pipe, samples, settings
        self.folder, self.keep, self.step = folder, keep, 0
        self._prior, self.peers = prior, peers
        self.data = _digests(model, pipe.dtype_name, samples, prior)
        self._unconditional = load_text(unconditional)
        self.transformer = pipe.transformer
        self.transformer.freeze()
        self.layers = new_adapter(self.transformer, settings)
        add_adapter(self.transformer, self.layers)
        scheduler = make_scheduler("ddim", pipe.scheduler_config, mx.random.key(0))
        self._objective = AdapterLoss(self.transformer, scheduler, pipe.dtype)
        self.optimizer = make_optimizer(settings)
        self.optimizer.init(tree_unflatten(self._parameters()))
        peers.check_same({"settings": settings, **self.data})

    def _parameters(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.transformer.trainable_parameters()))

    def train(
        self,
        *,
        save_every: int = 250,
        validate_every: int = 0,
        on_step: Callable[[dict[str, Any]], None] = lambda told: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Trains to the last step, or until one of the peers should stop, which saves.

        Returns:
            Whether it is done.

        Raises:
            GenerationError: the loss became NaN or infinite.
            DeviceError: MLX or the GPU failed.
            PeerLostError: one of the peers is gone. As before it, what was learned until then is
                saved.
        """
        try:
            with mlx_errors(out_of_memory=LESS_MEMORY):
                return self._train(save_every, validate_every, on_step, should_stop)
        except (DeviceError, PeerLostError) as error:
            if self.step > 0 and not self._is_updating:
                self._rescue(error)
            raise

    def _rescue(self, error: DeviceError | PeerLostError) -> None:
        """Saves what was learned, and has the error tell where."""
        go_on = "--resume"
        if not self.peers.is_main:
            # Its own folder may hold another adapter, or be the first one's.
            whole = self.folder.absolute()
            self.folder = whole.with_name(f"{whole.name}-rescued-{self.peers.rank}-{self.step:07}")
            go_on = f"--resume --adapter-path {self.folder}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.save()
        others = "; with other processes, if their batches together are as large"
        error.add_note(
            f"{self.step} steps are kept in {self.folder}: the same command with {go_on} goes on"
            + others * isinstance(error, PeerLostError)
        )

    def _train(
        self,
        save_every: int,
        validate_every: int,
        on_step: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        log = self.folder / LOG
        if self.peers.is_main:
            cut_log(log, self.step)
        while self.step < self.settings.iters:
            began = time.perf_counter()
            losses, norm, stop = self._update(should_stop)
            told = {
                "step": self.step,
                **losses,
                "gradient": norm,
                "learning_rate": self.optimizer.learning_rate.item(),
                "seconds": round(time.perf_counter() - began, 3),
                "peak_memory": mx.get_peak_memory(),
            }
            last = self.step == self.settings.iters
            stop = stop and not last
            if not self.peers.is_main:
                if last or stop:
                    self.peers.wait()  # for what the first one saves
                    return last
                continue
            if validate_every and (self.step % validate_every == 0 or last):
                told["validation"] = self.validate()
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")
            if last or stop or self.step % save_every == 0:
                self.save()
            on_step(told)
            if not (last or stop) and self.peers.size == 1 and should_stop():
                # Alone, a wish that came in the meantime need not wait for another step.
                stop = True
                self.save()
            if last or stop:
                self.peers.wait()
                return last
        return True

    def _update(self, should_stop: Callable[[], bool]) -> tuple[dict[str, float], float, bool]:
        """One update of the adapter; returns the losses, the norm of the gradient, and whether one
        of several peers should stop after it."""
        total, losses = {}, []
        for part in range(self.settings.accumulate):
            batch = self.batch(self.step * self.settings.accumulate + part)
            of_part, gradients = self._objective.loss_and_gradients(batch)
            losses.append(np.array(of_part))
            share = 1 / self.settings.accumulate
            total = {
                path: gradient * share + total.get(path, 0) for path, gradient in gradients.items()
            }
            mx.eval(total)
        total = self.peers.all_mean(tree_unflatten(total))
        total, norm = optim.clip_grad_norm(total, self.settings.clip_norm)
        size = self.settings.batch_size
        means = [float(np.mean([part[:size] for part in losses]))]
        if self.settings.prior_batch_size:
            means.append(float(np.mean([part[size:] for part in losses])))
        # In one exchange, before the update: what is logged and what is saved are one step.
        wish = self.peers.size > 1 and should_stop()
        *means, stop = self.peers.mean([*means, float(wish)])
        if not np.isfinite([*means, norm.item()]).all():
            raise GenerationError(
                f"the loss of step {self.step + 1} is {means[0]} and its gradient {norm.item()}: "
                "try a lower learning rate, or another dtype"
            )
        self._is_updating = True
        new = self.optimizer.apply_gradients(total, tree_unflatten(self._parameters()))
        self.transformer.update(new)
        mx.eval(new, self.optimizer.state, norm)
        self.step += 1
        self._is_updating = False
        return dict(zip(("loss", "prior_loss"), means, strict=False)), norm.item(), stop > 0

    def batch(self, number: int) -> Batch:
        """The batch of a step: clips in an order that is new each time they have all been seen.

        Of all that is drawn for the peers together, as for one with a batch as large as all of
        theirs, it is this one's part.
        """
        settings, peers = self.settings, self.peers
        random = np.random.default_rng([settings.seed, 1, number])
        drawn = [
            (
                sample,
                random.random() < settings.caption_dropout,
                int(random.integers(1000)),
                int(random.integers(2**63)),
                random.random() >= settings.image_dropout,
            )
            for sample in self._order(number)
        ]
        priors = peers.size * settings.prior_batch_size
        texts = [self._prior[random.integers(len(self._prior))] for _ in range(priors)]

        @cache
        def part(i: int) -> Batch:
            sample, drop, timestep, key, with_image = drawn[i]
            text = self._unconditional if drop else load_text(sample.text)
            return self._part(sample, timestep, mx.random.key(key), text, with_image)

        parts = [part(i) for i in peers.own(len(drawn))]
        parts += [
            replace(part(i % len(drawn)), text=load_text(texts[i])) for i in peers.own(priors)
        ]
        prior = settings.prior_batch_size
        return replace(_joined(parts), prior=prior, prior_weight=settings.prior_weight)

    def _order(self, number: int) -> list[Sample]:
        """The clips of a batch of all peers, all of one shape. The last one of a shape in an epoch
        is filled up with clips from its beginning."""
        size = self.settings.batch_size * self.peers.size
        by_shape: dict[ClipSpec, list[Sample]] = {}
        for sample in self.samples:
            by_shape.setdefault(sample.shape, []).append(sample)
        count = sum(ceil(len(samples) / size) for samples in by_shape.values())
        epoch, place = divmod(number, count)
        random = np.random.default_rng([self.settings.seed, 0, epoch])
        batches = []
        for samples in by_shape.values():
            order = [samples[i] for i in random.permutation(len(samples))]
            batches += [
                [order[i % len(order)] for i in range(first, first + size)]
                for first in range(0, len(order), size)
            ]
        return batches[random.permutation(count)[place]]

    def validate(self) -> float:
        """The loss at fixed timesteps and noise, over at most eight clips: it tells of learning
        what the loss of a step, at whatever timestep, can't."""
        losses = [
            self._objective.loss(
                self._part(sample, t, mx.random.key(i), load_text(sample.text))
            ).item()
            for i, sample in enumerate(self.samples[:8])
            for t in VALIDATION_TIMESTEPS
        ]
        return float(np.mean(losses))

    def _part(
        self, sample: Sample, timestep: int, key: mx.array, text: mx.array, with_image: bool = True
    ) -> Batch:
        keys = mx.random.split(key, 3)
        vae, transformer = self.pipe.configs["vae"], self.pipe.configs["transformer"]
        latents = sample.posterior().sample(keys[0]).astype(mx.float32) * vae.scaling_factor
        latents = with_leading(latents, transformer.leading_frames(latents.shape[1]))
        noise = mx.random.normal(latents.shape, key=keys[1])
        image = None
        if self.pipe.takes_image:
            images = sample.image_posteriors().sample(keys[2]).astype(mx.float32)
            chosen = mx.random.randint(0, len(images), (1,), key=keys[2])
            scale = image_latent_scale(vae, self.settings.image_latent_scale) * with_image
            image = place_image(images[chosen] * scale, latents.shape[1])
        return Batch(latents, text, noise, mx.array([timestep]), image)

    def save(self) -> None:
        """Writes the adapter, a checkpoint to go on from, and the picture of the loss.

        Of the checkpoints, the last `keep` stay.
        """
        self.save_adapter(self.folder)
        together = self._settings_together()
        save_checkpoint(self.folder, self._checkpoint(), together, self.data, self.keep)
        write_curve(self.folder / LOG, self.folder / "loss.svg")

    def _checkpoint(self) -> Checkpoint:
        state = dict(tree_flatten(self.optimizer.state))
        return Checkpoint(self.step, self._parameters(), state)

    def _settings_together(self) -> dict[str, Any]:
        """The settings of one process that would do the same as all of the peers."""
        settings, size = self.settings, self.peers.size
        return asdict(settings) | {
            "batch_size": size * settings.batch_size,
            "prior_batch_size": size * settings.prior_batch_size,
        }

    def save_adapter(self, folder: Path) -> None:
        settings = self.settings
        alpha = settings.effective_alpha
        name = str(self.pipe.variant.repo if self.pipe.variant else self.pipe.folder)
        save_adapter(folder, self.layers, rank=settings.rank, alpha=alpha, base_model=name)

    def resume(self) -> None:
        """Goes on from the last checkpoint of the first of the peers.

        Raises:
            CheckpointError: there is none.
            InvalidInputError: it was begun with other settings.
        """
        if self.peers.is_main:
            self.step, adapter, state = load_checkpoint(
                self.folder, self._checkpoint(), self._settings_together(), self.data
            )
            self.transformer.update(tree_unflatten(adapter))
            self.optimizer.state = tree_unflatten(state)
        self.step = self.peers.broadcast({"step": mx.array(self.step)})["step"].item()
        self.transformer.update(tree_unflatten(self.peers.broadcast(self._parameters())))
        state = dict(tree_flatten(self.optimizer.state))
        self.optimizer.state = tree_unflatten(self.peers.broadcast(state))


def _digests(
    model: dict[str, Any] | None, dtype: str, samples: Sequence[Sample], prior: Sequence[Path]
) -> dict[str, str]:
    """What a training must go on with, besides its settings. Files of the cache are named by what
    they were made of."""
    clips = [
        [asdict(sample.shape), *(path and path.name for path in sample.files)] for sample in samples
    ]
    whole = {
        "model's weights": [model, dtype],
        "clips": clips,
        "prior prompts": [p.name for p in prior],
    }
    return {
        name: hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        for name, told in whole.items()
    }


def make_optimizer(settings: Settings) -> optim.Optimizer:
    """AdamW as the original trainers have it."""
    return optim.AdamW(
        learning_rate=_learning_rate(settings),
        betas=[0.9, 0.95],
        weight_decay=settings.weight_decay,
        bias_correction=True,
    )


def _learning_rate(settings: Settings) -> Callable[[mx.array], mx.array] | float:
    rate, warmup = settings.learning_rate, min(settings.warmup, settings.iters // 2)
    if settings.schedule == "cosine":
        after = optim.cosine_decay(rate, max(settings.iters - warmup, 1))
    else:
        after = optim.linear_schedule(rate, rate, 1)
    if warmup == 0:
        return after
    return optim.join_schedules(
        [optim.linear_schedule(rate / warmup, rate, warmup), after], [warmup]
    )


def _joined(parts: Sequence[Batch]) -> Batch:
    names = ["latents", "text", "noise", "timestep"]
    names += ["image_latents"] * (parts[0].image_latents is not None)
    return Batch(**{n: mx.concatenate([getattr(part, n) for part in parts]) for n in names})
