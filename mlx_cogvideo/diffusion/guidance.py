"""How strongly to follow the prompt, step by step."""

import math
from collections.abc import Callable

from ..errors import InvalidInputError

GUIDANCE_SCHEDULES = ("constant", "wave", "cosine")
UNCONDS = ("empty", "zero")


def schedule_name(name: bool | str) -> str:
    """The schedule's name: that of False and True, too, which diffusers' users are used to.

    Raises:
        InvalidInputError: there is no such schedule.
    """
    name = {False: "constant", True: "wave"}.get(name, name)
    if name not in GUIDANCE_SCHEDULES:
        choices = ", ".join(GUIDANCE_SCHEDULES)
        raise InvalidInputError(f"the guidance schedule must be one of {choices}; got {name!r}")
    return name


def guidance_schedule(name: bool | str, scale: float) -> Callable[[int, int, int], float]:
    """The guidance weight as a function of step index, timestep and number of steps.

    ``"constant"`` (or False) is `scale` throughout. ``"wave"`` (or True) is the official "dynamic
    CFG", whose formula is given the training timestep where it means the step and so oscillates
    between 1 and 1 + `scale`; its authors found that they like it (zai-org/CogVideo#267).
    ``"cosine"`` is the curve that was meant: rising from 1 towards 1 + `scale`, late and steeply.

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


def check_uncond(name: str, has_negative: bool) -> None:
    """Raises InvalidInputError where there is no such unconditional, or none beside a negative
    prompt."""
    if name not in UNCONDS:
        raise InvalidInputError(f"uncond must be one of {', '.join(UNCONDS)}; got {name!r}")
    if name == "zero" and has_negative:
        raise InvalidInputError("with uncond zero there is no negative prompt: leave one out")


def _rise(scale: float, progress: float) -> float:
    return 1 + scale * (1 - math.cos(math.pi * progress**5)) / 2
