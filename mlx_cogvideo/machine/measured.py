"""Keeps what a check has measured on this machine, so that later plans can tell the time.

The file is ``mlx_cogvideo/speed.json`` in the user's cache folder: ``$XDG_CACHE_HOME``, else
``~/Library/Caches`` on macOS and ``~/.cache`` elsewhere. It may be deleted at any time.
"""

import json
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import read_config
from ..device import user_cache
from ..errors import CheckpointError, OutputError
from ..video.paths import publish, write_temporary
from .speed import Ceilings
from .system import describe

FORMAT = 1
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MACHINE = ("device", "architecture", "memory", "mlx", "system")
"""Parts of a description on which the speed depends."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What a check has measured.

    Attributes:
        date: the day, such as ``2026-11-26``.
        ceilings: what the machine reaches with each dtype.
    """

    date: str
    ceilings: tuple[Ceilings, ...]

    def of(self, dtype: str) -> Ceilings | None:
        """The ceilings with a dtype, by its name."""
        return next((ceilings for ceilings in self.ceilings if ceilings.dtype == dtype), None)


def speed_file() -> Path:
    """The file with the measurements of this user's machines."""
    return user_cache() / "speed.json"


def keep_measured(ceilings: Iterable[Ceilings]) -> None:
    """Keeps the measurements of this machine; a file that can't be written is warned of.

    Home folders may be shared: the measurements of other machines stay.
    """
    file = speed_file()
    rows = {"date": time.strftime("%Y-%m-%d"), "ceilings": [asdict(each) for each in ceilings]}
    contents = {"format": FORMAT, "machines": _machines() | {_this_machine(): rows}}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        publish(
            write_temporary(file, json.dumps(contents, indent=2).encode()), file, overwrite=True
        )
    except (OutputError, OSError) as error:
        logger.warning("the measured speed isn't kept: %s", error)


def measured() -> Measured | None:
    """What was measured on this machine, with this MLX and system; None if nothing was."""
    found = _machines().get(_this_machine())
    try:
        if found and _DATE.fullmatch(found["date"]) is None:
            raise ValueError("that is no day")
        return found and Measured(
            found["date"], tuple(Ceilings(**row).checked() for row in found["ceilings"])
        )
    except (TypeError, KeyError, ValueError):
        _warn()
        return None


def _machines() -> dict[str, Any]:
    """The contents of the file, by machine; nothing if it isn't there or can't be used."""
    try:
        if not speed_file().exists():
            return {}
        contents = read_config(speed_file())
    except (OSError, CheckpointError):
        return _warn()
    machines = contents.get("machines") if contents.get("format") == FORMAT else None
    return machines if isinstance(machines, dict) else _warn()


def _warn() -> dict[str, Any]:
    logger.warning("%s can't be used and is ignored: a check replaces it", speed_file())
    return {}


def _this_machine() -> str:
    description = describe()
    return ", ".join(str(description[name]) for name in _MACHINE)
