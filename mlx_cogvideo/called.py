"""How this program was called, so that messages name commands that its user has."""

import sys
from pathlib import Path

_COMMANDS = {"generate", "convert", "lora", "check", "ui", "serve"}
_SCRIPTS = {"generate", "lora"}
_PACKAGE = Path(__file__).parent


def command(name: str) -> str:
    """How the user of this process calls a command, in a form that a shell understands.

    Args:
        name: ``generate``, ``convert``, ``lora``, ``check``, ``ui`` or ``serve``.

    Returns:
        For example ``mlx-cogvideo generate``, which Python's callers get, or ``python generate.py``
        where one of the repository's scripts was run.
    """
    called = Path(sys.argv[0])
    if called.name in ("mlx-cogvideo", "mlx_cogvideo"):
        return f"{_installed(called)} {name}"
    if called.name in {f"mlx_cogvideo.{known}" for known in _COMMANDS}:
        return _installed(called.with_name(f"mlx_cogvideo.{name}"))
    if called.parent == _PACKAGE:
        middle = " " if called.stem == "__main__" else "."
        return f"{_python()} -m mlx_cogvideo{middle}{name}"
    if called.name in {f"{known}.py" for known in _SCRIPTS} and _is_repository(called.parent):
        if name in _SCRIPTS:
            return f"{_python()} {shell_word(called.with_name(f'{name}.py'))}"
        return f"{_python()} -m mlx_cogvideo.{name}"
    return f"mlx-cogvideo {name}"


def shell_word(value: str | Path) -> str:
    """A file or another value as one word of a shell's command that isn't read as an option."""
    import shlex

    text = str(value)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _installed(script: Path) -> str:
    """A console script by its name, or by its path where the shell doesn't find the name."""
    import shutil

    found = shutil.which(script.name)
    return script.name if found == str(script) else shell_word(script)


def _python() -> str:
    """The interpreter as it was called: not every Mac has one of the name ``python``."""
    return shell_word(sys.orig_argv[0]) if sys.orig_argv and sys.orig_argv[0] else "python"


def _is_repository(folder: Path) -> bool:
    return (folder / "mlx_cogvideo" / "called.py").is_file()
