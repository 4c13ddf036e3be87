"""Where arrays are computed."""

import mlx.core as mx


def on_gpu() -> bool:
    """Whether it is a GPU, of Metal or CUDA."""
    return mx.default_device().type == mx.DeviceType.gpu
