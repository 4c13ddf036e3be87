"""What a ``scheduler_config.json`` says: the noise table, and the timesteps that are taken.

Zero terminal SNR and trailing timesteps: Lin et al., arXiv:2305.08891, algorithm 1 and table 2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidInputError


@dataclass(frozen=True)
class SchedulerConfig:
    """The contents of ``scheduler_config.json`` that change numbers, with diffusers' defaults.

    The official checkpoints set v_prediction, trailing and rescale_betas_zero_snr, and a
    snr_shift_scale of 3.0 (2B) or 1.0 (all others).
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    snr_shift_scale: float = 3.0

    def __post_init__(self) -> None:
        _require("beta_schedule", self.beta_schedule, ("scaled_linear",))
        _require("trained_betas", self.trained_betas, (None,))
        _require("prediction_type", self.prediction_type, ("v_prediction", "epsilon", "sample"))
        _require("timestep_spacing", self.timestep_spacing, ("trailing", "leading", "linspace"))
        if self.prediction_type == "epsilon" and self.rescale_betas_zero_snr:
            raise InvalidInputError(
                "prediction_type epsilon can't be undone where the SNR is zero: "
                "use v_prediction or set rescale_betas_zero_snr to false"
            )


def _require(name: str, value: Any, supported: tuple) -> None:
    if value not in supported:
        choices = " or ".join(str(choice) for choice in supported)
        raise InvalidInputError(f"scheduler config: {name} must be {choices}; got {value!r}")


def alphas_cumprod(config: SchedulerConfig) -> np.ndarray:
    """The noise table, float64 [num_train_timesteps]: SNR shift first, then zero terminal SNR."""
    beta_roots = np.linspace(
        config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps
    )
    alpha_bar = np.cumprod(1 - beta_roots**2)
    shift = config.snr_shift_scale
    alpha_bar = alpha_bar / (shift + (1 - shift) * alpha_bar)
    if config.rescale_betas_zero_snr:
        root = np.sqrt(alpha_bar)
        alpha_bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return alpha_bar


def spaced_timesteps(config: SchedulerConfig, n: int) -> np.ndarray:
    """n falling timesteps, int64 (arXiv:2305.08891, table 2)."""
    total = config.num_train_timesteps
    match config.timestep_spacing:
        case "trailing":
            # A float range, as in diffusers, because its rounding decides ties; it can overshoot
            # into an (n + 1)th entry at zero.
            timesteps = np.round(np.arange(total, 0, -total / n))[:n] - 1
        case "leading":
            timesteps = np.arange(n)[::-1] * (total // n) + config.steps_offset
        case _:
            timesteps = np.round(np.linspace(0, total - 1, n))[::-1]
    return timesteps.astype(np.int64)
