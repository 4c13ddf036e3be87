"""A caller's function that is called after each step of denoising."""

import inspect
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx

from ..diffusion.denoising import DenoisingState
from ..errors import InvalidInputError

StepCallback = (
    Callable[[int, int, mx.array], bool | None]
    | Callable[[Any, int, int, dict[str, Any]], dict[str, Any] | bool | None]
)
"""With three arguments: the step's index, its timestep and the latents. With four, as in diffusers:
the pipeline, the index, the timestep, and a dict with the latents."""

TENSORS = ("latents",)
"""What the dict of a callback may have."""


class StepHook:
    """Calls the caller's function after each step, and follows its answer.

    Attributes:
        stopped: whether denoising is to end here.
    """

    def __init__(self, pipe: Any, callback: StepCallback | None):
        self._pipe, self._callback = pipe, callback
        self._takes_pipe = callback is not None and not _takes(callback, 3)
        self.stopped = False

    def __call__(self, state: DenoisingState) -> DenoisingState:
        """Returns the state to continue from, whose latents the function may have changed."""
        if self._callback is None:
            return state
        position = state.step - 1, state.timestep
        if not self._takes_pipe:
            self.stopped = self._callback(*position, state.latents) is False
            return state
        self._pipe._interrupt = False  # as diffusers' callbacks set it
        answer = self._callback(self._pipe, *position, {"latents": state.latents})
        self.stopped = answer is False or self._pipe._interrupt
        if not isinstance(answer, Mapping):
            return state
        return replace(state, latents=_latents(answer.get("latents"), state.latents))


def check_callback(name: str, callback: Any, *counts: int) -> None:
    """Raises InvalidInputError unless something can be called with one of these argument counts."""
    if callback is None or (callable(callback) and any(_takes(callback, n) for n in counts)):
        return
    words = " or ".join({3: "three", 4: "four"}[count] for count in counts)
    raise InvalidInputError(
        f"{name} must be a function of {words} arguments; got {reprlib.repr(callback)}"
    )


def _takes(callback: Any, count: int) -> bool:
    """Whether something can be called with so many arguments."""
    try:
        inspect.signature(callback).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a function in C without a signature
        return True
    return True


def _latents(answer: Any, before: mx.array) -> mx.array:
    if answer is None or answer is before:
        return before
    latents = mx.array(answer).astype(mx.float32)
    if latents.shape != before.shape:
        raise InvalidInputError(
            f"callback_on_step_end must return latents of shape {before.shape}; got {latents.shape}"
        )
    return latents
