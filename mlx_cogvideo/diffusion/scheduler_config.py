"""What a ``scheduler_config.json`` leads to: the noise table, and the timesteps that are taken.

Zero terminal SNR and trailing timesteps: Lin et al., arXiv:2305.08891, algorithm 1 and table 2.
"""

import numpy as np

from ..nn.config import SchedulerConfig


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
