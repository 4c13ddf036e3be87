"""The best lists of steps to compute, found by dynamic programming over the last two of them.

What it costs to skip steps depends on the last two computed ones alone, as a line goes through
them. So the best list of each length is known without trying all lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .extrapolation import POINTS, SHORTENED, half_log_snr

Costs = list[np.ndarray]
"""What it costs to compute no step after j until n, where k and j are the last two computed ones:
for each j an array ``[k, n - j - 1]``, for all k before j, and n up to the number of steps."""


@dataclass(frozen=True)
class StepList:
    """Steps to compute.

    Attributes:
        steps: rising, from 0.
        cost: the sum of the squared errors of the others, by their weight in the sampler's steps.
    """

    steps: tuple[int, ...]
    cost: float


def best_lists(costs: Costs, most: int) -> list[StepList]:
    """The list with the least cost of each length from 2 to `most`, the shortest first."""
    steps = len(costs)
    # best[j, k]: the least cost up to j, where j and k are the last two computed steps.
    best = np.full((steps, steps), np.inf)
    best[1, 0] = 0
    origins: list[np.ndarray] = []
    found = [_ended(best, costs, origins)]
    while len(origins) < most - POINTS:
        following, origin = np.full_like(best, np.inf), np.zeros(best.shape, int)
        for j in range(1, steps - 1):
            totals = best[j, :j, None] + costs[j][:, :-1]  # by the next computed step
            following[j + 1 :, j], origin[j + 1 :, j] = totals.min(0), totals.argmin(0)
        best = following
        origins.append(origin)
        found.append(_ended(best, costs, origins))
    return found


def _ended(best: np.ndarray, costs: Costs, origins: list[np.ndarray]) -> StepList:
    """The best list of a length, with what the steps after its last one cost."""
    ends = np.full_like(best, np.inf)
    for j in range(1, len(costs)):
        ends[j, :j] = best[j, :j] + costs[j][:, -1]
    latest, before = np.unravel_index(ends.argmin(), ends.shape)
    found = [int(latest), int(before)]
    for origin in reversed(origins):
        found.append(int(origin[found[-2], found[-1]]))
    return StepList(tuple(reversed(found)), float(ends.min()))


@dataclass(frozen=True)
class RecordedRun:
    """The predictions of a run that has computed all its steps.

    Attributes:
        angles: of the noise at each step, in radians.
        factors: of the predicted clean latents in the sampler's steps.
        weights: the guidance weight of each step; 1 without guidance.
        products: inner products ``[2 n, 2 n]`` in float64 of the predictions: those of the pass
            with the prompt in n steps, then how far the unconditional ones are from them (zeros
            without guidance).
    """

    angles: Sequence[float]
    factors: Sequence[float]
    weights: Sequence[float]
    products: np.ndarray

    @property
    def costs(self) -> Costs:
        """What skipping steps costs in this run, as a part of the size of its last prediction.

        No block is computed for it: the error of a line through two predictions is a sum of three
        of them, whose squared length follows from inner products. That the skipped steps are
        corrected afterwards changes little in the order of lists.
        """
        steps, positions = len(self.angles), np.array([*map(half_log_snr, self.angles)])
        size = self.products[steps - 1, steps - 1]
        errors = np.zeros((steps, steps, steps))  # of step i, from a line through k and j
        for i, (weight, factor) in enumerate(zip(self.weights, self.factors, strict=True)):
            errors[i] = factor**2 / size * _squared_errors(self._guided(weight), positions, i)
        skipped = errors.cumsum(0)
        costs = []
        for j in range(steps):
            sums = skipped[j:, j, :j] - skipped[j, j, :j]  # [n - j - 1, k]
            costs.append(sums.T)
        return costs

    def _guided(self, weight: float) -> np.ndarray:
        """Inner products ``[n, n]`` of the guided predictions, with one weight at all steps."""
        n, share = len(self.angles), 1 - weight
        whole, mixed = self.products[:n, :n], self.products[:n, n:]
        return whole + share * (mixed + mixed.T) + share**2 * self.products[n:, n:]


def _squared_errors(products: np.ndarray, positions: np.ndarray, i: int) -> np.ndarray:
    """``[j, k]``: how far lines through steps k and j, both before i, are from the prediction at i.

    Args:
        positions: log(alpha / sigma) of the steps.

    Elements where k isn't before j, or j not before i, mean nothing.
    """
    j, k = np.arange(i)[:, None], np.arange(i)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = SHORTENED * (positions[i] - positions[j]) / (positions[j] - positions[k])
        ahead = np.where(k < j, ahead, 0)
    own, past = products[j, j], products[k, k]
    error = products[i, i] + (1 + ahead) ** 2 * own + ahead**2 * past
    error = error - 2 * (1 + ahead) * products[i, j] + 2 * ahead * products[i, k]
    found = np.zeros(products.shape)
    found[:i, :i] = np.maximum(error - 2 * ahead * (1 + ahead) * products[j, k], 0)
    return found


def together(runs: Sequence[RecordedRun]) -> Costs:
    """The costs of several runs with the same steps, each counted alike."""
    return [np.mean(parts, axis=0) for parts in zip(*(run.costs for run in runs), strict=True)]
