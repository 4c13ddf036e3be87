"""AdamW's moments in 8 bits.

m and the root of v are packed, in groups of numbers that share a scale and a bias. The range of v
itself is too wide: too many of its numbers would be rounded to 0.
"""

import mlx.core as mx

from ..nn.fusion import fused

GROUP, FEWEST = 64, 4096
"""Numbers of a row that share a scale, and the smallest tensor whose moments are packed."""

NAMES = tuple((name, f"{name}_scales", f"{name}_biases") for name in ("m", "root_v"))

# mx.quantize has no steps below 1e-7, and gradients are often as small. A power of 2 scales them
# without rounding.
MAGNIFIED = 2.0**60


def can_pack(array: mx.array) -> bool:
    """Whether the moments of a tensor fit into groups, and are large enough."""
    return array.ndim >= 2 and array.shape[-1] % GROUP == 0 and array.size >= FEWEST


def pack(m: mx.array, v: mx.array) -> dict[str, mx.array]:
    """Packs float32 moments, which are at most 1e19: 2.25 bytes for both of a number."""
    packed: dict[str, mx.array] = {}
    for names, array in zip(NAMES, _magnified(m, v), strict=True):
        packed |= zip(names, mx.quantize(array, group_size=GROUP, bits=8), strict=True)
    return packed


def unpack(packed: dict[str, mx.array], largest_ratio: mx.array) -> tuple[mx.array, mx.array]:
    """Unpacks m and v, and raises v where |m| / √v would be above `largest_ratio`.

    This happens where a small root beside large ones of its group was rounded to 0, and m was not.
    """
    arrays = [[packed[name] for name in names] for names in NAMES]
    m, root_v = [mx.dequantize(w, scales, biases, GROUP, 8) for w, scales, biases in arrays]
    return _bounded(m, root_v, largest_ratio)


@fused
def _magnified(m: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
    return m * MAGNIFIED, mx.sqrt(v) * MAGNIFIED


@fused
def _bounded(m: mx.array, root_v: mx.array, largest_ratio: mx.array) -> tuple[mx.array, mx.array]:
    root_v = mx.maximum(root_v, mx.abs(m) / largest_ratio)
    return m / MAGNIFIED, mx.square(root_v / MAGNIFIED)
