"""The stored values that ``check`` compares with are PyTorch's."""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.machine.stages import VALUES

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "checks"))


def test_the_stored_values_are_what_pytorch_gives():
    from store_check_values import values

    stored, made = mx.load(str(DEMO_PATH / VALUES)), values()
    assert stored.keys() == made.keys()
    for name, expected in made.items():
        error = np.abs(np.array(stored[name]) - expected).max() / np.abs(expected).max()
        assert error < 1e-5, name
