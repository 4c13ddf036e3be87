"""What the samplers share: the noise table of CogVideoX, timesteps, and what a model answers.

Symbols follow the papers. At timestep t a noisy sample is x_t = alpha_t x_0 + sigma_t eps with
alpha_t = sqrt(alphas_cumprod[t]) and sigma_t = sqrt(1 - alphas_cumprod[t]); the model predicts
v = alpha_t eps - sigma_t x_0. Zero terminal SNR and trailing timesteps: Lin et al.,
arXiv:2305.08891, algorithm 1 and table 2.

A schedule ends at level ``FINAL``, which is no timestep of the table but the clean sample itself.
"""

from collections.abc import Mapping
from dataclasses import asdict
from math import atan2, sqrt
from typing import Any, Self

import mlx.core as mx
import numpy as np

from ..errors import InvalidInputError
from .scheduler_config import SchedulerConfig, alphas_cumprod, spaced_timesteps

FINAL = -1


class BaseScheduler:
    """What all samplers share: the table, the list of timesteps and the forward process."""

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

    def angle(self, t: int) -> float:
        """atan2(sigma_t, alpha_t): pi / 2 is noise alone, and 0 the clean sample."""
        alpha, sigma = self._level(t)
        return atan2(sigma, alpha)

    def x0_factor(self, t: int) -> float:
        """The factor of the predicted clean sample in a deterministic step from timestep t."""
        _, s, after = self._neighbours(t)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self._level(s), self._level(after)
        return alpha_t - alpha_s * sigma_t / sigma_s

    def predict_x0(self, model_output: mx.array, t: int, sample: mx.array) -> mx.array:
        """The clean samples that the model's answers at timestep t imply, in float32.

        Args:
            model_output: answers ``[B, ...]``.
            sample: x at t: ``[B, ...]``, or one for all answers ``[1, ...]``.
        """
        model_output, sample = model_output.astype(mx.float32), sample.astype(mx.float32)
        alpha, sigma = self._level(t)
        match self.config.prediction_type:
            case "v_prediction":
                return alpha * sample - sigma * model_output
            case "epsilon":
                return (1 / alpha) * sample - (sigma / alpha) * model_output
            case _:
                return model_output

    def answer_of(self, x0: mx.array, t: int, sample: mx.array) -> mx.array:
        """The model's answer at timestep t that implies clean samples; reverses `predict_x0`."""
        alpha, sigma = self._level(t)
        match self.config.prediction_type:
            case "v_prediction":
                return (alpha * sample - x0) / sigma
            case "epsilon":
                return (sample - alpha * x0) / sigma
            case _:
                return x0

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

    def _begin_step(
        self, model_output: mx.array, timestep: int | mx.array, sample: mx.array
    ) -> tuple[tuple[int | None, int, int], mx.array, mx.array]:
        """The neighbours of a timestep, and in float32 the sample and the predicted clean one."""
        neighbours = self._neighbours(timestep)
        x0 = self.predict_x0(model_output, neighbours[1], sample)
        return neighbours, sample.astype(mx.float32), x0
