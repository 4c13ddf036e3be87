"""One process's part of the steps of a run, and what the processes exchange.

Where guidance is divided, they exchange their velocities once a step. Each number is computed as in
one process that takes the passes one after the other. Where tokens are divided, they exchange keys
and values in each block. Products of matrices then have other shapes than in one process, so that
numbers differ by rounding.

Each process takes the sampler's step by itself.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Self

import mlx.core as mx
import numpy as np

from ..distributed import ALONE, Distributed
from ..errors import GenerationError
from ..nn.eval_schedule import in_passes
from ..nn.token_share import TokenShare, padded
from ..nn.transformer import BlockContext, CogVideoXTransformer3DModel
from .division import ONE_PROCESS, Division, video_counts

logger = logging.getLogger(__name__)

COMPARE_EVERY = 10
"""Steps after which the processes compare their latents."""
LARGEST_DIFFERENCE = 1e-3
"""Difference of two processes' latents, relative to the largest, that can come from rounding."""


@dataclass(frozen=True)
class StepSize:
    """The arrays of a step.

    Attributes:
        texts: rows of the batch.
        text_length, tokens: text tokens of a row, and all of them.
        width: numbers that the transformer makes of a video token.
        dtype: of these.
    """

    texts: int
    text_length: int
    tokens: int
    width: int
    dtype: mx.Dtype

    @classmethod
    def of(
        cls, transformer: CogVideoXTransformer3DModel, latents: mx.array, text: mx.array
    ) -> Self:
        """The sizes of ``transformer(latents, text, ...)``."""
        texts, text_length, _ = text.shape
        patches = math.prod(transformer.config.patch_grid(latents.shape))
        width = math.prod(transformer.config.patch) * transformer.config.out_channels
        return cls(texts, text_length, text_length + patches, width, latents.dtype)


class Split:
    """One process's part of the steps of a run, and what the processes exchange.

    Attributes:
        division: how the work is divided.
        stopping: whether a process wanted to stop at the last exchange.
    """

    def __init__(
        self,
        division: Division,
        distributed: Distributed = ALONE,
        *,
        wants_stop: Callable[[], bool] = lambda: False,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        """
        Args:
            wants_stop: whether this process wants to stop after the step.
            watch: makes what surrounds each step, in which this process may wait for others.
        """
        self.division, self.stopping = division, False
        self.watch = watch
        self._distributed, self._wants_stop = distributed, wants_stop

    @property
    def is_alone(self) -> bool:
        return self._distributed.size == 1

    @cached_property
    def _half_group(self) -> Distributed | None:
        """The processes of this one's half; None where the backend can't divide a group."""
        return self._distributed.split(self.division.half(self._distributed.rank) or 0)

    def parts(self, passes: int, *batch: mx.array) -> list[tuple[mx.array, ...]]:
        """What this process computes of a batch with one row a text, in so many passes."""
        count = len(batch[0])
        own = self.division.for_texts(count).texts(self._distributed.rank, count)
        if len(own) < count:
            batch = tuple(array[own[0] : own[-1] + 1] for array in batch) if own else ()
        return list(in_passes(min(passes, len(own)), *batch)) if own else []

    def share(self, size: StepSize) -> TokenShare | None:
        """This process's share of the tokens of a step; None is all of them."""
        division, rank = self.division.for_texts(size.texts), self._distributed.rank
        tokens = size.tokens
        half = division.half(rank)
        if not division.splits_tokens or half is None:
            return None
        members = division.members(half)
        counts = division.token_counts(half, tokens)

        def gather(own: mx.array) -> mx.array:
            if division.halves == 1:
                return self._distributed.all_gather(own).flatten(0, 1)
            if self._half_group is not None:
                return self._half_group.all_gather(own).flatten(0, 1)
            joined = self._distributed.all_gather(padded(own, division.largest_share(tokens)))
            largest = max(counts)
            return joined[members.start : members.stop, :largest].flatten(0, 1)

        return TokenShare(counts, members.index(rank), gather)

    def join(self, made: Sequence[mx.array], size: StepSize) -> mx.array:
        """Joins what all processes have made of the video tokens.

        Args:
            made: results of this process's parts, ``[batch, own video tokens, size.width]`` each.

        Returns:
            ``[size.texts, video tokens, size.width]``.
        """
        if self.is_alone:
            return mx.concatenate(made)
        division, texts = self.division.for_texts(size.texts), range(size.texts)
        counts = [
            video_counts(division.token_counts(half, size.tokens), size.text_length)
            for half in range(division.halves)
        ]
        rows = max(map(max, counts))
        batch = max(len(division.texts(rank, size.texts)) for rank in range(division.size))
        # Tokens first, so that they can be padded.
        parts = [part.swapaxes(0, 1) for part in made]
        own = mx.concatenate(parts, axis=1) if parts else mx.zeros((0, batch, size.width))
        stop = mx.array([self._wants_stop()], size.dtype)
        flat = mx.concatenate([padded(own.astype(size.dtype), rows).flatten(), stop])
        gathered = self._distributed.all_gather(flat)
        self.stopping = (gathered[:, -1] > 0).any().item()
        by_rank = gathered[:, :-1].reshape(division.size, rows, batch, size.width)
        joined = []
        for text in texts:
            half = division.half_of_text(text, size.texts)
            members = division.members(half)
            place = division.texts(members[0], size.texts).index(text)
            ranks = zip(members, counts[half], strict=True)
            joined.append(mx.concatenate([by_rank[rank, :count, place] for rank, count in ranks]))
        return mx.stack(joined)

    def means(self, own: Sequence[mx.array], size: StepSize) -> mx.array:
        """Means over all tokens, from the means over those of each process.

        Args:
            own: two means of this process's parts, ``[2, batch]`` each.

        Returns:
            ``[2, size.texts]``.
        """
        if self.is_alone:
            return mx.concatenate(own, axis=1)
        division, rank = self.division.for_texts(size.texts), self._distributed.rank
        places = mx.zeros((2, size.texts))
        if own:
            half = division.half(rank)
            counts = division.token_counts(half, size.tokens)
            weight = counts[division.members(half).index(rank)] / size.tokens
            texts = division.texts(rank, size.texts)
            places[:, mx.array(texts)] = mx.concatenate(own, axis=1) * weight
        return self._distributed.all_gather(places).sum(0)

    def all(self, value: bool, step: int) -> bool:
        """Whether `value` is true in all processes, after the same step of each.

        Raises:
            GenerationError: they are at different steps.
        """
        if self.is_alone:
            return value
        values = self._distributed.all_gather(mx.array([int(value), step])).tolist()
        if any(other != step for _, other in values):
            raise GenerationError("the processes take different steps: start them again")
        return all(each for each, _ in values)

    def agreed(self, latents: mx.array, x0: mx.array, step: int) -> tuple[mx.array, mx.array]:
        """The latents and their x0, which are the same in all processes.

        Machines of different kinds may round differently. The others then take the main process's.

        Args:
            step: steps done; the latents are compared in some of them.

        Raises:
            GenerationError: they differ by more than rounding.
        """
        if self.is_alone or step % COMPARE_EVERY:
            return latents, x0
        own = mx.concatenate([latents.flatten(), x0.flatten()])
        digests = self._distributed.all_gather(_digest(own))
        if (digests == digests[0]).all().item():
            return latents, x0
        of_all = self._distributed.all_gather(own)
        first = of_all[0]
        difference, largest = mx.abs(of_all - first).max().item(), mx.abs(first).max().item()
        if not difference <= LARGEST_DIFFERENCE * largest:
            raise GenerationError(
                f"after step {step} the latents of two processes differ by {difference:.3g}: these "
                "machines can't share a run; the same version of macOS on all may help"
            )
        if self._distributed.is_main:
            logger.warning(
                "after step %d the latents of two processes differed by %.2g: their machines round "
                "differently, and all go on with those of the first",
                step,
                difference,
            )
        latents, x0 = (half.reshape(latents.shape) for half in mx.split(first, 2))
        return latents, x0


class Splits:
    """Makes the `Split` of each division, once: a group is divided only once, too."""

    def __init__(
        self,
        distributed: Distributed,
        wants_stop: Callable[[], bool],
        watch: Callable[[], AbstractContextManager[None]],
    ):
        """The arguments are those of `Split`."""
        self._make = partial(Split, distributed=distributed, wants_stop=wants_stop, watch=watch)
        self._made: dict[Division, Split] = {}
        self._latest: Split | None = None

    def __call__(self, division: Division) -> Split:
        split = self._latest = self._made.setdefault(division, self._make(division))
        split.stopping = False
        return split

    @property
    def stopping(self) -> bool:
        """Whether all processes stop after this step."""
        return self._latest is not None and self._latest.stopping


def own_patches(
    transformer: CogVideoXTransformer3DModel, x: mx.array, context: BlockContext, size: StepSize
) -> mx.array:
    """What the transformer makes of the video tokens among a process's own.

    Args:
        x: tokens of the last block, ``[batch, tokens, dim]``.

    Returns:
        ``[batch, video tokens, size.width]``.
    """
    first = 0 if context.share is None else context.share.first
    video = x[:, max(0, size.text_length - first) :]
    if video.shape[1] == 0:
        return mx.zeros((*video.shape[:2], size.width), size.dtype)
    return transformer.project_patches(video, context.temb)


WHOLE = Split(ONE_PROCESS)
"""One process, which computes everything."""


def _digest(array: mx.array) -> mx.array:
    """Two numbers that are the same for the same bits."""
    digest = hashlib.sha256(np.array(array).tobytes()).digest()[:8]
    return mx.array(np.frombuffer(digest, np.uint32))
