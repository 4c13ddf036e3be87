"""Pixels in memory: arrays of several libraries, pictures of Pillow, and lists of them."""

from typing import Any

import numpy as np

from ..errors import InvalidInputError


def as_uint8(name: str, given: Any, kinds: str = "pixels") -> np.ndarray:
    """Converts pixels to uint8 ``[..., H, W, 3]``.

    Args:
        name, kinds: what the pixels are and may be, for the message.
        given: uint8, or floats in [0, 1], of NumPy, MLX or PyTorch; a picture of Pillow; or a list
            of these.

    Raises:
        InvalidInputError: it is none of these.
    """
    if isinstance(given, list | tuple) and given:
        frames = [as_uint8(name, one, kinds) for one in given]
        if len({frame.shape for frame in frames}) > 1:
            raise InvalidInputError(f"all frames of {name} must have one size")
        return np.stack(frames)
    if hasattr(given, "convert") and hasattr(given, "getbands"):
        given = given.convert("RGB")
    try:
        pixels = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):
        pixels = np.zeros(0)
    is_picture = pixels.ndim >= 3 and pixels.shape[-1] == 3 and pixels.size > 0
    if is_picture and np.issubdtype(pixels.dtype, np.floating):
        pixels = _rounded(name, pixels)
    if not is_picture or pixels.dtype != np.uint8:
        raise InvalidInputError(
            f"{name} must be {kinds} [..., height, width, 3], uint8 or floats in [0, 1]; got "
            f"{type(given).__name__} of {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels


def _rounded(name: str, pixels: np.ndarray) -> np.ndarray:
    lowest, highest = pixels.min(), pixels.max()
    if not (lowest >= 0 and highest <= 1):  # never true of NaN
        raise InvalidInputError(
            f"{name} must be from 0 to 1 as floats; got {lowest:g} to {highest:g}"
        )
    return np.round(pixels.astype(np.float32) * 255).astype(np.uint8)
