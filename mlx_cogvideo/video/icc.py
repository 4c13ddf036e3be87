"""Reads a picture's primaries from its colour profile (ICC.1), as phones and cameras write it."""

import struct

import numpy as np

_HEADER = 128
_COLORANTS = b"rXYZ", b"gXYZ", b"bXYZ"
_D50 = 0.9642, 1.0, 0.8249


def profile_matrix(profile: bytes) -> np.ndarray | None:
    """The matrix from linear RGB to CIE XYZ under D50, ``[3, 3]``.

    None for profiles that have none: those of other than RGB, those with tables, damaged ones.
    """
    try:
        (count,) = struct.unpack_from(">I", profile, _HEADER)
        entries = (struct.unpack_from(">4sII", profile, _HEADER + 4 + 12 * i) for i in range(count))
        places = {name: place for name, place, _ in entries}
        columns = [struct.unpack_from(">3i", profile, places[name] + 8) for name in _COLORANTS]
    except (struct.error, KeyError):
        return None
    matrix = np.transpose(columns) / 2**16
    return matrix if np.allclose(matrix.sum(axis=1), _D50, atol=0.02) else None
