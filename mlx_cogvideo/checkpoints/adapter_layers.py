"""The layers of an adapter: checked against a network by their names and shapes, and made."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError
from ..nn.config_fields import shown
from ..nn.low_rank import Addition, DoRA, Kronecker, LowRank
from .adapter_names import other_kind
from .components import listed

Shape = tuple[int, ...]
Names = Mapping[str, str]
"""Names of the tensors of a layer, by their part in it; see ``AdapterNames.part``."""

_FACTORS = [({f"w{i}"}, {f"w{i}_a", f"w{i}_b"}) for i in (1, 2)]
_WHOLE = [{"A", "B"}, *(first | second for first, second in product(*_FACTORS))]
_BESIDE = {"alpha", "magnitude"}
_KINDS = "only LoRA, DoRA and LoKr of linear layers can be used"


def check_kind(file: Path, kind: str | None, unknown: list[str]) -> None:
    """Raises CheckpointError for an adapter of another kind, or tensors with unknown names.

    Args:
        kind: PEFT's name of the kind, such as ``"LORA"``; None where the file doesn't tell.
    """
    if kind not in (None, "LORA", "LOKR"):
        raise CheckpointError(f"{file} is an adapter of the kind {shown(kind)}: {_KINDS}")
    if (other := other_kind(unknown)) is not None:
        raise CheckpointError(f"{file} has {other}, in {listed(unknown)}: {_KINDS}")
    if unknown:
        raise CheckpointError(
            f"{file} has tensors that aren't LoRA of a known kind: {listed(unknown)}"
        )


def check_layers(file: Path, found: Mapping[str, Names], known: Mapping[str, Shape]) -> None:
    """Raises CheckpointError unless all tensors of known layers are there, and at least one."""
    if not found:
        raise CheckpointError(f"{file} has no adapter")
    if any(layer.startswith("lora_te_") for layer in found):
        raise CheckpointError(
            f"{file} adapts the text encoder, too, which isn't supported: use an adapter of the "
            "transformer alone"
        )
    if strange := [layer for layer in found if layer not in known]:
        raise CheckpointError(
            f"{file} is for another model: this one has no linear layers {listed(strange)}"
        )
    parts = {layer: names.keys() - _BESIDE for layer, names in found.items()}
    if incomplete := [layer for layer, names in parts.items() if names not in _WHOLE]:
        raise CheckpointError(f"{file} has an incomplete set of tensors of {listed(incomplete)}")
    if mixed := [n for n, own in found.items() if "magnitude" in own and "A" not in own]:
        raise CheckpointError(
            f"{file} has magnitudes of DoRA beside LoKr, in {listed(mixed)}: {_KINDS}"
        )


def check_magnitudes(file: Path, found: Mapping[str, Names]) -> None:
    """Raises CheckpointError unless each layer of a DoRA adapter has magnitudes."""
    if without := [layer for layer, names in found.items() if "magnitude" not in names]:
        raise CheckpointError(f"{file} is a DoRA adapter without magnitudes of {listed(without)}")


def layer_rank(
    file: Path, layer: str, shapes: Mapping[str, Shape], size: tuple[int, int]
) -> int | None:
    """The rank of a layer of an adapter; None for LoKr with two whole matrices.

    Args:
        shapes: of its tensors by part.
        size: outputs and inputs of the network's layer.

    Raises:
        CheckpointError: the tensors don't fit the network's layer.
    """
    outputs, inputs = size
    if "A" in shapes:
        fits, ranks = _low_rank_fits(shapes, outputs, inputs)
    else:
        fits, ranks = _kronecker_fits(shapes, outputs, inputs)
    if not fits:
        tensors = " and ".join(f"{n} {list(s)}" for n, s in shapes.items() if n != "alpha")
        raise CheckpointError(
            f"{file} is for another model: {layer} has {inputs} inputs and {outputs} outputs "
            f"here, and {tensors} don't fit"
        )
    return ranks.pop() if ranks else None


def _low_rank_fits(shapes: Mapping[str, Shape], outputs: int, inputs: int) -> tuple[bool, set[int]]:
    a, b = shapes["A"], shapes["B"]
    rank = a[0] if a else 0
    # LyCORIS also has magnitudes of inputs, [1, inputs].
    magnitude = shapes.get("magnitude", (outputs,)) in ((outputs,), (outputs, 1))
    return a == (rank, inputs) and b == (outputs, rank) and rank > 0 and magnitude, {rank}


def _kronecker_fits(
    shapes: Mapping[str, Shape], outputs: int, inputs: int
) -> tuple[bool, set[int]]:
    sizes, ranks = [], set()
    for name in ("w1", "w2"):
        first = shapes.get(name) or shapes.get(f"{name}_a") or ()
        last = shapes.get(name) or shapes.get(f"{name}_b") or ()
        if len(first) != 2 or len(last) != 2:
            return False, set()
        size = first[0], last[1]
        sizes.append(size)
        if name not in shapes:
            ranks |= {first[1], last[0]}
            if not 0 < first[1] <= max(size):  # tools don't make more, which would cost much
                return False, set()
    (a, b), (c, d) = sizes
    return (a * c, b * d) == (outputs, inputs) and len(ranks) < 2, ranks


def make_layer(tensors: Mapping[str, mx.array], scale: float) -> Addition:
    """Makes a layer of an adapter of its tensors by part, which have been checked."""
    if "A" not in tensors:
        factors = [
            [tensors[part] for part in (f"w{i}", f"w{i}_a", f"w{i}_b") if part in tensors]
            for i in (1, 2)
        ]
        return Kronecker(*factors, scale)
    a, b, magnitude = (tensors.get(part) for part in ("A", "B", "magnitude"))
    return LowRank(a, b, scale) if magnitude is None else DoRA(a, b, magnitude.flatten(), scale)
