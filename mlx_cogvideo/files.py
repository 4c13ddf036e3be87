"""Files that one process writes at a time, under a temporary name until they are complete."""

import errno
import fcntl
import logging
import os
import resource
import secrets
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import OutputError

LONGEST_NAME = 255
"""Bytes in a file name that nearly all file systems allow."""

_HEADER = "locked by mlx_cogvideo"
# Whoever only looks whether a file is locked holds the lock for a moment, too.
_PATIENCE_SECONDS = 0.3
_OPEN_FILES = (2**16, 10_240)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Lock:
    stream: int
    thread: int


_held: dict[Path, _Lock] = {}


@contextmanager
def locked(path: Path, advice: str, lock_file: Path | None = None) -> Iterator[None]:
    """Keeps every other process, and other threads, from writing `path`.

    The lock is the system's (``flock``) on a hidden file, and ends with the process, however that
    ends. The file is removed with the lock; one that a killed process has left names the
    temporaries that are to be removed, too. A thread that holds the lock may take it again.

    Args:
        path: an output; need not exist.
        advice: what to do instead, for the message, such as ``choose another --output``.
        lock_file: None is ``.NAME.lock`` beside `path`.

    Raises:
        OutputError: another process holds the lock, and the message says which; or the lock's file
            can't be made.
    """
    key = _absolute(path)
    held = _held.get(key)
    if held is not None and held.thread == threading.get_ident():
        yield
        return
    file = lock_file or _neighbour(key, "", ".lock")
    stream = _acquire(file, path, advice)
    _held[key] = _Lock(stream, threading.get_ident())
    try:
        yield
    finally:
        del _held[key]
        # Removed while it is still held: nobody can have locked what is removed here.
        with suppress(OSError):
            file.unlink()
        os.close(stream)


def check_unlocked(path: Path, advice: str) -> None:
    """Raises OutputError where another process holds the lock of `path`; writes nothing."""
    file = _neighbour(_absolute(path), "", ".lock")
    try:
        stream = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(_in_use(path, stream, advice)) from None
    except OSError:
        return
    finally:
        os.close(stream)


def temporary_path(path: Path) -> Path:
    """A hidden neighbour that nobody else has, in which the file or folder at `path` can grow.

    If `path` is locked and the process is killed, whoever locks `path` next removes it.
    """
    part = _neighbour(path, f".{secrets.token_hex(4)}", ".part")
    lock = _held.get(_absolute(path))
    if lock is not None:
        with suppress(OSError):  # a full disk; then it stays there after a kill
            os.write(lock.stream, f"{part.name}\n".encode(errors="surrogateescape"))
    return part


def remove_temporary(part: Path) -> None:
    """Removes a temporary file or folder, if it is there."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def _absolute(path: Path) -> Path:
    """The same for all ways to a file, which itself may be a link that an output replaces."""
    absolute = Path(os.path.abspath(path))
    return Path(os.path.realpath(absolute.parent)) / absolute.name


def _neighbour(path: Path, middle: str, ending: str) -> Path:
    room = LONGEST_NAME - len(f".{middle}{ending}")
    # Not through the middle of a character, which a Mac's file system refuses.
    name = os.fsencode(path.name)
    shown = path.name if len(name) <= room else name[:room].decode(errors="ignore")
    return path.with_name(f".{shown}{middle}{ending}")


def _acquire(file: Path, path: Path, advice: str) -> int:
    """The open and locked file."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        stream = _open(file, path)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = _in_use(path, stream, advice)
            os.close(stream)
            if time.monotonic() > end:
                raise OutputError(problem) from None
            time.sleep(0.02)
            continue
        except OSError as error:
            # Some network file systems have no locks.
            logger.warning(
                "%s can't be locked (%s): don't write it by two commands at once",
                path,
                error.strerror,
            )
        try:
            is_current = os.path.samestat(os.fstat(stream), os.lstat(file))
        except FileNotFoundError:
            is_current = False
        if is_current:  # else the process before removed it after it was opened here
            _take_over(stream, file)
            return stream
        os.close(stream)


def _open(file: Path, path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            stream = os.open(file, flags, 0o666)
        except OSError as error:
            if error.errno != errno.EMFILE or not _allow_more_files():
                raise
            stream = os.open(file, flags, 0o666)
    except OSError as error:
        parent = file.parent
        if error.errno == errno.EMFILE:
            problem = f"{path} and the outputs before it are too many at once: split the batch"
        elif not parent.is_dir():
            problem = f"the folder {parent} doesn't exist: make it first"
        elif not os.access(parent, os.W_OK | os.X_OK):
            problem = f"the folder {parent} can't be written to: choose another"
        else:
            problem = f"{path} can't be locked: {file}: {error.strerror}"
        raise OutputError(problem) from None
    text = _read(stream)
    if not stat.S_ISREG(os.fstat(stream).st_mode) or (text and not text.startswith(_HEADER)):
        os.close(stream)
        raise OutputError(f"{file} is in the way of a lock and isn't one: move it")
    return stream


def _allow_more_files() -> bool:
    """Raises the number of files that this process may have open, which is 256 on a Mac."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _OPEN_FILES:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if allowed > soft:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
                return True
    return False


def _take_over(stream: int, file: Path) -> None:
    """Removes the temporaries that a killed process has left, and writes who holds the lock."""
    for name in _read(stream).split("\n")[2:]:
        if name.startswith(".") and name.endswith(".part") and "/" not in name:
            with suppress(OSError):
                remove_temporary(file.with_name(name))
    holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}"
    with suppress(OSError):  # a full disk
        os.truncate(stream, 0)
        os.lseek(stream, 0, os.SEEK_SET)
        os.write(stream, f"{_HEADER}\n{holder}\n".encode(errors="replace"))


def _in_use(path: Path, stream: int, advice: str) -> str:
    lines = _read(stream).split("\n")
    holder = lines[1] if len(lines) > 2 and lines[1].isprintable() else "another process"
    return f"{path} is being written by {holder}: wait until that ends, or {advice}"


def _read(stream: int) -> str:
    """The whole of a small file; "" of what can't be read."""
    try:
        return os.pread(stream, 2**20, 0).decode(errors="surrogateescape")
    except OSError:
        return ""
