"""Files on disk: one writer at a time, temporary names until they are complete, and digests."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import resource
import secrets
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from .errors import OutputError

LONGEST_NAME = 255
"""Bytes in a file name that nearly all file systems allow."""

_HEADER = "locked by mlx_cogvideo"
# Names of what this module makes.
_HIDDEN = re.compile(r"\..*(\.[0-9a-f]{8}\.part(\.safetensors)?|\.lock)", re.DOTALL)
# Whoever only looks whether a file is locked holds the lock for a moment, too.
_PATIENCE_SECONDS = 0.3
_OPEN_FILES = (2**16, 10_240)

logger = logging.getLogger(__name__)


@dataclass
class _Lock:
    """A lock that this process holds.

    Attributes:
        path: of the output.
        file: that is locked; it names the process, and the files that are to be removed if the
            process is killed.
        stream: of that file.
        is_held: False where the file system has no locks.
        owner: the process and the thread that hold it.
        holder: what another process is told.
        temporaries: the files, relative to the folder of `path`.
    """

    path: Path
    file: Path
    stream: int
    is_held: bool
    owner: tuple[int, int]
    holder: str
    temporaries: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Writes what the lock's file is to hold."""
        if not self.is_held:
            return
        text = f"{_HEADER}\n{self.holder}\n{json.dumps(self.temporaries)}\n"
        with suppress(OSError):  # a full disk; then they stay there after a kill
            os.truncate(self.stream, 0)
            os.pwrite(self.stream, text.encode(errors="replace"), 0)

    def covers(self, file: Path) -> bool:
        """Whether a file is a temporary or a lock of the output's, beside or inside it."""
        if _HIDDEN.fullmatch(file.name) is None:
            return False
        beside = file.parent == self.path.parent and file.name.startswith(f".{self.path.name[:40]}")
        return beside or self.path in file.parents

    def release(self) -> None:
        """Removes the file and unlocks it, unless another process has its own there by now."""
        with suppress(OSError):
            # While it is still held: nobody can have locked what is removed here.
            if self.is_held and os.path.samestat(os.fstat(self.stream), os.lstat(self.file)):
                self.file.unlink()
        os.close(self.stream)


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
    key = absolute(path)
    owner = os.getpid(), threading.get_ident()
    held = _held.get(key)
    if held is not None and held.owner == owner:
        yield
        return
    file = lock_file or _neighbour(key, "", ".lock")
    lock = _acquire(key, file, path, advice)
    lock.write()
    _note(file)
    _held[key] = lock
    try:
        yield
    finally:
        if os.getpid() == owner[0]:  # a forked child has only borrowed it
            if _held.get(key) is lock:
                del _held[key]
            lock.release()
            _forget(file)


def check_unlocked(path: Path, advice: str, lock_file: Path | None = None) -> None:
    """Raises OutputError where another process holds the lock of `path`; writes nothing.

    Args:
        advice, lock_file: as for `locked`.
    """
    file = lock_file or _neighbour(absolute(path), "", ".lock")
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


def temporary_path(path: Path, ending: str = ".part") -> Path:
    """A hidden neighbour that nobody else has, in which the file or folder at `path` can grow.

    If `path`, or a folder around it, is locked and the process is killed, whoever takes the lock
    next removes it.

    Args:
        ending: of its name.
    """
    part = _neighbour(path, f".{secrets.token_hex(4)}", ending)
    _note(part)
    return part


def keep(part: Path) -> None:
    """Takes a temporary file, which is complete, from those that are removed after a kill."""
    _forget(part)


def _note(file: Path) -> None:
    """Lists a file in the lock that covers it, to be removed if the process is killed."""
    file = absolute(file)
    for lock in list(_held.values()):
        if lock.covers(file):
            lock.temporaries.append(str(file.relative_to(lock.path.parent)))
            lock.write()


def _forget(file: Path) -> None:
    file = absolute(file)
    for lock in list(_held.values()):
        if file.is_relative_to(lock.path.parent):
            name = str(file.relative_to(lock.path.parent))
            if name in lock.temporaries:
                lock.temporaries.remove(name)
                lock.write()


def remove_temporary(part: Path) -> None:
    """Removes a temporary file or folder, if it is there."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def absolute(path: Path) -> Path:
    """The same for all ways to a file, which itself may be a link that an output replaces.

    Raises:
        OutputError: it can't be the name of a file.
    """
    try:
        whole = Path(os.path.abspath(path))
        if "\0" in str(path) or not whole.name:
            raise OutputError(f"{str(path)!r} is no name for an output: choose another")
        return Path(os.path.realpath(whole.parent)) / whole.name
    except FileNotFoundError:
        raise OutputError("the current folder is gone: change to another") from None


def _neighbour(path: Path, middle: str, ending: str) -> Path:
    room = LONGEST_NAME - len(f".{middle}{ending}")
    # Not through the middle of a character, which a Mac's file system refuses.
    name = os.fsencode(path.name)
    shown = path.name if len(name) <= room else name[:room].decode(errors="ignore")
    return path.with_name(f".{shown}{middle}{ending}")


def _acquire(key: Path, file: Path, path: Path, advice: str) -> _Lock:
    """The lock on an open file, which is cleaned of what a killed process has left."""
    end = time.monotonic() + _PATIENCE_SECONDS
    owner = os.getpid(), threading.get_ident()
    since = time.strftime("%H:%M:%S")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
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
            # Some network file systems have no locks: what is there may be another's.
            logger.warning(
                "%s can't be locked (%s): don't write it by two commands at once",
                path,
                error.strerror,
            )
            return _Lock(key, file, stream, False, owner, holder)
        try:
            is_current = os.path.samestat(os.fstat(stream), os.lstat(file))
        except FileNotFoundError:
            is_current = False
        if is_current:  # else the process before removed it after it was opened here
            lock = _Lock(key, file, stream, True, owner, holder)
            _clean(lock)
            return lock
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


def _clean(lock: _Lock) -> None:
    """Removes what a killed process has left, and nothing that it couldn't have made."""
    lines = _read(lock.stream).split("\n")
    try:
        names = json.loads(lines[2]) if len(lines) > 2 else []
    except (ValueError, RecursionError):
        return
    for name in names if isinstance(names, list) else []:
        if not isinstance(name, str) or "\0" in name or ".." in Path(name).parts:
            continue
        file = lock.path.parent / name
        if lock.covers(file):
            with suppress(OSError):
                _remove_dead_lock(file) if file.suffix == ".lock" else remove_temporary(file)


def _remove_dead_lock(file: Path) -> None:
    stream = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _read(stream).startswith(_HEADER):
            file.unlink()
    finally:
        os.close(stream)


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


def file_digest(file: Path) -> str:
    """The SHA-256 of a file in hexadecimal; while it doesn't change, it is worked out once."""
    told = file.stat()
    return _digest(file, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=256)
def _digest(file: Path, *_: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
