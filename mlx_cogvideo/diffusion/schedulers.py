"""The samplers, ways to walk the noise table: DDIM, SDE-DPM-Solver++(2M) and DPM-Solver++(2M).

Symbols follow the papers, as in ``base_scheduler``. Sampling goes from a noisier level s to a
cleaner level t.

- DDIM: Song et al., arXiv:2010.02502, eq. 12 with eta = 0.
- DPM-Solver++(2M) and SDE-DPM-Solver++(2M): Lu et al., arXiv:2211.01095.
"""

from collections.abc import Mapping
from math import expm1, inf, log, sqrt
from typing import Any

import mlx.core as mx

from ..errors import InvalidInputError
from .base_scheduler import FINAL, BaseScheduler


class CogVideoXDDIMScheduler(BaseScheduler):
    """Deterministic sampling: DDIM with eta = 0 (arXiv:2010.02502, eq. 12)."""

    def step(
        self,
        model_output: mx.array,
        timestep: int | mx.array,
        sample: mx.array,
        *,
        previous_x0: mx.array | None = None,
        noise: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Goes from ``timestep`` to the next one of ``timesteps``, and from the last to the end.

        Args:
            model_output: the model's answer, shaped like sample.
            timestep: a member of ``timesteps``.
            sample: x at ``timestep``, of any float dtype.
            previous_x0: unused; here so that all samplers are called alike.
            noise: unused, likewise.

        Returns:
            x at the next timestep and the predicted clean sample, both float32.

        Raises:
            InvalidInputError: set_timesteps wasn't called or timestep isn't in its list.
        """
        (_, s, t), sample, x0 = self._begin_step(model_output, timestep, sample)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self._level(s), self._level(t)
        a = sigma_t / sigma_s
        b = alpha_t - alpha_s * a
        return a * sample + b * x0, x0


class _SecondOrderScheduler(BaseScheduler):
    """What both solvers of the second order share: the clean sample that a step goes towards."""

    def _target(
        self, x0: mx.array, previous_x0: mx.array | None, levels: tuple[int | None, int, int]
    ) -> mx.array:
        """The paper's D: past x0, away from the one before, where there is one to look back to.

        Args:
            levels: the timesteps before, at and after the step.
        """
        r, s, t = levels
        if r is None or previous_x0 is None or t == FINAL:
            return x0
        w = self._extrapolation(r, s, t)
        return (1 + w) * x0 - w * previous_x0.astype(mx.float32)

    def _extrapolation(self, r: int, s: int, t: int) -> float:
        """How far to go past x0, away from the one before: h / (2 h_last).

        0 where the step before began at zero SNR: its h_last is infinite.
        """
        lambda_r, lambda_s, lambda_t = (_half_log_snr(*self._level(i)) for i in (r, s, t))
        return (lambda_t - lambda_s) / (2 * (lambda_s - lambda_r))


class CogVideoXDPMScheduler(_SecondOrderScheduler):
    """SDE-DPM-Solver++(2M): second order, with fresh noise at every step (arXiv:2211.01095)."""

    def step(
        self,
        model_output: mx.array,
        timestep: int | mx.array,
        sample: mx.array,
        *,
        previous_x0: mx.array | None = None,
        noise: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Goes from ``timestep`` to the next one of ``timesteps``, and from the last to the end.

        Args:
            model_output: the model's answer, shaped like sample.
            timestep: a member of ``timesteps``.
            sample: x at ``timestep``, of any float dtype.
            previous_x0: the clean sample that the step before returned. None makes this step a
                first-order one, which is right for the first step and costs accuracy at others.
            noise: standard normal, shaped like sample. None draws it from ``key`` and the timestep,
                so a run that stops and goes on sees the same noise.

        Returns:
            x at the next timestep and the predicted clean sample, both float32.

        Raises:
            InvalidInputError: set_timesteps wasn't called or timestep isn't in its list.
        """
        levels, sample, x0 = self._begin_step(model_output, timestep, sample)
        d = self._target(x0, previous_x0, levels)
        _, s, t = levels
        keep, pull, spread = self._multipliers(s, t)
        x = keep * sample + pull * d
        if spread > 0:
            z = self._draw(sample.shape, s) if noise is None else noise.astype(mx.float32)
            x = x + spread * z
        return x, x0

    def _multipliers(self, s: int, t: int) -> tuple[float, float, float]:
        """The factors of x_s, of the clean sample and of fresh noise on the way from s to t.

        With lambda = log(alpha / sigma) and h = lambda_t - lambda_s the paper has
        sigma_t / sigma_s e^-h, alpha_t (1 - e^-2h) and sigma_t sqrt(1 - e^-2h). Here h never
        appears: e^-h = (alpha_s / sigma_s) (sigma_t / alpha_t) stays finite where h doesn't, at
        zero SNR (alpha_s = 0) and at zero noise (sigma_t = 0).
        """
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self._level(s), self._level(t)
        exp_minus_h = (alpha_s / sigma_s) * (sigma_t / alpha_t)
        one_minus_exp = -expm1(2 * log(exp_minus_h)) if exp_minus_h > 0 else 1.0
        return (
            sigma_t / sigma_s * exp_minus_h,
            alpha_t * one_minus_exp,
            sigma_t * sqrt(one_minus_exp),
        )

    def _draw(self, shape: tuple[int, ...], s: int) -> mx.array:
        keys = mx.random.split(self.key, self.config.num_train_timesteps)
        return mx.random.normal(shape, key=keys[s])


class CogVideoXDPMPlusPlusScheduler(_SecondOrderScheduler):
    """DPM-Solver++(2M): second order and deterministic (arXiv:2211.01095, algorithm 2)."""

    def step(
        self,
        model_output: mx.array,
        timestep: int | mx.array,
        sample: mx.array,
        *,
        previous_x0: mx.array | None = None,
        noise: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Goes from ``timestep`` to the next one of ``timesteps``, and from the last to the end.

        Args:
            model_output: the model's answer, shaped like sample.
            timestep: a member of ``timesteps``.
            sample: x at ``timestep``, of any float dtype.
            previous_x0: as for `CogVideoXDPMScheduler`.
            noise: unused; here so that all samplers are called alike.

        Returns:
            x at the next timestep and the predicted clean sample, both float32.

        Raises:
            InvalidInputError: set_timesteps wasn't called or timestep isn't in its list.
        """
        levels, sample, x0 = self._begin_step(model_output, timestep, sample)
        d = self._target(x0, previous_x0, levels)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = map(self._level, levels[1:])
        # The paper's alpha_t (1 - e^-h), with h written out: it is infinite at zero SNR.
        keep = sigma_t / sigma_s
        return keep * sample + (alpha_t - alpha_s * keep) * d, x0


def _half_log_snr(alpha: float, sigma: float) -> float:
    """lambda = log(alpha / sigma), -inf at zero SNR. Never asked for at zero noise."""
    return log(alpha / sigma) if alpha > 0 else -inf


Scheduler = CogVideoXDDIMScheduler | CogVideoXDPMScheduler | CogVideoXDPMPlusPlusScheduler

SCHEDULERS: dict[str, type[Scheduler]] = {
    "ddim": CogVideoXDDIMScheduler,
    "dpm": CogVideoXDPMScheduler,
    "dpm++": CogVideoXDPMPlusPlusScheduler,
}


def scheduler_name(name: str | None, config: Mapping[str, Any]) -> str:
    """A key of `SCHEDULERS`: `name`, or for None the one whose class ``config`` names.

    Raises:
        InvalidInputError: there is no such scheduler.
    """
    by_class = {made.__name__: key for key, made in SCHEDULERS.items()}
    found = name or by_class.get(config.get("_class_name"))
    if not isinstance(found, str) or found not in SCHEDULERS:
        wanted = name or config.get("_class_name")
        raise InvalidInputError(f"no scheduler {wanted!r}: use {', '.join(SCHEDULERS)}")
    return found


def make_scheduler(
    scheduler: str | Scheduler | None, config: Mapping[str, Any], key: mx.array
) -> Scheduler:
    """The scheduler of a name in `SCHEDULERS`, or for None the one that ``config`` names.

    Args:
        scheduler: a name; an object is returned as it is, with the key it has.
        config: the contents of the model's ``scheduler_config.json``.
        key: where the scheduler draws its noise from.

    Raises:
        InvalidInputError: another name, or a config that can't be followed.
    """
    if isinstance(scheduler, Scheduler):
        return scheduler
    return SCHEDULERS[scheduler_name(scheduler, config)].from_config(config, key=key)
