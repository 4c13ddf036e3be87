"""The processes that train together, on one machine or on several: see docs/distributed.md.

``mlx.launch`` starts them. Each holds the whole model and learns from clips of its own in each
step; what they have in common are the gradients, which are averaged, and so the adapter. The first
of them writes.

An exchange waits for the slowest process, for minutes if need be. On a Mac the GPU must not wait
with it: Metal ends GPU work that is held up for about five seconds (ml-explore/mlx#4475), and the
process ends with it. So the arrays are evaluated first, the whole exchange is computed on the CPU,
and its result is evaluated before anything else uses it.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from .errors import InvalidInputError, PeerLostError, first_line


class Distributed:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    def __init__(self, group: mx.distributed.Group | None = None):
        """`group` are all processes; None is this one alone."""
        self._group = group
        self.rank = group.rank() if group else 0
        self.size = group.size() if group else 1

    @classmethod
    def connect(cls) -> Self:
        """Those that ``mlx.launch`` started with this one.

        Raises:
            InvalidInputError: they can't be reached.
        """
        hosts = os.environ.get("MLX_HOSTFILE")
        launched = any(name in os.environ for name in _SET_BY_LAUNCHERS)
        if not launched or (hosts is not None and not _contents(hosts)):
            return cls()
        try:
            return cls(mx.distributed.init())
        except RuntimeError as error:
            reason = first_line(error)
            raise InvalidInputError(
                f"the processes of this training can't reach each other ({reason}): another "
                "training may have the port (mlx.launch --starting-port)"
            ) from None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def own(self, count: int) -> range:
        """The places of this one's part among `count` things, which divide evenly."""
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def all_mean(self, gradients: Any) -> Any:
        """The mean of a tree of arrays over all processes."""
        if self.size == 1:
            return gradients
        mx.eval(gradients)
        # `communication_stream` is not enough: it leaves the division, for one, on the GPU.
        with mx.stream(_exchange_device()), _lost():
            mean = nn.average_gradients(gradients, self._group)
            mx.eval(mean)
            return mean

    def mean(self, values: Sequence[float]) -> list[float]:
        """The means of numbers that each process has."""
        return [total / self.size for total in self._sum(mx.array(values)).tolist()]

    def any(self, wish: bool) -> bool:
        """Whether one of the processes has it."""
        return self._sum(mx.array(int(wish))).item() > 0

    def wait(self) -> None:
        """Returns when all processes are here."""
        self._sum(mx.array(0))

    def broadcast(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The first process's arrays, in all."""
        # In the same order everywhere: the arrays may have come from a file, or not.
        return {name: self._sum(array, self.is_main) for name, array in sorted(arrays.items())}

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Lets the first process do something while the others wait; then it is their turn.

        What it has left on a disk that they share is there for them.
        """
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()
        self.wait()

    def check_same(self, told: Mapping[str, Any]) -> None:
        """Raises InvalidInputError where something isn't the same in all processes."""
        for name, value in told.items():
            digest = hashlib.sha256(repr(value).encode()).digest()[:4]
            number = int.from_bytes(digest, "little")
            first = self.broadcast({name: mx.array(number, mx.uint32)})[name].item()
            if self.any(first != number):
                raise InvalidInputError(
                    f"the {name} differ between the processes: give each the same command, model "
                    "and clips"
                )

    def _sum(self, array: mx.array, counts: bool = True) -> mx.array:
        """The sum over the processes for which it `counts`."""
        if self.size == 1:
            return array
        mx.eval(array)
        with mx.stream(_exchange_device()), _lost():
            own = array if counts else mx.zeros_like(array)
            total = mx.distributed.all_sum(own, group=self._group)
            mx.eval(total)
            return total


ALONE = Distributed()

_SET_BY_LAUNCHERS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""By mlx.launch itself, and by the MPI that it calls."""


def _contents(file: str) -> str:
    """Of one process alone, mlx.launch leaves it empty."""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _exchange_device() -> mx.Device | mx.DeviceType:
    """The CPU, where every backend of MLX but NCCL communicates. NCCL needs the GPU, and CUDA has
    no watchdog that ends work for waiting."""
    return mx.default_device() if mx.cuda.is_available() else mx.cpu


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error)
        raise PeerLostError(f"another process of this training is gone ({reason})") from error
