"""The optimizer makes the updates of PyTorch's AdamW, with a warmup of the learning rate."""

import mlx.core as mx
import torch
from support import relative_error
from torch_reference import random

from mlx_cogvideo.training.optimizers import make_optimizer
from mlx_cogvideo.training.settings import TrainingSettings

TOLERANCE = 1e-6


def test_updates_equal_pytorch():
    settings = TrainingSettings(iters=100, learning_rate=0.03, warmup=4, weight_decay=0.1)
    initial = random(5, 7, seed=1)
    theirs = torch.nn.Parameter(initial.clone())
    reference = torch.optim.AdamW([theirs], lr=0.03, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer, ours = make_optimizer(settings), {"a": mx.array(initial.numpy())}
    for step in range(8):
        gradient = random(5, 7, seed=10 + step) * 0.01 * (step + 1)
        reference.param_groups[0]["lr"] = 0.03 * min(1, 0.25 + step * (1 - 0.25) / 4)
        theirs.grad = gradient
        reference.step()
        ours = optimizer.apply_gradients({"a": mx.array(gradient.numpy())}, ours)
        assert relative_error(ours["a"], theirs.detach()) < TOLERANCE, step
