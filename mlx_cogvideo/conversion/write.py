"""Writes a planned conversion.

Tensors stream from the source's files to the destination's one at a time. Memory holds a tensor,
its converted form and, to measure the error, the float32 values of that form. At 5B this is about a
gigabyte: the largest tensor is T5's token embedding with 263 MB.
"""

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import COMPONENT_STEMS, model_identity, write_config
from ..checkpoints.components import listed
from ..checkpoints.model_card import model_card
from ..checkpoints.model_folder import ModelFolder
from ..checkpoints.published_names import published_name
from ..checkpoints.sat import is_sat
from ..checkpoints.tensor_files import DTYPES, SafetensorsWriter
from ..errors import CheckpointError, CogVideoXError, InvalidInputError, OutputError, mlx_errors
from ..files import check_unlocked, locked, remove_temporary, temporary_path
from ..nn.low_rank import Addition, fused_weight
from ..version import __version__
from ..video.paths import output_errors
from .plan import ComponentPlan, ConversionPlan, TensorPlan

_OTHER_FOLDER = "choose another --mlx-path"
REPORT = "conversion.json"
"""File name of the report in the model folder."""

Progress = Callable[[str, int, int], None]


def convert(
    plan: ConversionPlan,
    destination: Path,
    on_progress: Progress | None = None,
    repo: str | None = None,
) -> dict[str, Any]:
    """Writes the planned model folder, which appears once all of it is on disk.

    Args:
        destination: must not exist.
        on_progress: called with a component's name, the bytes written of it and its size in bytes.
        repo: the hub repository that the folder is for, which its card names; None names the
            folder.

    Returns:
        The report, which is also in the folder: source, sizes, bits per weight, and the
        signal-to-noise ratio of each kind of layer in dB.

    Raises:
        OutputError: the folder exists, can't be written or is being written by another process,
            or the disk is too small.
        CheckpointError: a weight has NaN or infinity in it, as stored or with the adapters added,
            or what was written can't be opened.
        InvalidInputError: the requested type or quantization can't hold a weight.
    """
    with lock_destination(destination), output_errors(destination):
        check_destination(destination, plan.bytes_after)
        part = temporary_path(destination)
        part.mkdir()
        try:
            with mlx_errors(out_of_memory="close other programs"):
                components = [
                    _convert(c, part, _additions(plan, c), on_progress) for c in plan.components
                ]
            report = _report(plan, components)
            if repo is not None:
                report = _without_paths(report)
            for name, contents in plan.extra.items():
                copy = part / name
                copy.parent.mkdir(exist_ok=True)
                if isinstance(contents, Path):
                    shutil.copyfile(contents, copy)
                else:
                    write_config(copy, contents)
            write_config(part / REPORT, report)
            card = model_card(report, repo or str(destination))
            (part / "README.md").write_text(card, encoding="utf-8")
            ModelFolder(part)  # raises unless all of it can be opened
            part.rename(destination)
        except BaseException:
            with suppress(OSError):
                remove_temporary(part)
            raise
    return report


def lock_destination(destination: Path) -> AbstractContextManager[None]:
    """Keeps other processes from writing a folder at `destination`.

    Raises:
        OutputError: on entering, if another process is writing it.
    """
    return locked(destination, _OTHER_FOLDER)


def check_free(destination: Path) -> None:
    """Raises OutputError if the folder exists, or another process is writing it."""
    check_unlocked(destination, _OTHER_FOLDER)
    _check_absent(destination)


def check_destination(destination: Path, size: int) -> None:
    """Raises OutputError unless a folder of `size` bytes can be written at `destination`."""
    parent = destination.absolute().parent
    _check_absent(destination)
    if not parent.is_dir():
        raise OutputError(f"the folder {parent} doesn't exist: make it first")
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OutputError(
            f"the disk of {parent} has {free / 1e9:.1f} GB free and {size / 1e9:.1f} GB are "
            "needed: make room, or choose another --mlx-path"
        )


def _check_absent(destination: Path) -> None:
    if os.path.lexists(destination):
        raise OutputError(f"{destination} exists: choose another --mlx-path or remove it")


Additions = Mapping[str, Sequence[Addition]]


def _additions(plan: ConversionPlan, component: ComponentPlan) -> Additions:
    """The additions of all adapters to each layer of a component."""
    additions: dict[str, list[Addition]] = defaultdict(list)
    if component.name == "transformer":
        for adapter, scale in plan.adapters:
            for layer, addition in adapter.load(scale).items():
                additions[layer].append(addition)
    return additions


def _convert(
    plan: ComponentPlan, destination: Path, additions: Additions, on_progress: Progress | None
) -> dict[str, Any]:
    """Writes a component and returns its part of the report."""
    folder = destination / plan.name
    folder.mkdir()
    report = on_progress or (lambda stage, done, total: None)
    done, total = 0, plan.bytes_after
    quality, faults = _Quality(), _Faults(has_adapters=bool(additions))
    report(plan.name, done, total)
    with SafetensorsWriter(folder, COMPONENT_STEMS[plan.name], plan.entries) as writer:
        for tensor, weight in zip(plan.tensors, _read(plan), strict=True):
            if tensor.name.endswith(".weight"):
                weight = fused_weight(weight, additions.get(tensor.layer, ()))
            for name, array in _written(tensor, weight, quality, faults).items():
                writer.write(name, array)
            done += sum(entry.bytes for entry in tensor.entries.values())
            report(plan.name, done, total)
            del weight
            mx.clear_cache()
    faults.check(plan.name)
    write_config(folder / "config.json", plan.config)
    return {
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "bits_per_weight": round(plan.bits_per_weight, 2),
        "kinds": quality.summary(),
        "left_at_16_bits": plan.unfit,
    }


def _read(plan: ComponentPlan) -> Iterator[mx.array]:
    """The weights in the plan's order, dequantized."""
    # Each array is read when it is used, and freed after that.
    take = plan.source.open()
    for tensor in plan.tensors:
        if tensor.stored is None:
            yield take(tensor.name)
        else:
            parts = tensor.stored.packed_shapes(*tensor.shape)
            packed = [take(f"{tensor.layer}.{part}") for part in parts]
            yield mx.dequantize(*packed, **tensor.stored.arguments())


def _written(
    tensor: TensorPlan, weight: mx.array, quality: "_Quality", faults: "_Faults"
) -> dict[str, mx.array]:
    """The arrays that are stored for a weight, by name."""
    cast = weight.astype(DTYPES[tensor.dtype])
    if tensor.wanted is None:
        faults.look_at(tensor, weight, cast, cast)
        return {tensor.name: cast}
    packed = tensor.wanted.pack(cast)
    approximation = mx.dequantize(*packed.values(), **tensor.wanted.arguments())
    faults.look_at(tensor, weight, cast, approximation)
    quality.add(tensor, cast, approximation)
    return {f"{tensor.layer}.{part}": array for part, array in packed.items()}


class _Faults:
    """The tensors of a component that can't be used, with what is wrong and what to do."""

    def __init__(self, *, has_adapters: bool):
        self._has_adapters = has_adapters
        self._found: dict[tuple[type[CogVideoXError], str, str], list[str]] = defaultdict(list)

    def look_at(
        self, tensor: TensorPlan, weight: mx.array, cast: mx.array, approximation: mx.array
    ) -> None:
        """Notes a tensor unless its numbers, in the new type and quantized, are near the old."""
        if not _resembles(cast, approximation):
            self._found[self._fault(tensor, weight, cast)].append(tensor.name)

    def _fault(
        self, tensor: TensorPlan, weight: mx.array, cast: mx.array
    ) -> tuple[type[CogVideoXError], str, str]:
        lower = "lower the scale of --lora" if self._has_adapters else ""
        if not _is_finite(weight):
            whose = "with its adapters added, " if lower else ""
            return CheckpointError, f"{whose}NaN or infinity", lower or "take another copy of it"
        dtype = str(cast.dtype).removeprefix("mlx.core.")
        if _is_finite(cast):
            how = tensor.wanted
            problem = f"weights that {how.bits} bits in the mode {how.mode} can't hold"
            advice = "use another --q-mode or --dtype"
        else:
            problem = f"weights too large for {dtype}"
            advice = f"use --dtype {'bfloat16 or ' * (dtype == 'float16')}float32"
        return InvalidInputError, problem, " or ".join(filter(None, [lower, advice]))

    def check(self, component: str) -> None:
        """Raises an error that names the tensors, if there are any."""
        for (error, problem, advice), names in self._found.items():
            raise error(f"{component} has {problem}, in {listed(names)}: {advice}")


def _is_finite(array: mx.array) -> bool:
    return bool(mx.isfinite(array).all().item())


def _resembles(weight: mx.array, approximation: mx.array) -> bool:
    """Whether both are finite, and no error is larger than half of the largest weight.

    Scales of some modes wrap around where the weights are tiny, or end where they are large. The
    largest error of working ones is a third, with 2 bits. What is lost of tiny weights is no harm.
    """
    if approximation is weight:
        return _is_finite(weight)
    wide = weight.astype(mx.float32)
    errors = mx.abs(wide - approximation.astype(mx.float32))
    small = errors.max() <= mx.maximum(mx.abs(wide).max() / 2, 1e-3)
    return bool((small & mx.isfinite(errors).all()).item())


class _Quality:
    """The power of the weights and of their errors, by kind of layer and quantization."""

    def __init__(self):
        self._sums: dict[tuple, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])

    def add(self, tensor: TensorPlan, weight: mx.array, approximation: mx.array) -> None:
        weight = weight.astype(mx.float32)
        signal = mx.square(weight).sum()
        noise = mx.square(weight - approximation.astype(mx.float32)).sum()
        sums = self._sums[tensor.kind, tensor.wanted]
        sums[0] += 1
        sums[1] += signal.item()
        sums[2] += noise.item()

    def summary(self) -> list[dict[str, Any]]:
        return [
            {"kind": kind, **how.arguments(), "layers": layers, "snr_db": _decibels(signal, noise)}
            for (kind, how), (layers, signal, noise) in self._sums.items()
        ]


def _decibels(signal: float, noise: float) -> float | None:
    """The ratio in dB; None without noise, without signal, or if a square has overflowed."""
    ratio = signal / noise if noise else 0
    return round(10 * math.log10(ratio), 1) if 0 < ratio < math.inf else None


def _report(plan: ConversionPlan, components: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "mlx_cogvideo": __version__,
        "mlx": mx.__version__,
        "variant": plan.variant.alias if plan.variant else None,
        "takes_image": plan.takes_image,
        "source": {"name": str(plan.model)}
        if is_sat(plan.folder)
        else model_identity(plan.model, plan.folder, plan.base),
        "quantization": plan.asked.arguments() if plan.asked else None,
        "recipe": plan.recipe,
        "lora": [adapter.identity(scale) for adapter, scale in plan.adapters],
        "components": {
            component.name: part
            for component, part in zip(plan.components, components, strict=True)
        },
    }


def _without_paths(report: dict[str, Any]) -> dict[str, Any]:
    """A report for others, in which no file or folder of this machine has its path."""
    source = {**report["source"], "name": published_name(report["source"]["name"])}
    if "base" in source:
        source["base"] = {**source["base"], "name": published_name(source["base"]["name"])}
    adapters = [{**each, "source": published_name(each["source"])} for each in report["lora"]]
    return {**report, "source": source, "lora": adapters}
