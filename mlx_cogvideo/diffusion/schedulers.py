"""The noise table of CogVideoX and the two ways it is walked: DDIM and SDE-DPM-Solver++(2M).

Symbols follow the papers. At timestep t a noisy sample is x_t = alpha_t x_0 + sigma_t eps with
alpha_t = sqrt(alphas_cumprod[t]) and sigma_t = sqrt(1 - alphas_cumprod[t]); the model predicts
v = alpha_t eps - sigma_t x_0. Sampling goes from a noisier level s to a cleaner level t.

- DDIM: Song et al., arXiv:2010.02502, eq. 12 with eta = 0.
- SDE-DPM-Solver++(2M): Lu et al., arXiv:2211.01095.
- Zero terminal SNR and trailing timesteps: Lin et al., arXiv:2305.08891, algorithm 1 and table 2.

A schedule ends at level ``FINAL``, which is no timestep of the table but the clean sample itself.
"""

from collections.abc import Mapping
from dataclasses import asdict
from math import expm1, inf, log, sqrt
from typing import Any, Self

import mlx.core as mx
import numpy as np

from ..errors import InvalidInputError
from .scheduler_config import SchedulerConfig, alphas_cumprod, spaced_timesteps

FINAL = -1


class _Scheduler:
    """What both samplers share: the table, the list of timesteps and the forward process."""

    def __init__(self, config: SchedulerConfig | None = None, *, key: mx.array | None = None):
        """Builds the noise table.

        Args:
            config: diffusers' class defaults if None, which are not those of the official models.
            key: where noise that a caller doesn't hand to ``step`` comes from; ``mx.random.key(0)``
                if None.
        """
        self.config = SchedulerConfig() if config is None else config
        self.key = mx.random.key(0) if key is None else key
        self.alphas_cumprod = alphas_cumprod(self.config)
        """float64 numpy array [num_train_timesteps], falling from about 1 towards 0."""
        self.timesteps = np.zeros(0, dtype=np.int64)
        """int64 numpy array [num_inference_steps], falling; empty before ``set_timesteps``."""
        self._alphas = mx.array(np.sqrt(self.alphas_cumprod).astype(np.float32))
        self._sigmas = mx.array(np.sqrt(1 - self.alphas_cumprod).astype(np.float32))

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | SchedulerConfig,
        *,
        key: mx.array | None = None,
        **changes: Any,
    ) -> Self:
        """Builds a scheduler from the contents of a ``scheduler_config.json``.

        Keys that change nothing here (clip_sample and the like) are ignored; absent ones take the
        defaults of diffusers' classes.

        Args:
            config: the contents, or the ``config`` of another scheduler.
            key: as in the class.
            changes: fields to change, such as ``timestep_spacing="trailing"``.

        Raises:
            InvalidInputError: the config asks for something this package doesn't compute.
        """
        known = SchedulerConfig.__dataclass_fields__
        if unknown := changes.keys() - known.keys():
            raise InvalidInputError(
                f"scheduler config: no field {min(unknown)}; there are {', '.join(known)}"
            )
        contents = asdict(config) if isinstance(config, SchedulerConfig) else config
        try:
            return cls(SchedulerConfig.from_dict({**contents, **changes}), key=key)
        except ValueError as error:
            raise InvalidInputError(f"scheduler config: {error}") from None

    def to_config(self) -> dict[str, Any]:
        """The contents of a ``scheduler_config.json`` from which diffusers builds the same one."""
        return {"_class_name": type(self).__name__, **asdict(self.config)}

    def seed(self, seed: int) -> None:
        """Sets the key that noise is drawn from."""
        self.key = mx.random.key(seed)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Chooses exactly ``num_inference_steps`` timesteps and leaves them in ``timesteps``.

        They equal diffusers' wherever that gives the number asked for. Its trailing list has one
        entry too many, -1, for the few numbers (61 is one) where a float range overshoots.

        Raises:
            InvalidInputError: the number isn't an integer from 1 to num_train_timesteps, or
                steps_offset moves a timestep out of the table.
        """
        limit = self.config.num_train_timesteps
        is_integer = isinstance(num_inference_steps, int | np.integer)
        if not is_integer or not 1 <= num_inference_steps <= limit:
            raise InvalidInputError(
                f"num_inference_steps must be an integer from 1 to {limit}; "
                f"got {num_inference_steps}"
            )
        timesteps = spaced_timesteps(self.config, int(num_inference_steps))
        if timesteps[0] >= limit:
            raise InvalidInputError(
                f"steps_offset {self.config.steps_offset} moves timestep {timesteps[0]} past the "
                f"last of {limit}: use fewer steps than {num_inference_steps} or no offset"
            )
        self.timesteps = timesteps

    def add_noise(self, x0: mx.array, noise: mx.array, t: int | mx.array) -> mx.array:
        """The forward process: ``alpha_t x0 + sigma_t noise``.

        Args:
            x0: clean samples [B, ...].
            noise: standard normal, shaped like x0.
            t: one timestep for all, or an integer array [B]. Arrays aren't checked against the
                table's length, so that this can be compiled.

        Returns:
            Noisy samples of x0's shape and dtype, computed in float32.
        """
        alpha, sigma = self._levels(x0, t)
        x_t = alpha * x0.astype(mx.float32) + sigma * noise.astype(mx.float32)
        return x_t.astype(x0.dtype)

    def get_velocity(self, x0: mx.array, noise: mx.array, t: int | mx.array) -> mx.array:
        """What a v-predicting model is trained to answer: ``alpha_t noise - sigma_t x0``.

        Arguments and result as in ``add_noise``.
        """
        alpha, sigma = self._levels(x0, t)
        v = alpha * noise.astype(mx.float32) - sigma * x0.astype(mx.float32)
        return v.astype(x0.dtype)

    def _levels(self, x0: mx.array, t: int | mx.array) -> tuple[mx.array, mx.array]:
        """alpha_t and sigma_t as float32 [B, 1, ...], or [1, ...] for a single timestep."""
        limit = self.config.num_train_timesteps
        if isinstance(t, int | np.integer) and not 0 <= t < limit:
            raise InvalidInputError(f"timestep must be from 0 to {limit - 1}; got {t}")
        t = mx.array(t).reshape(-1, *[1] * (x0.ndim - 1))
        if t.shape[0] not in (1, x0.shape[0]):
            raise InvalidInputError(
                f"expected one timestep for each of {x0.shape[0]} samples; got {t.shape[0]}"
            )
        return self._alphas[t], self._sigmas[t]

    def _level(self, t: int) -> tuple[float, float]:
        """alpha_t and sigma_t in float64."""
        if t == FINAL:
            alpha_bar = 1.0 if self.config.set_alpha_to_one else self.alphas_cumprod[0]
        else:
            alpha_bar = self.alphas_cumprod[t]
        return sqrt(alpha_bar), sqrt(1 - alpha_bar)

    def _neighbours(self, timestep: int | mx.array) -> tuple[int | None, int, int]:
        """The timesteps before, at and after ``timestep`` in the list: None first, FINAL last."""
        s = int(timestep)
        if not len(self.timesteps):
            raise InvalidInputError("call set_timesteps before step")
        (positions,) = np.nonzero(self.timesteps == s)
        if not len(positions):
            raise InvalidInputError(
                f"timestep {s} is not among the {len(self.timesteps)} of this schedule"
            )
        i = int(positions[0])
        before = int(self.timesteps[i - 1]) if i else None
        after = int(self.timesteps[i + 1]) if i + 1 < len(self.timesteps) else FINAL
        return before, s, after

    def _predict_x0(self, model_output: mx.array, sample: mx.array, s: int) -> mx.array:
        """The clean sample that the model's answer at timestep s implies."""
        alpha_s, sigma_s = self._level(s)
        match self.config.prediction_type:
            case "v_prediction":
                return alpha_s * sample - sigma_s * model_output
            case "epsilon":
                return (1 / alpha_s) * sample - (sigma_s / alpha_s) * model_output
            case _:
                return model_output

    def _begin_step(
        self, model_output: mx.array, timestep: int | mx.array, sample: mx.array
    ) -> tuple[tuple[int | None, int, int], mx.array, mx.array]:
        """The neighbours of a timestep, and in float32 the sample and the predicted clean one."""
        neighbours = self._neighbours(timestep)
        sample = sample.astype(mx.float32)
        x0 = self._predict_x0(model_output.astype(mx.float32), sample, neighbours[1])
        return neighbours, sample, x0


class CogVideoXDDIMScheduler(_Scheduler):
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
            previous_x0: unused; here so that both samplers are called alike.
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


class CogVideoXDPMScheduler(_Scheduler):
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
        (r, s, t), sample, x0 = self._begin_step(model_output, timestep, sample)
        d = x0
        if r is not None and previous_x0 is not None and t != FINAL:
            w = self._extrapolation(r, s, t)
            d = (1 + w) * x0 - w * previous_x0.astype(mx.float32)

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

    def _extrapolation(self, r: int, s: int, t: int) -> float:
        """How far to go past x0, away from the one before: h / (2 h_last).

        0 where the step before began at zero SNR: its h_last is infinite.
        """
        lambda_r, lambda_s, lambda_t = (_half_log_snr(*self._level(i)) for i in (r, s, t))
        return (lambda_t - lambda_s) / (2 * (lambda_s - lambda_r))

    def _draw(self, shape: tuple[int, ...], s: int) -> mx.array:
        keys = mx.random.split(self.key, self.config.num_train_timesteps)
        return mx.random.normal(shape, key=keys[s])


def _half_log_snr(alpha: float, sigma: float) -> float:
    """lambda = log(alpha / sigma), -inf at zero SNR. Never asked for at zero noise."""
    return log(alpha / sigma) if alpha > 0 else -inf


Scheduler = CogVideoXDDIMScheduler | CogVideoXDPMScheduler

SCHEDULERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}


def scheduler_name(name: str | None, config: Mapping[str, Any]) -> str:
    """A key of `SCHEDULERS`: `name`, or for None the one whose class ``config`` names.

    Raises:
        InvalidInputError: there is no such scheduler.
    """
    by_class = {made.__name__: key for key, made in SCHEDULERS.items()}
    found = name or by_class.get(config.get("_class_name"))
    if not isinstance(found, str) or found not in SCHEDULERS:
        wanted = name or config.get("_class_name")
        raise InvalidInputError(f"no scheduler {wanted!r}: use {' or '.join(SCHEDULERS)}")
    return found


def make_scheduler(
    scheduler: str | Scheduler | None, config: Mapping[str, Any], key: mx.array
) -> Scheduler:
    """The scheduler called ``"ddim"`` or ``"dpm"``, or for None the one that ``config`` names.

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
