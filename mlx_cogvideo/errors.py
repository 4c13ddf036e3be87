"""The errors of this package. Every message is one line: what was wrong and what to do."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .called import command


class CogVideoXError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidInputError(CogVideoXError, ValueError):
    """An argument breaks a rule of the model: a frame count, a size, a name."""


class ModelNotFoundError(CogVideoXError, FileNotFoundError):
    """No model folder, hub repository or alias has the given name."""


class NotDownloadedError(ModelNotFoundError):
    """A hub repository isn't in the local cache, and nothing may be downloaded."""


class CheckpointError(CogVideoXError, ValueError):
    """A model folder can't be used: files are missing, damaged or of another shape."""


class OutputError(CogVideoXError, OSError):
    """The result can't be written to the requested path."""


class GenerationError(CogVideoXError, RuntimeError):
    """The model's output is no video: NaN, infinity or one constant colour."""


class DeviceError(GenerationError):
    """MLX, or the device that it computes on, failed.

    Attributes:
        kind: one of `FAILURES`, or ``"other"``.
        ends_process: whether this process can't compute any more: MLX keeps an error of the GPU and
            raises it again on every use.
    """

    def __init__(self, message: str, kind: str = "other", ends_process: bool = False):
        super().__init__(message)
        self.kind = kind
        self.ends_process = ends_process


class PeerLostError(CogVideoXError, RuntimeError):
    """One of several processes that work together has ended, or its machine can't be reached."""


@dataclass(frozen=True)
class Failure:
    """How one kind of failure is recognized, and the message for it.

    Attributes:
        pattern: a regular expression for any part of MLX's text. It matches Metal's codes as well
            as its words, because the words change with macOS.
        problem: what happened.
        advice: what to do.
    """

    pattern: str
    problem: str
    advice: str


FAILURES = {
    "interactivity": Failure(
        r"(?i)0000000e|impacting ?interactivity",
        "macOS stopped the GPU because it kept the display waiting",
        "let the display sleep (pmset displaysleepnow), or set AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1, "
        "and start the command again",
    ),
    "timeout": Failure(
        r"(?i)00000002:|gpu ?timeout|callbackerrortimeout|launch timed out",
        "macOS stopped the GPU because a piece of work took too long",
        "close other programs that use the GPU, set AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1, and start "
        "the command again",
    ),
    "ignored": Failure(
        r"(?i)00000004:|00000005:|submissionsignored|innocentvictim|excessive gpu errors",
        "the GPU takes no more work from this process after an earlier failure",
        "start the command again, and restart the Mac if that fails, too",
    ),
    "memory": Failure(
        r"(?i)00000008|insufficient ?memory|outofmemory|out of memory|unable to allocate"
        r"|attempting to allocate|memory ?allocation|bad_alloc",
        "memory ran out",
        "close other programs or ask for a smaller size or fewer frames",
    ),
    "shapes": Failure(
        r"^Shapes? \(|cannot be broadcast|^\[(?:conv|matmul|addmm|concatenate|reshape|split|gather"
        r"|take|broadcast_shapes|scaled_dot_product_attention|layer_norm|quantized_matmul)\]",
        "arrays don't fit each other",
        "the model's parts may be of different kinds; if they aren't, please report this",
    ),
}
"""The kinds of MLX's errors, in the order in which their patterns are tried."""

OTHER = Failure("", "MLX failed", "please report this, with the output of {check}")

_RELAX = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"

# MLX's messages begin with the name of a function or a backend, or with shapes.
_BY_MLX = re.compile(r"\[[\w:. ]+\]|Shapes? |Cannot ")


def not_finite(what: str, dtype: str, in_float32: str) -> GenerationError:
    """The error for NaN or infinity, which advises a wider dtype while there is one.

    Args:
        what: what is wrong: the beginning of a sentence.
        dtype: name of the dtype in use.
        in_float32: what else may be the reason, and what to do.
    """
    return GenerationError(f"{what} NaN or infinity in {dtype}: {wider_dtype(dtype, in_float32)}")


def first_line(error: BaseException) -> str:
    """The first line of another library's message, for one of ours."""
    return str(error).partition("\n")[0] or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: ``: did you mean WORD?``, or "" if none is near.

    Args:
        known: the words that it may be, in any case of letters.
    """
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1)
    return f": did you mean {by_lower[near[0]]}?" if near else ""


def alternatives(choices: Iterable[object]) -> str:
    """What something may be, in words for a message, such as ``2, 3 or 4``."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last


def wider_dtype(
    dtype: str, in_float32: str = "the weights of the model or of an adapter are bad"
) -> str:
    """What to do where numbers of a dtype, such as ``"float16"``, became NaN or infinite."""
    wider = {"float16": "bfloat16 or float32", "bfloat16": "float32"}.get(dtype)
    return f"try --dtype {wider}" if wider else in_float32


def with_notes(error: BaseException) -> str:
    """The message and its notes, in one line."""
    return "; ".join(filter(None, [str(error), *getattr(error, "__notes__", [])]))


def note_resume(error: BaseException, note: str, command: str) -> None:
    """Adds to an error how to go on: a note that people read, and the command for programs."""
    error.add_note(note)
    error.resume = command  # type: ignore[attr-defined]


def resume_command(error: BaseException) -> str | None:
    """The command that continues what an error has ended, if `note_resume` was called."""
    return getattr(error, "resume", None)


def is_by_mlx(error: BaseException) -> bool:
    """Whether an error that isn't ours looks like one of MLX's."""
    return isinstance(error, MemoryError) or _BY_MLX.match(str(error)) is not None


def device_error(error: BaseException, out_of_memory: str | None = None) -> DeviceError:
    """An error of MLX as one line: what happened, MLX's own words, and what to do.

    Args:
        out_of_memory: what to do if memory ran out; None gives the default advice.
    """
    raw = first_line(error)
    text = "out of memory" if isinstance(error, MemoryError) else str(error)
    found = (kind for kind, failure in FAILURES.items() if re.search(failure.pattern, text))
    kind = next(found, "other")
    failure = FAILURES.get(kind, OTHER)
    advice = out_of_memory if kind == "memory" and out_of_memory else failure.advice
    advice = advice.replace("{check}", command("check"))
    if _RELAX in os.environ:
        advice = re.sub(f",( or)? set {_RELAX}=1", "", advice)
    by_gpu = re.search(r"(?i)command buffer|cuda\w*\(.*failed|illegal memory access", text)
    ends_process = by_gpu is not None or kind in ("interactivity", "timeout", "ignored")
    return DeviceError(f"{failure.problem} ({raw}): {advice}", kind, ends_process)


@contextmanager
def mlx_errors(out_of_memory: str | None = None) -> Iterator[None]:
    """Turns MLX's errors into `device_error`; errors of this package pass."""
    try:
        yield
    except CogVideoXError:
        raise
    except (RuntimeError, MemoryError, ValueError, IndexError, OverflowError) as error:
        if not isinstance(error, RuntimeError) and not is_by_mlx(error):
            raise
        raise device_error(error, out_of_memory) from error
