"""The device of exchanges in a distributed training: on a Mac it is not the GPU.

Here a second stream takes the place of the GPU's, and is the default stream.
"""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_cogvideo import InvalidInputError
from mlx_cogvideo.distributed import Distributed

Operation = tuple[str, str]
"""The name of an operation, and the owner of its stream."""


@pytest.fixture
def cpu(monkeypatch) -> mx.Stream:
    """The CPU's stream, whatever the default one is. The other process exchanges zeros."""
    stream, cpu = mx.stream, mx.default_stream(mx.cpu)
    monkeypatch.setattr(mx, "stream", lambda where: stream(cpu if where is mx.cpu else where))
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)

    def all_sum(array: mx.array, *, group: Any, stream: Any = None) -> mx.array:
        return mx.maximum(array, array, stream=cpu)  # MLX itself chooses the CPU's, too

    monkeypatch.setattr(mx.distributed, "all_sum", all_sum)
    return cpu


@pytest.fixture
def gpu() -> mx.Stream:
    return mx.new_stream(mx.default_device())


@pytest.fixture
def pending(cpu, gpu, tmp_path) -> Callable[[Any], list[Operation]]:
    """A function that lists the operations that a tree of arrays still waits for."""
    one = mx.array(1)
    owners = {}
    for owner, stream in (("cpu", cpu), ("gpu", gpu)):
        ((_, number),) = exported(mx.add(one, one, stream=stream), tmp_path / "graph")
        owners[number] = owner
    assert len(owners) == 2
    return lambda tree: [(name, owners[of]) for name, of in exported(tree, tmp_path / "graph")]


@pytest.fixture
def evaluated(pending, monkeypatch) -> list[list[Operation]]:
    """The operations that each call of mx.eval computes."""
    evaluate, calls = mx.eval, []

    def record(*trees: Any) -> None:
        calls.append(pending(trees))
        evaluate(*trees)

    monkeypatch.setattr(mx, "eval", record)
    return calls


def exported(tree: Any, file: Path) -> list[tuple[str, bytes]]:
    """The names and streams of the operations that a tree of arrays still waits for.

    MLX has no Python function for them. In a file that it exports a function to, 12 bytes before
    the name of each operation contain its stream and device.
    """
    arrays = [array for _, array in tree_flatten(tree)]
    described: list[dict[str, Any]] = []
    mx.export_function(described.append, lambda: arrays)
    mx.export_function(str(file), lambda: arrays)
    data, place, found = file.read_bytes(), 0, []
    for name in [each["name"] for each in described if each["type"] == "primitive"]:
        word = struct.pack("<Q", len(name)) + name.encode()
        place = data.index(word, place)
        found.append((name, data[place - 12 : place]))
        place += len(word)
    return found


def owners(calls: list[list[Operation]]) -> list[set[str]]:
    return [{owner for _, owner in operations} for operations in calls]


def one_of_two(rank: int) -> Distributed:
    return Distributed(SimpleNamespace(rank=lambda: rank, size=lambda: 2))


@pytest.mark.parametrize("other", [mx.float32, mx.bfloat16])
def test_every_operation_from_the_gradients_to_their_mean_is_on_the_cpu(
    gpu, pending, evaluated, other
):
    """Gradients of one type are exchanged in one piece, others one by one."""
    with mx.stream(gpu):
        gradients = {"a": mx.arange(6).reshape(2, 3) / 2, "b": mx.ones(4, other) * 3}
        mean = one_of_two(0).all_mean(gradients)
    assert owners(evaluated) == [{"gpu"}, {"cpu"}]
    expected = {"Maximum", "Divide"} | ({"Concatenate", "Split"} if other == mx.float32 else set())
    assert expected <= {name for name, _ in evaluated[1]}
    assert pending(mean) == [], "the GPU would wait for it"
    for name, array in gradients.items():
        assert mean[name].dtype == array.dtype
        assert np.array_equal(2 * mean[name].astype(mx.float32), array.astype(mx.float32))


@pytest.mark.parametrize("rank", [0, 1])
def test_every_operation_of_a_broadcast_is_on_the_cpu(gpu, pending, evaluated, rank):
    with mx.stream(gpu):
        arrays = {"a": mx.ones(2) * 3, "b": mx.ones(3) * 4}
        copied = one_of_two(rank).broadcast(arrays)
    assert owners(evaluated) == [{"gpu"}, {"cpu"}] * 2
    assert pending(copied) == []


def test_no_exchange_uses_the_gpu(cpu):
    """A stream works only in the thread that made it, so that everything on this GPU fails."""
    with ThreadPoolExecutor(1) as other_thread:
        gpu = other_thread.submit(mx.new_stream, mx.default_device()).result()
    arrays = {"a": mx.array([1.0, 2.0]), "b": mx.array([3])}
    with mx.stream(gpu):
        with pytest.raises(RuntimeError, match="Stream"):
            mx.eval(arrays["a"] + 1)
        main, other = one_of_two(0), one_of_two(1)
        assert main.all_mean(arrays)["a"].tolist() == [0.5, 1]
        assert main.mean([3.0, 1.0]) == [1.5, 0.5]
        assert main.any(True) and not main.any(False)
        for process, own in ((main, [1, 2]), (other, [0, 0])):
            assert process.broadcast(arrays)["a"].tolist() == own
            with process.main_process_first():
                pass
        main.check_same({"clips": "mine"})
        with pytest.raises(InvalidInputError, match="the clips differ"):
            other.check_same({"clips": "mine"})


def test_with_cuda_the_mean_stays_on_the_gpu(gpu, evaluated, monkeypatch):
    """NCCL exchanges on the GPU."""
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    with mx.stream(gpu):
        one_of_two(0).all_mean({"a": mx.ones(2) * 3})
    assert ("Divide", "gpu") in evaluated[-1]
