"""The trainable parameters of a module, which are found once."""

from collections.abc import Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


class TrainableParameters(Mapping[str, mx.array]):
    """The parameters of a module that aren't frozen, by path.

    Walking through all of its modules would take Python longer than a small GPU step. Layers and
    what is frozen must not change.
    """

    def __init__(self, module: nn.Module):
        modules = dict(module.named_modules())
        self._places: dict[str, tuple[nn.Module, str]] = {}
        for path, _ in tree_flatten(module.trainable_parameters()):
            owner, _, name = path.rpartition(".")
            self._places[path] = modules[owner], name

    def __getitem__(self, path: str) -> mx.array:
        owner, name = self._places[path]
        return owner[name]

    def __setitem__(self, path: str, array: mx.array) -> None:
        owner, name = self._places[path]
        owner[name] = array

    def update(self, arrays: Mapping[str, mx.array]) -> None:
        for path, array in arrays.items():
            self[path] = array

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
