"""The optimizer of a training and the schedule of its learning rate."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim

from .settings import TrainingSettings


def make_optimizer(settings: TrainingSettings) -> optim.Optimizer:
    """AdamW with the constants of the original trainers."""
    return optim.AdamW(
        learning_rate=_learning_rate(settings),
        betas=[0.9, 0.95],
        weight_decay=settings.weight_decay,
        bias_correction=True,
    )


def _learning_rate(settings: TrainingSettings) -> Callable[[mx.array], mx.array] | float:
    rate, warmup = settings.effective_learning_rate, min(settings.warmup, settings.iters // 2)
    if settings.schedule == "cosine":
        after = optim.cosine_decay(rate, max(settings.iters - warmup, 1))
    else:
        after = optim.linear_schedule(rate, rate, 1)
    if warmup == 0:
        return after
    return optim.join_schedules(
        [optim.linear_schedule(rate / warmup, rate, warmup), after], [warmup]
    )
