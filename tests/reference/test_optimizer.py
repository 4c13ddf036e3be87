"""The optimizers make the updates of PyTorch's AdamW and transformers' Adafactor."""

import mlx.core as mx
import pytest
import torch
from support import relative_error
from torch_reference import random
from transformers.optimization import Adafactor

from mlx_cogvideo.training.optimizers import make_optimizer
from mlx_cogvideo.training.settings import TrainingSettings

TOLERANCE = 1e-6


def reference(name: str, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW([parameter], lr=0.03, betas=(0.9, 0.95), weight_decay=0.1)
    fixed_rate = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    return Adafactor([parameter], lr=0.03, weight_decay=0.1, **fixed_rate)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (4, 5, 6), (3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_updates_equal_pytorch(name, shape):
    settings = TrainingSettings(
        iters=100, learning_rate=0.03, warmup=4, weight_decay=0.1, optimizer=name
    )
    initial = random(*shape, seed=1)
    theirs = torch.nn.Parameter(initial.clone())
    expected, optimizer = reference(name, theirs), make_optimizer(settings)
    ours = mx.array(initial.numpy())
    state = optimizer.initial(ours)
    for step in range(8):
        theirs.grad = random(*shape, seed=10 + step) * 0.01 * (step + 1)
        gradient = mx.array(theirs.grad.numpy())
        expected.param_groups[0]["lr"] = 0.03 * min(1, 0.25 + step * (1 - 0.25) / 4)
        expected.step()
        ours, state, square = optimizer.update(ours, gradient, state, step=step, number=0)
        assert relative_error(ours, theirs.detach()) < TOLERANCE, step
        assert square.item() == pytest.approx(theirs.grad.square().sum().item(), rel=1e-5)
