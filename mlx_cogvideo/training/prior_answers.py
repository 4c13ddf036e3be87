"""The answers of a model to the prior prompts, computed before a training changes its weights.

An adapter can be switched off in each step. Where all weights are trained, the answers of all steps
are computed before the first one, and kept in the cache.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..distributed import Distributed
from .batches import Batches
from .latent_cache import Cache, read_cached
from .loss import Batch, TransformerLoss
from .settings import TrainingSettings

DRAWN_BY = ("seed", "batch_size", "prior_batch_size", "caption_dropout", "image_dropout")
"""Settings that decide what is drawn for a batch, beside the scale of its image."""


class PriorAnswers:
    """The answers to the prior clips of each batch. Memory: as the loss of a batch."""

    def __init__(
        self,
        cache: Cache,
        batches: Batches,
        loss: TransformerLoss,
        settings: TrainingSettings,
        data: dict[str, str],
        distributed: Distributed,
    ):
        """`data` are digests of the model, the clips and the prompts."""
        self._cache, self._batches, self._loss = cache, batches, loss
        chosen = {name: asdict(settings)[name] for name in (*DRAWN_BY, "image_latent_scale")}
        process = [distributed.rank, distributed.size]
        self._about: dict[str, Any] = {"data": data, "settings": chosen, "process": process}

    def prepare(self, numbers: Iterable[int], on_progress: Callable[[str, int, int], None]) -> None:
        """Computes the answers for batches of these numbers that aren't in the cache yet.

        The transformer must be as it was before the training.
        """
        missing = [number for number in numbers if not self._path(number).is_file()]
        for done, number in enumerate(missing):
            on_progress("prior", done, len(missing))
            answers = self._loss.prior_answers(self._batches.draw(number))
            self._cache.write(self._path(number), {"answers": answers})
        on_progress("prior", len(missing), len(missing))

    def draw(self, number: int) -> Batch:
        """A batch with its answers.

        Raises:
            CheckpointError: the file of the answers is gone or damaged.
        """
        answers = read_cached(self._path(number))["answers"]
        return replace(self._batches.draw(number), prior_answers=answers)

    def _path(self, number: int) -> Path:
        return self._cache.path({"prior answers": number, **self._about})
