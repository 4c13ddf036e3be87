"""Several processes that work together, on one machine or more: see docs/several-macs.md.

``mlx.launch`` starts the processes, and each of them holds the whole model. In a training, each
learns from its own clips in each step, and their gradients are averaged. In a generation, each
computes its part of a step. The main process writes files.

An exchange waits for the slowest process, for minutes if necessary. On a Mac the GPU must not wait
with it: Metal aborts GPU work that is held up for about five seconds (ml-explore/mlx#4475), which
ends the process. Therefore the arrays are evaluated first, the whole exchange runs on the CPU, and
its result is evaluated before anything else uses it.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .errors import InvalidInputError, PeerLostError, first_line


@dataclass(frozen=True)
class Processes:
    """How many processes share a run, and how they were asked to divide it.

    Attributes:
        split: what they divide first; None leaves it to the run.
        shares: the weight of each of them; None is equal ones.
    """

    size: int = 1
    split: str | None = None
    shares: tuple[float, ...] | None = None


ONE_PROCESS = Processes()


class Distributed:
    """This process and its group.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    def __init__(self, group: mx.distributed.Group | None = None):
        """`group` contains all processes; None means this one alone."""
        self._group = group
        self.rank = group.rank() if group else 0
        self.size = group.size() if group else 1

    @classmethod
    def connect(cls) -> Self:
        """Connects to the processes that ``mlx.launch`` started with this one.

        MLX may wait for them for ever. The process ends where that takes longer than they can need
        to start.

        Raises:
            InvalidInputError: the other processes can't be reached.
        """
        hosts = os.environ.get("MLX_HOSTFILE")
        launched = any(name in os.environ for name in _SET_BY_LAUNCHERS)
        if not launched or (hosts is not None and not _contents(hosts)):
            return cls()
        try:
            with _limited():
                connected = cls(mx.distributed.init())
        except (RuntimeError, ValueError, IndexError) as error:
            reason = first_line(error)
            raise InvalidInputError(
                f"the processes can't reach each other ({reason}): others may use the port "
                "(mlx.launch --starting-port)"
            ) from None
        if connected.size == 1 and (hosts or os.environ.get("MLX_WORLD_SIZE", "1") != "1"):
            raise InvalidInputError(
                "no backend of MLX connects the processes: start them with mlx.launch --backend "
                "ring, jaccl, mpi or nccl"
            )
        return connected

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files."""
        return self.rank == 0

    def own(self, count: int) -> range:
        """The indices of this process's share of `count` items, a multiple of `size`."""
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def all_mean(self, gradients: dict[str, mx.array]) -> dict[str, mx.array]:
        """The mean of each array over all processes."""
        if self.size == 1:
            return gradients
        mx.eval(gradients)
        # `communication_stream` is not enough: it leaves the division on the GPU.
        with mx.stream(_exchange_device()), _lost():
            mean = dict(tree_flatten(nn.average_gradients(gradients, self._group)))
            mx.eval(mean)
            return mean

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each number over all processes."""
        return [total / self.size for total in self._sum(mx.array(values)).tolist()]

    def all_gather(self, array: mx.array) -> mx.array:
        """The arrays of all processes, ``[size, ...]``, in the order of their ranks.

        The array must have the same shape everywhere: MLX makes wrong data of others, without an
        error.

        With NCCL the result may be lazy: the GPU communicates in the order of its work.
        """
        if self.size == 1:
            return array[None]
        if mx.cuda.is_available():
            return mx.distributed.all_gather(array[None], group=self._group)
        mx.eval(array)
        with mx.stream(_exchange_device()), _lost():
            gathered = mx.distributed.all_gather(array[None], group=self._group)
            mx.eval(gathered)
            return gathered

    def split(self, color: int) -> Self | None:
        """The group of the processes with the same color; None where the backend has no groups.

        All processes must call it. MLX's ring and JACCL can't divide a group.
        """
        if self._group is None:
            return None
        try:
            return type(self)(self._group.split(color))
        except RuntimeError:
            return None

    def any(self, value: bool) -> bool:
        """Whether `value` is true in at least one process."""
        return self._sum(mx.array(int(value))).item() > 0

    def wait(self) -> None:
        """Waits until all processes have called it: a barrier."""
        self._sum(mx.array(0))

    def broadcast(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Copies the arrays of the main process to all processes."""
        # In the same order everywhere: a file may hold the arrays in another one.
        return {name: self._sum(array, self.is_main) for name, array in sorted(arrays.items())}

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Runs the block in the main process first, and in the others after that.

        Files that the main process writes to a shared disk are there for the others.
        """
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()
        self.wait()

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Raises InvalidInputError unless each value is the same in all processes."""
        for name, value in values.items():
            digest = hashlib.sha256(repr(value).encode()).digest()[:4]
            number = int.from_bytes(digest, "little")
            first = self.broadcast({name: mx.array(number, mx.uint32)})[name].item()
            if self.any(first != number):
                raise InvalidInputError(
                    f"the {name} differ between the processes: give each the same command, model "
                    "and clips"
                )

    def _sum(self, array: mx.array, counts: bool = True) -> mx.array:
        """The sum of an array over the processes in which `counts` is true."""
        if self.size == 1:
            return array
        mx.eval(array)
        with mx.stream(_exchange_device()), _lost():
            own = array if counts else mx.zeros_like(array)
            total = mx.distributed.all_sum(own, group=self._group)
            mx.eval(total)
            return total


ALONE = Distributed()
"""One process."""

CONNECT_SECONDS = 120
"""Seconds that the processes may take to start and to connect."""

_SET_BY_LAUNCHERS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Environment variables of mlx.launch, and of the MPI that it calls."""


_WATCHER = """
import os, select, signal, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    os.write(2, f"error: {sys.argv[2]}\\n".encode())
    os.kill(os.getppid(), signal.SIGKILL)
"""


@contextmanager
def _limited() -> Iterator[None]:
    """Ends this process if the block takes longer than `CONNECT_SECONDS`, or at a signal.

    MLX holds the interpreter's lock in it, so that no thread and no handler of Python could do so.
    Another process waits for the end of its input.
    """
    message = f"the other processes haven't connected within {CONNECT_SECONDS} s"
    words = [sys.executable, "-c", _WATCHER, str(CONNECT_SECONDS), message]
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, signal.SIG_DFL)
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        try:
            yield
        finally:
            watcher.stdin.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _contents(file: str) -> str:
    """The contents of a host file, which mlx.launch leaves empty for a single process."""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _exchange_device() -> mx.Device | mx.DeviceType:
    """The CPU, where every backend of MLX but NCCL communicates.

    NCCL needs the GPU, and CUDA has no watchdog that aborts waiting work.
    """
    return mx.default_device() if mx.cuda.is_available() else mx.cpu


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error)
        raise PeerLostError(f"another process is gone ({reason})") from error
