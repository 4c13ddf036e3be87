"""Classifier-free guidance: the weight of the prompt, step by step."""

import math
from collections.abc import Callable

import mlx.core as mx

from ..errors import InvalidInputError

GUIDANCE_SCHEDULES = ("constant", "wave", "cosine")
UNCONDS = ("empty", "zero")


def schedule_name(name: bool | str) -> str:
    """Checks the name of a schedule; False and True stand for two, as in diffusers.

    Raises:
        InvalidInputError: there is no such schedule.
    """
    name = {False: "constant", True: "wave"}.get(name, name)
    if name not in GUIDANCE_SCHEDULES:
        choices = ", ".join(GUIDANCE_SCHEDULES)
        raise InvalidInputError(f"the guidance schedule must be one of {choices}; got {name!r}")
    return name


def guidance_schedule(name: bool | str, scale: float) -> Callable[[int, int, int], float]:
    """Returns the guidance weight as a function of step index, timestep and number of steps.

    ``"constant"`` (or False) is always `scale`. ``"wave"`` (or True) is the official "dynamic
    CFG". Its formula gets the training timestep in place of the step, so that it oscillates between
    1 and 1 + `scale`; its authors keep it on purpose (zai-org/CogVideo#267). ``"cosine"`` is the
    intended curve, which rises from 1 towards 1 + `scale`, late and steeply.

    Raises:
        InvalidInputError: another name.
    """
    name = schedule_name(name)
    if name == "constant":
        return lambda step, timestep, steps: scale
    if name == "wave":
        # The argument reaches 1e7 radians: these have to be Python's float64.
        return lambda step, timestep, steps: _rise(scale, (steps - timestep) / steps)
    return lambda step, timestep, steps: _rise(scale, step / steps)


def guided(velocity: mx.array, weight: float) -> mx.array:
    """Classifier-free guidance of a batch of two, unconditional first; a batch of one stays."""
    if len(velocity) == 1:
        return velocity
    unconditional, conditional = mx.split(velocity, 2)
    return unconditional + weight * (conditional - unconditional)


def check_uncond(name: str, has_negative: bool) -> None:
    """Raises InvalidInputError for zeros beside a negative prompt."""
    if name == "zero" and has_negative:
        raise InvalidInputError("uncond zero takes no negative prompt: leave one of them out")


def _rise(scale: float, progress: float) -> float:
    return 1 + scale * (1 - math.cos(math.pi * progress**5)) / 2
