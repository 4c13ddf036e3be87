"""Extrapolated steps: predictions of the clean latents from those of the last two computed steps.

From step to step the clean latents that the model predicts (x0) change smoothly in
lambda = log(alpha / sigma). Each pass of guidance is extrapolated by itself, along a straight line,
and combined with the step's own guidance weight: under a schedule such as "wave" the weight jumps,
and so does the guided prediction.

After a computed step the skipped ones before it are corrected, since between two points a line is
much closer than beyond them. A sampler's step is linear in x and x0, so that the change of x costs
no pass of the model. The computed step keeps its own prediction, as in UniPC's corrector (Zhao et
al., arXiv:2302.04867).

There are two kinds:

- ``"latents"`` computes no pass in the other steps.
- ``"guidance"`` leaves out the unconditional pass alone.

Memory: four arrays of latents in float32, or two. They are part of the run's state.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

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

SHORTENED = 0.7
"""How far a line is followed beyond its last point: x0 settles, and its slope shrinks with it.

With lists of 11 to 29 of 50 steps on the demos, 0.7 was better than 1 by 1.4 dB in the mean, and
than 0.5 by 0.2 dB.
"""


def held_arrays(kind: str | None, passes: int) -> int:
    """Arrays of latents that a cache holds, in a run whose steps have so many passes."""
    names = EXTRAPOLATED.get(kind or "", ())
    return POINTS * sum(passes == 2 or name == CONDITIONAL for name in names)


@dataclass(frozen=True)
class Line:
    """A straight line through the last computed predictions, over lambda.

    Attributes:
        angles: atan2(sigma, alpha) of the noise at these steps, in radians; the latest last.
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
        """The prediction at another angle: between the two points, or beyond the latest."""
        first, second, wanted = map(half_log_snr, (*self.angles, angle))
        before, after = self.values
        share = (wanted - second) / (second - first)
        if share > 0:
            share *= SHORTENED
        return after + share * (after - before)


def half_log_snr(angle: float) -> float:
    """lambda = log(alpha / sigma) of an angle: -inf at zero SNR, from where a line is level."""
    return -math.log(math.tan(angle)) if angle < math.pi / 2 else -math.inf


Lines = Mapping[str, Line]
"""The lines of a run, by name."""


class Step(NamedTuple):
    """A step of a run: its timestep, its guidance weight and its passes, 2 with guidance."""

    t: int
    weight: float
    passes: int

    def factor(self, name: str) -> float:
        """What a line's value counts for in the guided prediction."""
        if name == CONDITIONAL:
            return 1.0
        return 1 - self.weight if self.passes == 2 else 0.0


class Guided(NamedTuple):
    """What the sampler takes: the guided answer, x and the last x0; and the lines after a step."""

    answer: mx.array
    sample: mx.array
    previous_x0: mx.array | None
    lines: Lines


@dataclass(frozen=True)
class Extrapolation:
    """Decides which passes a step computes, and extrapolates the others.

    Attributes:
        kind: a key of `EXTRAPOLATED`.
        scheduler: of the run.
        steps: the steps that are taken.
        computed: those that compute all passes, counted from 0.
    """

    kind: str
    scheduler: Scheduler
    steps: tuple[Step, ...]
    computed: Collection[int]

    def passes(self, number: int, lines: Lines) -> int:
        """The number of passes that a step computes; the one with the prompt is the last.

        A step computes all of them, too, where a line that it needs has no two points yet.
        """
        count = self.steps[number].passes
        needed = [name for name in EXTRAPOLATED[self.kind] if count == 2 or name == CONDITIONAL]
        ready = all(name in lines and lines[name].is_complete for name in needed)
        return count if number in self.computed or not ready else count - len(needed)

    def guided(
        self,
        number: int,
        answers: mx.array | None,
        sample: mx.array,
        previous_x0: mx.array | None,
        lines: Lines,
    ) -> Guided:
        """Classifier-free guidance of a step, in which passes may be missing.

        Args:
            answers: of the model in the passes that were computed, ``[1 or 2, ...]`` in float32;
                None where none was.
            sample: x of the step, ``[1, f, h, w, c]``.
            previous_x0: the guided prediction of the step before, if there is one.
        """
        step, angle = self.steps[number], self._angle(number)
        known = self._predictions(step, answers, sample)
        points = {name: known[name] for name in EXTRAPOLATED[self.kind] if name in known}
        updated = {name: lines.get(name, Line()).through(angle, points[name]) for name in points}
        skipped = self._skipped(number, updated)
        if skipped:
            shift, x0_shift = self._correction(skipped, lines, updated, mx.zeros_like(sample))
            sample, previous_x0 = sample + shift, previous_x0 + x0_shift
        lines = {**lines, **updated}
        if len(known) == step.passes and not skipped:
            return Guided(guided(answers, step.weight), sample, previous_x0, lines)
        x0 = known[CONDITIONAL] if known else lines[CONDITIONAL].at(angle)
        if step.passes == 2:
            difference = known.get(DIFFERENCE)
            if difference is None:
                difference = lines[DIFFERENCE].at(angle)
            x0 = x0 + step.factor(DIFFERENCE) * difference
        return Guided(self.scheduler.answer_of(x0, step.t, sample), sample, previous_x0, lines)

    def _predictions(
        self, step: Step, answers: mx.array | None, sample: mx.array
    ) -> dict[str, mx.array]:
        """The predictions that a step's answers give, by the names of their lines."""
        if answers is None:
            return {}
        x0 = self.scheduler.predict_x0(answers, step.t, sample)
        known = {CONDITIONAL: x0[-1:]}
        if len(x0) == 2:
            known[DIFFERENCE] = x0[:1] - x0[1:]
        return known

    def _angle(self, number: int) -> float:
        return self.scheduler.angle(self.steps[number].t)

    def _skipped(self, number: int, updated: Lines) -> range:
        """The steps between a computed one and those that its lines come from."""
        before = [line.angles[0] for line in updated.values() if line.is_complete]
        first = number
        while before and first and self._angle(first - 1) < max(before):
            first -= 1
        return range(first, number)

    def _correction(
        self, skipped: range, lines: Lines, updated: Lines, zeros: mx.array
    ) -> tuple[mx.array, mx.array]:
        """How far x and the last x0 would move, had these steps known the point after them.

        Args:
            lines: those that the steps were extrapolated along.
            updated: those through the point before them and the one after.
            zeros: shaped like x.
        """
        shift = x0 = zeros
        for number in skipped:
            step, angle, change = self.steps[number], self._angle(number), zeros
            for name, line in updated.items():
                factor = step.factor(name)
                if factor and angle < line.angles[0]:
                    change = change + factor * (line.at(angle) - lines[name].at(angle))
            answer = self.scheduler.answer_of(change, step.t, shift)
            # A step of the sampler is linear: moved alone, what it is given moves what it gives.
            shift, x0 = self.scheduler.step(answer, step.t, shift, previous_x0=x0, noise=zeros)
        return shift, x0
