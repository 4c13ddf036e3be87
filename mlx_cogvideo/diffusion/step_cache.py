"""Step caches: some steps reuse the addition of the blocks from an earlier step.

The blocks' output changes little between two steps of denoising, so that some steps can skip the
blocks. There are two criteria:

- TeaCache (Liu et al., arXiv:2411.19108) uses the change of the time embedding, mapped by a
  polynomial that was fitted to each model. The skipped steps are known before the first step.
- First-block caching uses the change of the first block's addition. That block is always computed,
  and nothing is fitted. The first two steps are computed, and at least one of five in a row.

Memory: TeaCache holds one array as large as the tokens of all passes, and first-block caching two.
While it decides it holds a third, which is less than the blocks take in a computed step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ..errors import InvalidInputError
from ..nn.eval_schedule import EvalSchedule
from ..nn.transformer import CogVideoXTransformer3DModel
from .split import WHOLE, Split, StepSize, own_patches

CACHES = {"teacache": 0.2, "first-block": 0.1}
"""The caches of blocks and their default thresholds."""

WARM_UP = 2
"""Steps in the beginning that first-block caching computes: the video takes shape in them."""
MAX_SKIPPED = 4
"""Steps in a row that first-block caching may skip, so that small changes can't add up unseen."""

CACHED_ARRAYS = {"teacache": 1, "first-block": 2}
"""Number of arrays, as large as the tokens of all passes, that each cache holds."""

# Coefficients, highest power first, as the authors of TeaCache fitted them.
POLYNOMIALS = {
    "2b": (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
    "5b": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
    "5b-i2v": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
    "1.5-5b": (250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
    "1.5-5b-i2v": (122.842302, -104.088754, 26.2981677, -0.306009921, 0.0371213220),
}
IDENTITY = (1.0, 0.0)
"""The polynomial for models to which none was fitted."""


def resolve_cache_threshold(cache: str | None, asked: float | None) -> float | None:
    """The threshold of a cache of blocks, by default its usual one.

    Raises:
        InvalidInputError: there is no such cache, or the threshold is out of range.
    """
    if cache not in CACHES:
        if asked is not None:
            raise InvalidInputError(f"cache_threshold needs a cache: {' or '.join(CACHES)}")
        return None
    threshold = CACHES[cache] if asked is None else asked
    if not 0 <= threshold < float("inf"):
        raise InvalidInputError(f"cache_threshold must be 0 or more; got {threshold}")
    return threshold


def teacache_steps(
    transformer: CogVideoXTransformer3DModel,
    timesteps: Sequence[int],
    threshold: float,
    polynomial: Sequence[float],
) -> list[bool]:
    """Decides for each step whether it is computed.

    The first and the last step are computed, and each step at which the changes since the last
    computed one add up to the threshold.
    """
    dtype = transformer.norm_final.weight.dtype  # linear layers may have adapters around them
    embedded = transformer.embed_time(mx.array(list(timesteps)), dtype)
    embedded = np.array(embedded.astype(mx.float32), np.float64)
    changes = np.abs(np.diff(embedded, axis=0)).mean(1) / np.abs(embedded[:-1]).mean(1)
    computed, total = [True], 0.0
    for change in np.polyval(polynomial, changes):
        total += change
        computed.append(total >= threshold)
        total = 0.0 if computed[-1] else total
    computed[-1] = True
    return computed


@dataclass
class StepCache:
    """Computes velocities, in some steps with the blocks' last addition.

    Attributes:
        steps: the decisions of `teacache_steps`; None decides by the first block.
        threshold: the least relative change of the first block's addition for a step to be
            computed.
        last: the number of the last step, which is always computed.
        skipped: the steps that were skipped so far.
    """

    steps: list[bool] | None
    threshold: float
    last: int
    skipped: list[int] = field(default_factory=list)
    _size: StepSize | None = None
    _additions: list[mx.array] = field(default_factory=list)
    _firsts: list[mx.array] = field(default_factory=list)

    def velocity(
        self,
        transformer: CogVideoXTransformer3DModel,
        latents: mx.array,
        text: mx.array,
        timestep: mx.array,
        step: int,
        passes: int = 1,
        split: Split = WHOLE,
    ) -> mx.array:
        """Approximates ``transformer(latents, text, timestep)``; see ``denoising.velocities``."""
        schedule, size = EvalSchedule(), StepSize.of(transformer, latents, text)
        share = split.share(size)
        own = split.parts(passes, latents, text, timestep)
        parts = [transformer.embed(*part, share=share) for part in own]
        start, firsts = 0, []
        if self.steps is None:
            start = 1
            for i, (x, context) in enumerate(parts):
                after = transformer.run_blocks(x, context, end=1, schedule=schedule)
                firsts.append(after - x)
                parts[i] = after, context
            mx.eval(firsts)
        computed = self._size != size or step == self.last
        if not computed:
            computed = self._decides(step, firsts, size, split)
        if computed:
            # The additions of an earlier step are freed before the blocks are computed.
            self._additions, self._firsts, self._size = [], firsts, size
        else:
            self.skipped.append(step)
        made = []
        for i in range(len(parts)):
            x, context = parts[i]
            parts[i] = None
            if computed:
                before = x
                x = transformer.run_blocks(x, context, start, schedule=schedule)
                self._additions.append(x - before)
                mx.eval(self._additions[-1])
            else:
                x = x + self._additions[i]
            made.append(schedule.flush(own_patches(transformer, x, context, size)))
        return transformer.unpatchify(split.join(made, size), latents.shape)

    def _decides(self, step: int, firsts: list[mx.array], size: StepSize, split: Split) -> bool:
        """Whether a step is computed that could be skipped."""
        if self.steps is not None:
            return self.steps[step]
        too_many = (
            len(self.skipped) >= MAX_SKIPPED and self.skipped[-MAX_SKIPPED] == step - MAX_SKIPPED
        )
        return step < WARM_UP or too_many or self._has_changed(firsts, size, split)

    def _has_changed(self, firsts: list[mx.array], size: StepSize, split: Split) -> bool:
        """Whether the first block's addition changed enough in at least one clip of one pass."""
        means = [
            mx.stack(
                [
                    mx.abs(array.astype(mx.float32)).mean(axis=(1, 2))
                    for array in (first - before, before)
                ]
            )
            for first, before in zip(firsts, self._firsts, strict=True)
        ]
        difference, magnitude = split.means(means, size)
        return bool((difference >= self.threshold * magnitude).any().item())


def make_cache(
    kind: str,
    threshold: float,
    transformer: CogVideoXTransformer3DModel,
    timesteps: Sequence[int],
    polynomial: Sequence[float],
) -> StepCache:
    """Makes the cache of a run.

    Args:
        timesteps: timesteps of all its steps.
        polynomial: one of `POLYNOMIALS`, or `IDENTITY`.
    """
    steps = None
    if kind == "teacache":
        steps = teacache_steps(transformer, timesteps, threshold, polynomial)
    return StepCache(steps, threshold, len(timesteps) - 1)
