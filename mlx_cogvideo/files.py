"""Files on disk: locks for one writer at a time, temporary names, texts and digests."""

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

from .errors import InvalidInputError, OutputError

LONGEST_NAME = 255
"""Bytes in a file name that nearly all file systems allow."""

_HEADER = "locked by mlx_cogvideo"
# Names of the files that this module makes.
_HIDDEN = re.compile(r"\..*(\.[0-9a-f]{8}\.part(\.safetensors)?|\.lock)", re.DOTALL)
# A process that only checks a lock holds it for a moment, too.
_PATIENCE_SECONDS = 0.3
_OPEN_FILES = (2**16, 10_240)

logger = logging.getLogger(__name__)


@dataclass
class _Lock:
    """A lock that this process holds.

    Attributes:
        path: the output.
        file: the locked file. It names the process, and the files to remove if that is killed.
        stream: the descriptor of that file.
        is_held: False if the file system has no locks.
        owner: the process and the thread that hold it.
        holder: the name of the process in another process's message.
        temporaries: the files to remove, relative to the folder of `path`.
    """

    path: Path
    file: Path
    stream: int
    is_held: bool
    owner: tuple[int, int]
    holder: str
    temporaries: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Updates the contents of the lock's file."""
        if not self.is_held:
            return
        text = f"{_HEADER}\n{self.holder}\n{json.dumps(self.temporaries)}\n"
        with suppress(OSError):  # on a full disk the temporaries stay after a kill
            os.truncate(self.stream, 0)
            os.pwrite(self.stream, text.encode(errors="replace"), 0)

    def covers(self, file: Path) -> bool:
        """Whether a file is a temporary or a lock of this output, beside or inside it."""
        if _HIDDEN.fullmatch(file.name) is None:
            return False
        beside = file.parent == self.path.parent and file.name.startswith(f".{self.path.name[:40]}")
        return beside or self.path in file.parents

    def release(self) -> None:
        """Unlocks the file and removes it, unless another process has replaced it."""
        with suppress(OSError):
            # While it is still held, so that nobody can have locked the removed file.
            if self.is_held and os.path.samestat(os.fstat(self.stream), os.lstat(self.file)):
                self.file.unlink()
        os.close(self.stream)


_held: dict[Path, _Lock] = {}


@contextmanager
def locked(path: Path, advice: str) -> Iterator[None]:
    """Keeps all other processes and threads from writing `path`.

    The lock is the system's (``flock``) on the hidden file ``.NAME.lock`` beside `path`, and ends
    with the process in any case. The file is removed with the lock. If a killed process has left
    it, it names the temporaries to remove. A thread that holds the lock may take it again.

    Args:
        path: an output, which need not exist.
        advice: the message's advice, such as ``choose another --output``.

    Raises:
        OutputError: another process holds the lock, which the message names, or the lock's file
            can't be created.
    """
    key = absolute(path)
    owner = os.getpid(), threading.get_ident()
    if (held := _held.get(key)) is not None and held.owner == owner:
        yield
        return
    file = _neighbour(key, "", ".lock")
    lock = _acquire(key, file, path, advice, owner)
    lock.write()
    _note(file)
    _held[key] = lock
    try:
        yield
    finally:
        if os.getpid() == owner[0]:  # not in a forked child, which doesn't own the lock
            if _held.get(key) is lock:
                del _held[key]
            lock.release()
            keep(file)


def check_unlocked(path: Path, advice: str) -> None:
    """Raises OutputError if another process holds the lock that `locked` takes; writes nothing."""
    file = _neighbour(absolute(path), "", ".lock")
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
    """A new hidden name beside `path`, for the file or folder until it is complete.

    If `path` or a folder around it is locked and the process is killed, the next owner of the lock
    removes the temporary.
    """
    part = _neighbour(path, f".{secrets.token_hex(4)}", ending)
    _note(part)
    return part


def _note(file: Path) -> None:
    """Lists a file in the lock that covers it, so that it is removed if the process is killed."""
    file = absolute(file)
    for lock in list(_held.values()):
        if lock.covers(file):
            lock.temporaries.append(str(file.relative_to(lock.path.parent)))
            lock.write()


def keep(file: Path) -> None:
    """Marks a temporary as complete: it isn't removed after a kill any more."""
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
    """The same path for all names of a file's folder; the file may be a link, which is kept.

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
    # Don't cut through a character: a Mac's file system refuses the name.
    name = os.fsencode(path.name)
    shown = path.name if len(name) <= room else name[:room].decode(errors="ignore")
    return path.with_name(f".{shown}{middle}{ending}")


def _acquire(key: Path, file: Path, path: Path, advice: str, owner: tuple[int, int]) -> _Lock:
    """Takes the lock and removes what a killed process has left."""
    end = time.monotonic() + _PATIENCE_SECONDS
    holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}"
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
            # Some network file systems have no locks: leftovers may belong to another process.
            warning = "%s can't be locked (%s): don't write it by two commands at once"
            logger.warning(warning, path, error.strerror)
            return _Lock(key, file, stream, False, owner, holder)
        with suppress(FileNotFoundError):  # its last owner may have removed it meanwhile
            if os.path.samestat(os.fstat(stream), os.lstat(file)):
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
            if error.errno != errno.EMFILE or not allow_more_files():
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
        raise OutputError(f"{file} has the name of a lock file but isn't one: move it")
    return stream


def allow_more_files() -> bool:
    """Raises the limit of open files of this process, which is 256 on a Mac."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _OPEN_FILES:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if allowed > soft:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
                return True
    return False


def _clean(lock: _Lock) -> None:
    """Removes the temporaries of a killed process, and no file that it can't have made."""
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
    end = time.monotonic() + _PATIENCE_SECONDS
    # A process names itself right after it has taken the lock.
    while len(lines := _read(stream).split("\n")) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    holder = lines[1] if len(lines) > 2 and lines[1].isprintable() else "another process"
    return f"{path} is being written by {holder}: wait until that ends, or {advice}"


def _read(stream: int) -> str:
    """The contents of a small file, or "" if it can't be read."""
    try:
        return os.pread(stream, 2**20, 0).decode(errors="surrogateescape")
    except OSError:
        return ""


def check_is_file(path: str | Path) -> None:
    """Checks that opening a path can't wait forever, as it does for a pipe.

    Raises:
        InvalidInputError: it doesn't exist, or is something else than a regular file.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidInputError(f"{path} can't be read: it is not a file but a folder or pipe")
    except FileNotFoundError:
        raise InvalidInputError(f"{path} doesn't exist") from None
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The text of a file, or InvalidInputError if it isn't one in UTF-8; a BOM is left out."""
    check_is_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = error.reason
        raise InvalidInputError(f"{path} isn't UTF-8 text: {reason}; save it as UTF-8") from None
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read: {error.strerror}") from None


def file_digest(file: Path) -> str:
    """The SHA-256 of a file in hexadecimal, computed once until the file changes."""
    status = file.stat()
    return _digest(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _digest(file: Path, *_: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
