"""The ways in which gradients are computed on different devices and at different sizes."""

import mlx.core as mx
import pytest
from support import needs_compiler

from mlx_cogvideo.nn import attention_backward, eval_schedule
from mlx_cogvideo.training import blockwise, head

WAYS = ["whole", "in pieces", "own", pytest.param("compiled", marks=needs_compiler)]
"""As on the CPU, whole or in many pieces; with MLX's own backward of attention, as on a Mac; and
compiled, too."""


def set_way(monkeypatch, how: str) -> None:
    """Has gradients computed in one of the `WAYS`."""
    if how == "compiled":
        monkeypatch.setattr(blockwise, "fused", mx.compile)
        monkeypatch.setattr(head, "fused", mx.compile)
    if how in ("own", "compiled"):
        monkeypatch.setattr(attention_backward, "has_own_backward", lambda dtype: True)
    if how != "whole":
        monkeypatch.setattr(blockwise, "WIDE_ELEMENTS", 10_000)
        monkeypatch.setattr(head, "HEAD_ELEMENTS", 2_000)
        monkeypatch.setattr(attention_backward, "SCORES_AT_A_TIME", 2_000)
        monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", 1_000)
