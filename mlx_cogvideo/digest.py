"""What files hold, in a few characters."""

import hashlib
from functools import lru_cache
from pathlib import Path


def file_digest(file: Path) -> str:
    """The SHA-256 of a file in hexadecimal; while it doesn't change, it is worked out once."""
    told = file.stat()
    return _digest(file, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=256)
def _digest(file: Path, *_: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
