"""Brings the colours of HDR and wide-gamut frames to BT.709 SDR, as those of other clips are.

The numbers of primaries and transfer functions are those of ITU-T H.273. Numbers that aren't listed
here differ little from BT.709, and frames that have them are taken as they are. So is the curve of
a colour profile.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError
from .icc import profile_matrix
from .side_data import ICC_PROFILE, side_data

_PQ, _HLG, _LINEAR = 16, 18, 8
_HDR = _PQ, _HLG
_TRANSFERS = {_PQ: "HDR (PQ)", _HLG: "HDR (HLG)", _LINEAR: "linear light"}

_BT709, _BT2020 = 1, 9
# x and y of red, green and blue. DCI has the primaries of Display P3; its white is taken as D65.
_P3 = (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)
_PRIMARIES = {
    _BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    _BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: _P3,
    12: _P3,
}
_WIDE = {_BT2020: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_D65 = 0.3127, 0.3290
_UNKNOWN = 0, 2

# The columns are the colorants of sRGB's profile, which has the primaries of BT.709.
_BT709_UNDER_D50 = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)

# Matrices for which FFmpeg takes that of BT.601.
_UNREADABLE = {8: "YCgCo", 10: "BT.2020 constant luminance", 14: "ICtCp", 15: "IPT (Dolby Vision)"}
_UNREADABLE |= {16: "YCgCo-Re", 17: "YCgCo-Ro"}

_SDR_WHITE = 203.0
"""Luminance of SDR white in HDR video, in cd/m2 (ITU-R BT.2408)."""

_GAMMA = 2.4
"""Exponent of the display that BT.709 video is made for (ITU-R BT.1886)."""

_KNEE = 0.97
"""Share of SDR white's signal from which brighter light is compressed."""

_ROWS = 64
"""Rows that are converted at once, so that memory doesn't grow with the picture."""


def check_readable(frame: av.VideoFrame, name: Path) -> None:
    """Raises InvalidInputError where FFmpeg would take another matrix for that of the frame.

    Args:
        name: the frame's file, for the message.
    """
    if form := _UNREADABLE.get(frame.colorspace):
        raise InvalidInputError(f"{name} stores its colours as {form}: make an SDR copy of it")


@dataclass(frozen=True, eq=False)
class ForeignColors:
    """Colours other than those of BT.709 SDR.

    Attributes:
        name: for messages.
        transfer: number of the transfer function.
        matrix: from linear RGB to that of BT.709, float32 ``[3, 3]``.
    """

    name: str
    transfer: int
    matrix: np.ndarray


def foreign_colors(frame: av.VideoFrame) -> ForeignColors | None:
    """The colours of a frame, if `to_sdr` has to convert them."""
    transfer, primaries = frame.color_trc, frame.color_primaries
    if primaries in _UNKNOWN and transfer in _HDR:
        primaries = _BT2020
    if name := _TRANSFERS.get(transfer) or _WIDE.get(primaries):
        source = _xyz_matrix(primaries if primaries in _PRIMARIES else _BT709)
        return ForeignColors(name, transfer, _to_bt709(source, _xyz_matrix(_BT709)))
    return _profile_colors(frame) if primaries in _UNKNOWN else None


def _profile_colors(frame: av.VideoFrame) -> ForeignColors | None:
    """The colours of a JPEG, WebP or AVIF whose profile isn't one of the many of sRGB."""
    if frame.format.is_rgb or len(frame.format.components) < 3:  # as all of PNG: see `side_data`
        return None
    source = profile_matrix(side_data(frame, ICC_PROFILE) or b"")
    if source is None:
        return None
    matrix = _to_bt709(source, _BT709_UNDER_D50)
    if np.allclose(matrix, np.eye(3), atol=0.02):
        return None
    return ForeignColors("the colours of its ICC profile", _UNKNOWN[0], matrix)


def to_sdr(pixels: np.ndarray, colors: ForeignColors) -> np.ndarray:
    """Converts pixels to BT.709 SDR.

    Light up to SDR white keeps its value. What is brighter, in HDR, is compressed: see `_signal`.

    Args:
        pixels: uint16 RGB ``[H, W, 3]``.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    converted = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _ROWS):
        rows = slice(top, top + _ROWS)
        light = _light(pixels[rows], colors.transfer) @ colors.matrix.T
        converted[rows] = np.rint(_signal(light, colors.transfer) * 255)
    return converted


def _to_bt709(source: np.ndarray, bt709: np.ndarray) -> np.ndarray:
    return np.linalg.solve(bt709, source).astype(np.float32)


@cache
def _xyz_matrix(primaries: int) -> np.ndarray:
    """The matrix from linear RGB to CIE XYZ, in which RGB (1, 1, 1) is D65 (SMPTE RP 177)."""
    x, y = np.transpose([*_PRIMARIES[primaries], _D65])
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])


def _light(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """The light that a display gives for uint16 RGB, float32 in units of SDR white."""
    light = _light_table(transfer)[pixels]
    if transfer == _HLG:
        # BT.2100, table 5: the OOTF of a display of 1000 cd/m2, whose system gamma is 1.2.
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= 1000 / _SDR_WHITE * luminance[..., None] ** 0.2
    return light


@cache
def _light_table(transfer: int) -> np.ndarray:
    """The light of each uint16 signal; of HLG that of the scene, from 0 to 1."""
    signal = np.arange(2**16) / (2**16 - 1)
    if transfer == _PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 2610 / 2**14, 2523 / 2**5, 3424 / 2**12, 2413 / 2**7, 2392 / 2**7
        root = signal ** (1 / m2)
        light = 10_000 / _SDR_WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    elif transfer == _HLG:  # BT.2100, table 5: the inverse OETF
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal if transfer == _LINEAR else signal**_GAMMA
    return light.astype(np.float32)


def _signal(light: np.ndarray, transfer: int) -> np.ndarray:
    """The BT.709 signal, from 0 to 1, of light in units of SDR white.

    Of HDR, what is above the knee k is compressed to ``k + (1 - k) t / (1 + t)``, where t is how
    far it is above, in units of 1 - k. This never ends, and has no corner: its slope begins with 1.
    SDR white becomes 0.985.
    """
    signal = np.maximum(light, 0) ** (1 / _GAMMA)
    if transfer in _HDR:
        above = np.maximum(signal - _KNEE, 0) / (1 - _KNEE)
        signal = np.minimum(signal, _KNEE) + (1 - _KNEE) * above / (1 + above)
    return np.minimum(signal, 1)
