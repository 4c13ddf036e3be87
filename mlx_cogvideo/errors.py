"""What can go wrong, as types. Every message is one line: what was wrong and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class CogVideoXError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidInputError(CogVideoXError, ValueError):
    """An argument breaks a rule of the model: a frame count, a size, a name."""


class ModelNotFoundError(CogVideoXError, FileNotFoundError):
    """No model folder, hub repository or alias answers to the given name."""


class CheckpointError(CogVideoXError, ValueError):
    """A model folder is there but can't be used: files missing, damaged or of another shape."""


class OutputError(CogVideoXError, OSError):
    """The result can't be written where it was asked to go."""


class GenerationError(CogVideoXError, RuntimeError):
    """The model produced something that is no video: NaN, infinity or one constant colour."""


class PeerLostError(CogVideoXError, RuntimeError):
    """A process that trains together with this one has ended, or its machine can't be reached."""


def first_line(error: BaseException) -> str:
    """Of another library's message, for one of ours."""
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def mlx_errors(
    advice: str = "close other programs or ask for a smaller size or fewer frames",
) -> Iterator[None]:
    """Tells of MLX's own errors, most of which are about memory, as a GenerationError.

    Args:
        advice: what to do if memory ran out.
    """
    try:
        yield
    except CogVideoXError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise GenerationError(
            f"MLX failed ({first_line(error)}): if memory ran out, {advice}"
        ) from error
