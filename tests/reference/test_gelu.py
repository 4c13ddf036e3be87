"""The tanh GELU and its gradient beside PyTorch's."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch_reference import random

from mlx_cogvideo.nn.transformer import gelu_tanh

IN_FLOAT32 = 1e-6
"""What float32 may differ by, in units of the largest number. Measured: 6e-7."""


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
def test_gelu_and_its_gradient_are_those_of_pytorch_rounded_once(dtype, digits):
    x, cotangent = (
        (3 * random(64, 257, seed=seed)).to(getattr(torch, dtype)).double() for seed in (1, 2)
    )
    x.requires_grad_()
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    expected.backward(cotangent)

    ours, of_y = (
        mx.array(a.detach().float().numpy()).astype(getattr(mx, dtype)) for a in (x, cotangent)
    )
    (y,), (gradient,) = mx.vjp(lambda x: [gelu_tanh(x)], [ours], [of_y])
    assert y.dtype == gradient.dtype == ours.dtype
    for found, wanted in ((y, expected.detach()), (gradient, x.grad)):
        found, wanted = np.array(found.astype(mx.float32), np.float64), wanted.numpy()
        rounding = 2.0**-digits * np.abs(wanted)
        assert (np.abs(found - wanted) <= rounding + IN_FLOAT32 * np.abs(wanted).max()).all()
