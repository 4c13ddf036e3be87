"""The best lists of steps to compute, from recorded predictions."""

from itertools import combinations

import numpy as np
import pytest

from mlx_cogvideo.diffusion.step_lists import RecordedRun, best_lists, together

STEPS, SIZE = 9, 40


def recorded(seed: int, weights: list[float]) -> tuple[RecordedRun, np.ndarray, np.ndarray]:
    """A run with random predictions, and the predictions ``[steps, size]`` of both passes."""
    rng = np.random.default_rng(seed)
    conditional, difference = rng.normal(size=(2, STEPS, SIZE)).cumsum(1) + 3
    rows = np.concatenate([conditional, difference])
    angles = np.sort(rng.uniform(0.05, np.pi / 2, STEPS))[::-1]
    factors = rng.uniform(0.01, 0.3, STEPS)
    return RecordedRun(angles, factors, weights, rows @ rows.T), conditional, difference


def cost(run: RecordedRun, conditional: np.ndarray, difference: np.ndarray, computed) -> float:
    """By hand: the skipped steps' squared errors, by their weight in the sampler's steps."""
    total, a = 0.0, -np.log(np.tan(run.angles))
    for i in set(range(STEPS)) - set(computed):
        k, j = [step for step in computed if step < i][-2:]
        ahead = 0.7 * (a[i] - a[j]) / (a[j] - a[k])
        off = [x[i] - x[j] - ahead * (x[j] - x[k]) for x in (conditional, difference)]
        error = off[0] + (1 - run.weights[i]) * off[1]
        total += run.factors[i] ** 2 * (error @ error)
    return total / (conditional[-1] @ conditional[-1])


def all_lists(length: int) -> list[tuple[int, ...]]:
    return [(0, 1, *more) for more in combinations(range(2, STEPS), length - 2)]


@pytest.mark.parametrize(
    "weights", [[1.0] * STEPS, [6.0] * STEPS, [1 + 6.0 * (i % 2) for i in range(STEPS)]]
)
def test_a_list_of_each_length_has_the_least_error_of_all(weights):
    run = recorded(1, weights)
    found = best_lists(run[0].costs, STEPS)
    assert [len(each.steps) for each in found] == [*range(2, STEPS + 1)]
    for each in found:
        best = min(all_lists(len(each.steps)), key=lambda steps: cost(*run, steps))
        assert each.steps == best
        assert each.cost == pytest.approx(cost(*run, best), rel=1e-9, abs=1e-12)
    assert found[-1].cost == 0


def test_a_run_without_guidance_has_zeros_for_the_differences():
    run, conditional, _ = recorded(2, [1.0] * STEPS)
    products = np.zeros_like(run.products)
    products[:STEPS, :STEPS] = conditional @ conditional.T
    alone = RecordedRun(run.angles, run.factors, run.weights, products)
    assert best_lists(alone.costs, 5) == best_lists(run.costs, 5)


def test_several_runs_count_alike():
    first, second = (recorded(seed, [2.0] * STEPS) for seed in (3, 4))
    # The same predictions in another unit: their errors are parts of their own size.
    larger = RecordedRun(
        first[0].angles, first[0].factors, first[0].weights, first[0].products * 1e4
    )
    one, other = (best_lists(together([run, second[0]]), 5)[-1] for run in (first[0], larger))
    assert one.steps == other.steps and one.cost == pytest.approx(other.cost)
    mean = min(all_lists(5), key=lambda steps: cost(*first, steps) + cost(*second, steps))
    assert one.steps == mean
