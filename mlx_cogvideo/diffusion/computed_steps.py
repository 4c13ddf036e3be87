"""Which steps a cache of predictions computes: lists that are shipped, given, or fitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import InvalidInputError
from .extrapolation import EXTRAPOLATED, POINTS
from .schedulers import CogVideoXDPMScheduler, Scheduler
from .step_lists import Costs, best_lists

DEFAULT_SHARES = {"latents": 22 / 50, "guidance": 24 / 50}
"""The share of the steps that each cache computes in full by default."""

PRESETS = {"balanced": 22 / 50, "fast": 17 / 50}
"""The share of the steps that each preset computes; the others are extrapolated."""


def steps_to_compute(share: float, steps: int) -> int:
    """The number of steps that are a share of them, and enough to extrapolate from."""
    return max(min(POINTS, steps), round(share * steps))


def choose_computed_steps(
    cache: str | None, asked: int | Sequence[int] | None, scheduler: Scheduler
) -> tuple[int, ...] | None:
    """The steps that a cache computes in full; None where it decides in another way.

    Args:
        asked: their number, or a list of them; None is the cache's usual share.
        scheduler: with its timesteps set.

    Raises:
        InvalidInputError: another cache has no such list, or the list isn't one of steps.
    """
    if cache not in EXTRAPOLATED:
        if asked is not None:
            raise InvalidInputError(f"computed_steps needs a cache: {' or '.join(EXTRAPOLATED)}")
        return None
    steps = len(scheduler.timesteps)
    if asked is None:
        asked = steps_to_compute(DEFAULT_SHARES[cache], steps)
    elif not isinstance(asked, int) and len(asked) == 1:
        (asked,) = asked
    if isinstance(asked, int):
        if not min(POINTS, steps) <= asked <= steps:
            raise InvalidInputError(
                f"computed_steps must be {POINTS} to {steps} of {steps} steps; got {asked}"
            )
        return usual_steps(scheduler, asked)
    return as_steps(asked, steps)


def as_steps(numbers: Sequence[int], steps: int) -> tuple[int, ...]:
    """A list of steps to compute, of so many steps.

    Raises:
        InvalidInputError: the list isn't one of steps.
    """
    given = tuple(numbers)
    if given != tuple(sorted({*given, *range(min(POINTS, steps))})) or given[-1] >= steps:
        raise InvalidInputError(
            f"computed_steps must be rising numbers from 0 to {steps - 1} that begin with 0 and 1; "
            f"got {', '.join(map(str, given)) or 'nothing'}"
        )
    return given


# For 50 steps of the official noise table without a shift: the best that a search found in whole
# runs of the demo, with captions of its training.
_DDIM_50 = {
    22: (0, 1, 2, 3, 4, 6, 7, 8, 10, 12, 14, 17, 19, 22, 26, 32, 37, 40, 43, 47, 48, 49),
    17: (0, 1, 2, 3, 4, 6, 7, 10, 12, 17, 21, 27, 33, 38, 45, 47, 49),
    13: (0, 1, 2, 4, 7, 11, 14, 21, 29, 36, 44, 47, 49),
    11: (0, 1, 3, 7, 11, 19, 26, 38, 42, 48, 49),
}
_SDE_50 = {
    29: (*range(11), *range(12, 25, 2), *range(27, 43, 3), 44, 46, 47, 48, 49),
    22: (0, 1, 2, 3, 5, 7, 9, 10, 12, 14, 16, 18, 21, 24, 29, 32, 37, 42, 45, 47, 48, 49),
    17: (0, 1, 2, 3, 5, 7, 9, 12, 15, 19, 23, 28, 34, 41, 46, 48, 49),
    13: (0, 1, 2, 4, 7, 11, 16, 22, 29, 38, 44, 48, 49),
    11: (0, 1, 5, 9, 12, 16, 23, 30, 39, 47, 49),
}


def usual_steps(scheduler: Scheduler, count: int) -> tuple[int, ...]:
    """The steps to compute where only their number is known.

    Args:
        scheduler: with its timesteps set.
        count: at least 2, unless there is only one step.
    """
    has_noise = isinstance(scheduler, CogVideoXDPMScheduler)
    steps, config = len(scheduler.timesteps), scheduler.config
    if steps == 50 and config.snr_shift_scale == 1 and config.timestep_spacing == "trailing":
        shipped = (_SDE_50 if has_noise else _DDIM_50).get(count)
        if shipped is not None:
            return shipped
    if steps > FITTED_AT_MOST:
        return _spread(steps, count)
    angles = tuple(scheduler.angle(int(t)) for t in scheduler.timesteps)
    return _fitted(angles, count, _SDE if has_noise else _ODE)


FITTED_AT_MOST = 100
"""Steps up to which a list is fitted, within half a second."""


def _spread(steps: int, count: int) -> tuple[int, ...]:
    """The first two steps, and others at even distances."""
    others = np.linspace(1, steps - 1, count - 1).round().astype(int)
    return 0, *others.tolist()


@dataclass(frozen=True)
class _Errors:
    """How far a prediction is from the line through two earlier ones, at the angle a.

    With u = pi / 2 - a, the predictions have a second derivative of ``bend u^-bend_power``, and
    each is off a smooth curve by ``rough u^-rough_power``, in any unit. With these numbers, lists
    of 10 to 30 steps of 50 came within 1.3 dB of the best ones for recorded runs of the demo,
    before skipped steps were corrected.
    """

    bend: float
    bend_power: float
    rough: float
    rough_power: float


_ODE = _Errors(bend=51, bend_power=2.46, rough=1, rough_power=0.17)
_SDE = _Errors(bend=60, bend_power=1.86, rough=1, rough_power=0.68)


@cache
def _fitted(angles: tuple[float, ...], count: int, errors: _Errors) -> tuple[int, ...]:
    """The list with the least error."""
    steps = len(angles)
    if count >= steps or steps <= POINTS:
        return tuple(range(steps))
    return best_lists(_costs(np.array(angles), errors), count)[-1].steps


def _costs(angles: np.ndarray, errors: _Errors) -> Costs:
    """What it costs to skip steps, by a formula for the errors."""
    a, steps = angles, len(angles)
    after = np.append(a[1:], 0.0)
    weights = np.cos(after) - np.cos(a) * np.sin(after) / np.sin(a)
    u = np.pi / 2 - a
    costs = []
    for j in range(steps):
        k, n = a[:j, None], a[None, j + 1 :]
        distance = (n - a[j]) / (a[j] - k)
        with np.errstate(divide="ignore", invalid="ignore"):
            bend = errors.bend * u[j] ** -errors.bend_power * (n - a[j]) * (n - k) / 2
            rough = errors.rough * u[j + 1 :] ** -errors.rough_power
        error = bend**2 + rough**2 * (1 + (1 + distance) ** 2 + distance**2)
        skipped = (weights[j + 1 :] ** 2 * error).cumsum(1)
        costs.append(np.concatenate([np.zeros((j, 1)), skipped], axis=1))
    return costs
