"""How this program was called, so that messages name commands that its user has."""

import sys
from pathlib import Path

_COMMANDS = {"generate", "convert", "lora", "check"}
_SCRIPTS = {"generate", "lora"}


def command(name: str) -> str:
    """How the user of this process calls a command.

    Args:
        name: ``generate``, ``convert``, ``lora`` or ``check``.

    Returns:
        For example ``mlx-cogvideo generate``, which Python's callers get, or ``python generate.py``
        where one of the repository's scripts was run.
    """
    called = Path(sys.argv[0])
    if called.name in ("mlx-cogvideo", "mlx_cogvideo"):
        return f"{called.name} {name}"
    if called.name.removeprefix("mlx_cogvideo.") in _COMMANDS:
        return f"mlx_cogvideo.{name}"
    if called.parent.name == "mlx_cogvideo":
        middle = " " if called.name == "__main__.py" else "."
        return f"python -m mlx_cogvideo{middle}{name}"
    if called.suffix == ".py" and called.stem in _SCRIPTS:
        return f"python {name}.py" if name in _SCRIPTS else f"python -m mlx_cogvideo.{name}"
    return f"mlx-cogvideo {name}"
