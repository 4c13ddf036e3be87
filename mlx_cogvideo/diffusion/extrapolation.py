"""Extrapolated steps: predictions of the clean latents from those of the last two computed steps.

From step to step the clean latents that the model predicts (x0) change smoothly in the angle of the
noise, atan2(sigma, alpha). Each pass of guidance is extrapolated by itself, along a straight line,
and combined with the step's own guidance weight: under a schedule such as "wave" the weight jumps,
and so does the guided prediction.

There are two kinds:

- ``"latents"`` computes no pass in the other steps.
- ``"guidance"`` leaves out the unconditional pass alone.

Memory: four arrays of latents in float32, or two. They are part of the run's state.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

import mlx.core as mx

from .guidance import guided
from .schedulers import Scheduler

CONDITIONAL = "conditional"
DIFFERENCE = "difference"

EXTRAPOLATED = {"latents": (CONDITIONAL, DIFFERENCE), "guidance": (DIFFERENCE,)}
"""The kinds, and the lines that each keeps: the prediction of the pass with the prompt, and how far
that of the unconditional pass is from it."""

POINTS = 2
"""Computed steps that a line goes through."""


def held_arrays(kind: str | None, passes: int) -> int:
    """Arrays of latents that a cache holds, in a run whose steps have so many passes."""
    names = EXTRAPOLATED.get(kind or "", ())
    return POINTS * sum(passes == 2 or name == CONDITIONAL for name in names)


@dataclass(frozen=True)
class Line:
    """A straight line through the last computed predictions.

    Attributes:
        angles: of the noise at these steps, in radians; the latest last.
        values: the predictions ``[1, f, h, w, c]`` in float32.
    """

    angles: tuple[float, ...] = ()
    values: tuple[mx.array, ...] = ()

    @property
    def is_complete(self) -> bool:
        return len(self.values) == POINTS

    def through(self, angle: float, value: mx.array) -> Self:
        """The line through the latest point and a new one."""
        last = POINTS - 1
        return type(self)((*self.angles[-last:], angle), (*self.values[-last:], value))

    def at(self, angle: float) -> mx.array:
        """The prediction at another angle."""
        (first, second), (before, after) = self.angles, self.values
        return after + (angle - second) / (second - first) * (after - before)


Lines = Mapping[str, Line]
"""The lines of a run, by name."""


@dataclass(frozen=True)
class Extrapolation:
    """Decides which passes a step computes, and extrapolates the others.

    Attributes:
        kind: a key of `EXTRAPOLATED`.
        scheduler: of the run.
        computed: steps that compute all passes, counted from 0 in the steps that are taken.
    """

    kind: str
    scheduler: Scheduler
    computed: Collection[int]

    def passes(self, step: int, count: int, lines: Lines) -> int:
        """The number of passes that a step computes; the one with the prompt is the last.

        A step computes all of them, too, where a line that it needs has no two points yet.

        Args:
            count: passes of the step: 2 with guidance.
        """
        needed = [name for name in EXTRAPOLATED[self.kind] if count == 2 or name == CONDITIONAL]
        ready = all(name in lines and lines[name].is_complete for name in needed)
        return count if step in self.computed or not ready else count - len(needed)

    def guided(
        self,
        velocities: mx.array | None,
        count: int,
        weight: float,
        t: int,
        sample: mx.array,
        lines: Lines,
    ) -> tuple[mx.array, Lines]:
        """Classifier-free guidance, in which passes may be missing.

        Args:
            velocities: the model's answers in the passes that were computed, ``[1 or 2, ...]`` in
                float32; None where none was.
            count: passes of the step.
            weight: the step's guidance weight.
            t: timestep of the step.
            sample: x at t, ``[1, f, h, w, c]``.

        Returns:
            The guided answer ``[1, f, h, w, c]``, and the lines with what was computed.
        """
        angle, known = self.scheduler.angle(t), {}
        if velocities is not None:
            x0 = self.scheduler.predict_x0(velocities, t, sample)
            known[CONDITIONAL] = x0[-1:]
            if len(x0) == 2:
                known[DIFFERENCE] = x0[:1] - x0[1:]
            kept = [name for name in EXTRAPOLATED[self.kind] if name in known]
            lines = {**lines, **{n: lines.get(n, Line()).through(angle, known[n]) for n in kept}}
            if len(velocities) == count:
                return guided(velocities, weight), lines
        x0 = known[CONDITIONAL] if known else lines[CONDITIONAL].at(angle)
        if count == 2:
            x0 = x0 + (1 - weight) * lines[DIFFERENCE].at(angle)
        return self.scheduler.answer_of(x0, t, sample), lines
