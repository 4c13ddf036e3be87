"""How several processes divide the steps of a run.

There are two ways, which go together:

- Guidance: half of the processes compute the pass without the prompt, the others the pass with it.
  They exchange their velocities once a step. Each number is computed as in one process that takes
  the passes one after the other.
- Tokens: each process computes its rows of the tokens. In each block they exchange keys and values.
  Products of matrices have other shapes than in one process, so that numbers differ by rounding.

Each process then takes the sampler's step by itself.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Self

import mlx.core as mx
import numpy as np

from ..distributed import ALONE, Distributed, Processes
from ..errors import GenerationError, InvalidInputError
from ..nn.eval_schedule import in_passes
from ..nn.token_share import TokenShare, padded
from ..nn.transformer import BlockContext, CogVideoXTransformer3DModel

logger = logging.getLogger(__name__)

SPLITS = ("guidance", "tokens")
"""What the processes divide first."""

COMPARE_EVERY = 10
"""Steps after which the processes compare their latents."""
LARGEST_DIFFERENCE = 1e-3
"""Difference of two processes' latents, relative to the largest, that can come from rounding."""


@dataclass(frozen=True)
class Division:
    """How processes divide the work of a step.

    Attributes:
        shares: the weight of each process's tokens, in any unit.
        halves: 2 where half of the processes compute each pass of guidance, else 1.
    """

    shares: tuple[float, ...] = (1.0,)
    halves: int = 1

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.shares)

    @property
    def splits_tokens(self) -> bool:
        return self.size // self.halves > 1

    def members(self, half: int) -> range:
        """The ranks of the processes of one half; of three with guidance, the last is idle."""
        count = self.size // self.halves
        return range(half * count, (half + 1) * count)

    def half(self, rank: int) -> int | None:
        """The half of a process; None is idle."""
        half = rank // (self.size // self.halves)
        return half if half < self.halves else None

    def for_texts(self, count: int) -> "Division":
        """The division of a step with so many texts: one without guidance has 1.

        Two processes leave such a step to one of them. More divide its tokens.
        """
        if count == 1 and self.halves == 2 and self.splits_tokens:
            return replace(self, halves=1)
        return self

    def half_of_text(self, text: int, count: int) -> int:
        """The half that computes a text; without guidance there is only the prompt's."""
        return text + self.halves - count if self.halves == 2 else 0

    def texts(self, rank: int, count: int) -> list[int]:
        """The texts, of so many, that a process computes."""
        own = self.half(rank)
        return [text for text in range(count) if self.half_of_text(text, count) == own]

    def token_counts(self, half: int, tokens: int) -> list[int]:
        """The number of tokens of each member of a half, at least one each."""
        shares = [self.shares[rank] for rank in self.members(half)]
        left, edges = len(shares), [0]
        for share in accumulate(shares):
            left -= 1
            edge = round(tokens * share / sum(shares))
            edges.append(min(max(edge, edges[-1] + 1), tokens - left))
        return [end - first for first, end in pairwise(edges)]

    def largest_share(self, tokens: int) -> int:
        """Tokens of the process that has most."""
        return max(max(self.token_counts(half, tokens)) for half in range(self.halves))


ONE_PROCESS = Division()


def divide(processes: Processes, guided: bool) -> Division:
    """Chooses a division: of the guidance, where it is possible and nothing else was asked for.

    Args:
        guided: whether the run has guidance.

    Raises:
        InvalidInputError: so many processes can't divide it as they were asked to.
    """
    size, split, shares = processes.size, processes.split, processes.shares
    if shares is not None:
        if len(shares) != size:
            raise InvalidInputError(
                f"--shares needs one number for each of the {size} processes; got {len(shares)}"
            )
        if split is None and size == 2:
            split = "tokens"
        if split == "guidance" and size < 4:
            raise InvalidInputError("--shares divides tokens: leave out --split guidance")
    weights = tuple(map(float, shares or [1.0] * size))
    if split == "guidance" and not guided:
        raise InvalidInputError("--split guidance needs a guidance above 1: use --split tokens")
    if split == "guidance" and size % 2 and size != 3:
        raise InvalidInputError(
            f"--split guidance needs an even number of processes; these are {size}"
        )
    halves = guided and size > 1 and (split == "guidance" or (split is None and size % 2 == 0))
    return Division(weights, 2 if halves else 1)


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
            _video_counts(division.token_counts(half, size.tokens), size.text_length)
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


def _video_counts(counts: Sequence[int], text_length: int) -> list[int]:
    """How many of each process's tokens are video tokens."""
    edges = accumulate(counts, initial=0)
    return [end - min(max(first, text_length), end) for first, end in pairwise(edges)]


def _digest(array: mx.array) -> mx.array:
    """Two numbers that are the same for the same bits."""
    digest = hashlib.sha256(np.array(array).tobytes()).digest()[:8]
    return mx.array(np.frombuffer(digest, np.uint32))
