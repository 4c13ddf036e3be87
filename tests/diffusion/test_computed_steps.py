"""Lists of the steps that a cache of predictions computes."""

from itertools import combinations

import numpy as np
import pytest
from support import scheduler_config

from mlx_cogvideo.diffusion import computed_steps
from mlx_cogvideo.diffusion.computed_steps import choose_computed_steps, usual_steps
from mlx_cogvideo.diffusion.schedulers import SCHEDULERS
from mlx_cogvideo.errors import InvalidInputError


def scheduler(steps: int, name: str = "ddim", **changes):
    made = SCHEDULERS[name].from_config(scheduler_config(**changes))
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    ("steps", "count"),
    [(50, 22), (50, 17), (50, 24), (50, 10), (50, 2), (25, 11), (10, 10), (7, 3), (2, 2), (1, 1)],
)
def test_a_list_has_the_given_number_and_begins_with_two_steps(name, steps, count):
    found = usual_steps(scheduler(steps, name), count)
    assert len(found) == count and found[:2] == (0, 1)[:count]
    assert list(found) == sorted(set(found)) and found[-1] < steps


def test_a_list_is_dense_in_the_beginning_and_thin_in_the_middle():
    for name, shift in (("ddim", 1.0), ("ddim", 3.0), ("dpm", 1.0), ("dpm", 3.0)):
        gaps = np.diff(usual_steps(scheduler(50, name, snr_shift_scale=shift), 18))
        assert gaps[:3].max() < gaps[8:12].min() > gaps[-1]


def test_the_shipped_lists_are_for_the_table_that_they_were_fitted_on():
    assert usual_steps(scheduler(50), 22)[-6:] == (37, 40, 43, 47, 48, 49)
    assert usual_steps(scheduler(50, "dpm++"), 22) == usual_steps(scheduler(50), 22)
    assert usual_steps(scheduler(50, "dpm"), 22) != usual_steps(scheduler(50), 22)
    assert usual_steps(scheduler(50, snr_shift_scale=3.0), 22) != usual_steps(scheduler(50), 22)


def test_many_steps_are_spread_evenly():
    found = usual_steps(scheduler(1000), 440)
    assert len(found) == 440 and found[:2] == (0, 1) and found[-1] == 999
    assert set(np.diff(found)) <= {1, 2, 3}


@pytest.mark.parametrize("name", ["ddim", "dpm"])
@pytest.mark.parametrize("count", [3, 4, 6])
def test_the_fit_finds_the_best_of_all_lists(name, count):
    """By hand: the errors of each list's skipped steps, for all lists of that length."""
    steps = 9
    made = scheduler(steps, name)
    errors = computed_steps._SDE if name == "dpm" else computed_steps._ODE
    angles = np.array([made.angle(int(t)) for t in made.timesteps])
    alpha, sigma = np.cos([*angles, 0]), np.sin([*angles, 0])

    def error(computed) -> float:
        total = 0.0
        for i in set(range(steps)) - set(computed):
            k, j = [step for step in computed if step < i][-2:]
            weight = alpha[i + 1] - alpha[i] * sigma[i + 1] / sigma[i]
            a, b, c = angles[k], angles[j], angles[i]
            bend = errors.bend * (np.pi / 2 - b) ** -errors.bend_power * (c - a) * (c - b) / 2
            rough = errors.rough * (np.pi / 2 - c) ** -errors.rough_power
            ahead = (c - b) / (b - a)
            total += weight**2 * (bend**2 + rough**2 * (1 + (1 + ahead) ** 2 + ahead**2))
        return total

    all_lists = [(0, 1, *more) for more in combinations(range(2, steps), count - 2)]
    assert usual_steps(made, count) == min(all_lists, key=error)


def test_the_default_is_a_share_of_the_steps():
    assert len(choose_computed_steps("latents", None, scheduler(50))) == 22
    assert len(choose_computed_steps("guidance", None, scheduler(50))) == 24
    assert len(choose_computed_steps("latents", None, scheduler(10))) == 4
    assert choose_computed_steps("latents", None, scheduler(1)) == (0,)
    assert choose_computed_steps("teacache", None, scheduler(50)) is None


@pytest.mark.parametrize("asked", [17, [17], (17,)])
def test_a_number_may_be_alone_or_in_a_list(asked):
    assert choose_computed_steps("latents", asked, scheduler(50)) == usual_steps(scheduler(50), 17)


@pytest.mark.parametrize(
    ("cache", "asked", "message"),
    [
        (None, 5, "computed_steps needs a cache: latents or guidance"),
        ("teacache", 5, "computed_steps needs a cache: latents or guidance"),
        ("latents", 1, "computed_steps must be 2 to 8 of 8 steps; got 1"),
        ("latents", 9, "computed_steps must be 2 to 8 of 8 steps; got 9"),
        ("latents", [0, 2, 4], "begin with 0 and 1; got 0, 2, 4"),
        ("latents", [0, 1, 4, 3], "rising numbers from 0 to 7 .* got 0, 1, 4, 3"),
        ("guidance", [0, 1, 8], "rising numbers from 0 to 7 .* got 0, 1, 8"),
        ("latents", [], "rising numbers .* got nothing"),
    ],
)
def test_a_wrong_list_is_refused_with_what_would_be_right(cache, asked, message):
    with pytest.raises(InvalidInputError, match=message):
        choose_computed_steps(cache, asked, scheduler(8))
