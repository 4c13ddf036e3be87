"""From an official checkpoint to a model folder of our own, quantized if that is asked for.

Tensors stream from the source's shards to the destination's one at a time: memory holds a tensor,
what becomes of it, and, to measure the error, what that stands for in float32. At 5B that is about
a gigabyte (the largest tensor is T5's token embedding with 263 MB).
"""

import json
import logging
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import __version__
from .checkpoints import COMPONENT_STEMS, model_identity, read_config
from .checkpoints.safetensors_header import TensorInfo
from .checkpoints.safetensors_writer import DTYPES, NAMES, Entry, SafetensorsWriter
from .checkpoints.sat import VAE_FILES, is_sat, sat_configurations
from .checkpoints.sources import ComponentSource, folder_source, sat_sources
from .errors import CheckpointError, InvalidInputError, OutputError
from .model_card import model_card
from .networks import NETWORKS
from .nn.quantization import (
    RECIPES,
    Quantization,
    blocks_in,
    layer_kind,
    linear_layers,
)
from .variants import Variant, match_variant

REPORT = "conversion.json"
COPIED = ("model_index.json", "tokenizer/*.json", "tokenizer/spiece.model", "scheduler/*.json")
"""What a model folder has besides its networks."""

FLOATING = ("F32", "F16", "BF16")

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TensorPlan:
    """A tensor and what becomes of it.

    Attributes:
        shape: of the weight, unpacked.
        dtype: of its numbers once written, or of its scales.
        stored: how it is quantized in the source, or None.
        wanted: how it is to be quantized, or None.
        kind: of its layer, if that could be quantized.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: Quantization | None = None
    wanted: Quantization | None = None
    kind: str | None = None

    @property
    def layer(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def entries(self) -> dict[str, Entry]:
        """What is written."""
        if self.wanted is None:
            return {self.name: Entry(self.dtype, self.shape)}
        types = {
            "weight": "U32",
            "scales": self.dtype if self.wanted.has_biases else "U8",
            "biases": self.dtype,
        }
        shapes = self.wanted.packed_shapes(*self.shape)
        return {f"{self.layer}.{part}": Entry(types[part], shapes[part]) for part in shapes}


@dataclass
class ComponentPlan:
    """A network, before and after.

    Attributes:
        source: where it comes from.
        config: of ``config.json``, as it will be.
        unfit: layers that stay as they are because their width doesn't divide into groups.
    """

    name: str
    source: ComponentSource
    config: dict[str, Any]
    tensors: list[TensorPlan] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)

    @property
    def entries(self) -> dict[str, Entry]:
        return {name: entry for plan in self.tensors for name, entry in plan.entries.items()}

    @property
    def bytes_before(self) -> int:
        return sum(Entry(info.dtype, info.shape).bytes for info in self.source.stored.values())

    @property
    def bytes_after(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def parameters(self) -> int:
        return sum(prod(plan.shape) for plan in self.tensors)


@dataclass
class ConversionPlan:
    """What a conversion is about to do.

    Attributes:
        folder: the source's.
        model: what the user calls it.
        variant: the official model it is, or None.
        asked: the quantization asked for, or None.
        extra: what is written besides the networks, by names relative to the model folder: files
            to copy, or the contents of JSON files.
    """

    folder: Path
    model: str | Path
    variant: Variant | None
    asked: Quantization | None
    recipe: str
    components: list[ComponentPlan]
    extra: dict[str, Path | dict[str, Any]]

    @property
    def bytes_after(self) -> int:
        return sum(component.bytes_after for component in self.components)


def plan_conversion(
    model: str | Path,
    folder: Path,
    *,
    quantization: Quantization | None = None,
    recipe: str = "standard",
    dtype: mx.Dtype | None = None,
    dequantize: bool = False,
    components: Collection[str] = tuple(NETWORKS),
    text_encoder: Path | None = None,
    assumed_dtype: str | None = None,
) -> ConversionPlan:
    """Works out what a conversion would write; reads configurations and file headers only.

    Args:
        model: what the user calls the model.
        folder: where it lies: in the official layout, converted before, or a file or folder of
            the SAT code.
        quantization: of the layers that can be quantized; None keeps 16 bits.
        recipe: a key of `RECIPES`, which decides how many bits each kind of layer has.
        dtype: of all numbers that aren't packed; None keeps the source's.
        dequantize: the source is quantized, and the result is not to be.
        components: the networks to quantize, dequantize or cast; others are copied.
        text_encoder: a model folder with the tokenizer, and the text encoder unless the source has
            one; for SAT checkpoints.
        assumed_dtype: of a checkpoint that isn't downloaded yet but for its configurations.

    Raises:
        CheckpointError: the folder holds no CogVideoX model, or a damaged one.
        InvalidInputError: it is quantized already, or isn't and was to be dequantized, or no layer
            can be quantized so.
    """
    sources, extra = _sources(folder, text_encoder, assumed_dtype)
    plans = [_plan_component(name, sources[name]) for name in NETWORKS]
    quantized = [plan.name for plan in plans if "quantization" in plan.config]
    if dequantize and not quantized:
        raise InvalidInputError(f"{model} isn't quantized: there is nothing to dequantize")
    if quantized and not dequantize:
        raise InvalidInputError(
            f"{model} is quantized already ({', '.join(quantized)}): convert the original, or "
            "use --dequantize"
        )
    for plan in plans:
        if plan.name in components:
            _settle(plan, quantization, recipe, dtype)
        elif dequantize and plan.name in quantized:
            raise InvalidInputError(f"{plan.name} is quantized and would be left so: name it, too")
    if quantization is not None and not any(t.wanted for plan in plans for t in plan.tensors):
        raise InvalidInputError(
            f"no layer can be quantized with groups of {quantization.group_size}: their widths "
            "don't divide by it"
        )
    transformer = NETWORKS["transformer"][1].from_dict(plans[0].config)
    variant = match_variant(transformer)
    return ConversionPlan(folder, model, variant, quantization, recipe, plans, extra)


def _sources(
    folder: Path, text_encoder: Path | None, assumed_dtype: str | None
) -> tuple[dict[str, ComponentSource], dict[str, Path | dict[str, Any]]]:
    """Where the networks come from, and what else belongs to the model."""
    if not is_sat(folder):
        check_architecture(folder)
        sources = {name: folder_source(folder, name, assumed_dtype) for name in NETWORKS}
        return sources, _files(folder, COPIED)
    sources = sat_sources(folder)
    if "vae" not in sources:
        raise CheckpointError(f"{folder} holds no VAE: put {VAE_FILES[0]} into one folder with it")
    if text_encoder is None:
        raise CheckpointError(
            f"{folder} holds no tokenizer: name a model that does, --text-encoder"
        )
    if "text_encoder" not in sources:
        sources["text_encoder"] = folder_source(text_encoder, "text_encoder", assumed_dtype)
    extra: dict[str, Path | dict[str, Any]] = _files(text_encoder, ("tokenizer/*",))
    return sources, extra | sat_configurations(sources["transformer"].config)


def _files(folder: Path, patterns: Collection[str]) -> dict[str, Path | dict[str, Any]]:
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    return {str(file.relative_to(folder)): file for file in files}


def check_architecture(folder: Path) -> None:
    """Raises CheckpointError for a folder that holds another model, or none."""
    index = folder / "model_index.json"
    if not index.is_file() and not (folder / "transformer" / "config.json").is_file():
        raise CheckpointError(f"{folder} is no model folder: it has no model_index.json")
    found = read_config(index).get("_class_name", "") if index.is_file() else ""
    transformer = read_config(folder / "transformer" / "config.json").get("_class_name", "")
    for name, prefix in ((found, "CogVideoX"), (transformer, "CogVideoXTransformer3DModel")):
        if name and not str(name).startswith(prefix):
            raise CheckpointError(f"{folder} holds a {name}, and only CogVideoX can be converted")


def _plan_component(name: str, source: ComponentSource) -> ComponentPlan:
    """The component as it is."""
    plan = ComponentPlan(name, source, source.config)
    for tensor, info in source.stored.items():
        layer, _, part = tensor.rpartition(".")
        if layer in source.quantized and part in ("scales", "biases"):
            continue
        how, shape, dtype = None, info.shape, info.dtype
        if layer in source.quantized and part == "weight":
            how = source.quantized[layer]
            shape = (shape[0], shape[1] * 32 // how.bits)
            scales = source.stored[f"{layer}.scales"].dtype
            dtype = scales if scales in FLOATING else _other_dtype(source.stored)
        plan.tensors.append(TensorPlan(tensor, shape, dtype, how, how))
    return plan


def _other_dtype(stored: Mapping[str, TensorInfo]) -> str:
    """That of the tensors that aren't packed: the scales of some modes don't tell."""
    return next(info.dtype for info in stored.values() if info.dtype in FLOATING)


def _settle(
    plan: ComponentPlan, quantization: Quantization | None, recipe: str, dtype: mx.Dtype | None
) -> None:
    """Decides what becomes of each tensor of a component."""
    network, config_class = NETWORKS[plan.name]
    linear = linear_layers(network(config_class.from_dict(plan.config)))
    kinds = {path: kind for path in linear if (kind := layer_kind(path))}
    blocks = blocks_in(kinds)
    told: dict[str, Any] = {}
    tensors = []
    for tensor in plan.tensors:
        kind, wanted = None, None
        if quantization is not None and tensor.name.endswith(".weight") and tensor.layer in kinds:
            kind = kinds[tensor.layer]
            wanted = RECIPES[recipe](kind, tensor.layer, blocks, quantization)
            if not wanted.fits(tensor.shape[1]):
                plan.unfit.append(tensor.layer)
                told[tensor.layer], wanted = False, None
            elif wanted != quantization:
                told[tensor.layer] = wanted.arguments()
        kept = NAMES[dtype] if dtype is not None else tensor.dtype
        tensors.append(TensorPlan(tensor.name, tensor.shape, kept, tensor.stored, wanted, kind))
    plan.tensors = tensors
    plan.config = {k: v for k, v in plan.config.items() if k != "quantization"}
    if any(tensor.wanted for tensor in tensors):
        plan.config["quantization"] = {**quantization.arguments(), **told}


def convert(
    plan: ConversionPlan, destination: Path, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Writes the model folder that was planned; it appears once all of it is on disk.

    Args:
        destination: must not exist.
        on_progress: called with a component's name, the bytes written of it and their number.

    Returns:
        The report, which is also in the folder: source, sizes, bits per weight, and the
        signal-to-noise ratio of each kind of layer in dB.

    Raises:
        OutputError: the folder exists or can't be written, or the disk is too small.
    """
    check_destination(destination, plan.bytes_after)
    part = destination.with_name(f".{destination.name}.part")
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        report = _report(plan, [_convert(c, part, on_progress) for c in plan.components])
        for name, contents in plan.extra.items():
            copy = part / name
            copy.parent.mkdir(exist_ok=True)
            if isinstance(contents, Path):
                shutil.copyfile(contents, copy)
            else:
                _write_json(copy, contents)
        _write_json(part / REPORT, report)
        (part / "README.md").write_text(model_card(report), encoding="utf-8")
        part.rename(destination)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OutputError(f"{destination} can't be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return report


def check_destination(destination: Path, size: int) -> None:
    """Raises OutputError where a folder of so many bytes can't be made."""
    parent = destination.absolute().parent
    if destination.exists():
        raise OutputError(f"{destination} exists: choose another --mlx-path or remove it")
    if not parent.is_dir():
        raise OutputError(f"the folder {parent} doesn't exist: make it first")
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OutputError(
            f"the disk of {parent} has {free / 1e9:.1f} GB free and {size / 1e9:.1f} GB are "
            "needed: make room, or choose another --mlx-path"
        )


def describe_folder(folder: Path) -> dict[str, Any]:
    """What a model folder holds, in the form of a conversion's report.

    Raises:
        CheckpointError: it holds no CogVideoX model, or a damaged one.
    """
    check_architecture(folder)
    report: dict[str, Any] = {"source": None, "components": {}}
    if (folder / REPORT).is_file():
        report |= read_config(folder / REPORT)
    plans = [_plan_component(name, folder_source(folder, name)) for name in NETWORKS]
    transformer = NETWORKS["transformer"][1].from_dict(plans[0].config)
    variant = match_variant(transformer)
    report["variant"] = variant.alias if variant else None
    for plan in plans:
        layers = Counter(
            (layer_kind(tensor.layer), tensor.stored) for tensor in plan.tensors if tensor.stored
        )
        kinds = [
            {"kind": kind, **how.arguments(), "layers": count}
            for (kind, how), count in layers.items()
        ]
        told = report["components"].setdefault(plan.name, {"kinds": kinds})
        told["bytes_after"] = plan.bytes_before
        told["bits_per_weight"] = round(8 * plan.bytes_before / plan.parameters, 2)
    return report


def _convert(
    plan: ComponentPlan, destination: Path, on_progress: Progress | None
) -> dict[str, Any]:
    """Writes a component and returns its part of the report."""
    folder = destination / plan.name
    folder.mkdir()
    report = on_progress or (lambda stage, done, total: None)
    done, total = 0, plan.bytes_after
    quality = _Quality()
    report(plan.name, done, total)
    with SafetensorsWriter(folder, COMPONENT_STEMS[plan.name], plan.entries) as writer:
        for tensor, weight in zip(plan.tensors, _read(plan), strict=True):
            for name, array in _written(tensor, weight, quality).items():
                writer.write(name, array)
            done += sum(entry.bytes for entry in tensor.entries.values())
            report(plan.name, done, total)
            del weight
            mx.clear_cache()
    _write_json(folder / "config.json", plan.config)
    return {
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "bits_per_weight": round(8 * plan.bytes_after / plan.parameters, 2),
        "kinds": quality.summary(),
        "left_at_16_bits": plan.unfit,
    }


def _read(plan: ComponentPlan) -> Iterator[mx.array]:
    """The weights in the plan's order, unpacked unless they stay as they are."""
    # Nothing is read before it is used, and each array is let go of after that.
    arrays = plan.source.open()
    for tensor in plan.tensors:
        if tensor.stored is None:
            yield arrays.pop(tensor.name)
            continue
        packed = [arrays.pop(f"{tensor.layer}.{p}", None) for p in ("weight", "scales", "biases")]
        yield mx.dequantize(*packed, **tensor.stored.arguments())


def _written(tensor: TensorPlan, weight: mx.array, quality: "_Quality") -> dict[str, mx.array]:
    weight = weight.astype(DTYPES[tensor.dtype])
    if tensor.wanted is None:
        return {tensor.name: weight}
    how = tensor.wanted.arguments()
    packed = mx.quantize(weight, **how)
    quality.add(tensor, weight, mx.dequantize(*packed, **how))
    return dict(zip(tensor.entries, packed, strict=True))


class _Quality:
    """Power of the weights and of their errors, by kind of layer and by bits."""

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
            {
                "kind": kind,
                **how.arguments(),
                "layers": layers,
                "snr_db": round(10 * math.log10(signal / noise), 1) if noise else None,
            }
            for (kind, how), (layers, signal, noise) in self._sums.items()
        ]


def _report(plan: ConversionPlan, components: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "mlx_cogvideo": __version__,
        "mlx": mx.__version__,
        "variant": plan.variant.alias if plan.variant else None,
        "source": {"name": str(plan.model)}
        if is_sat(plan.folder)
        else model_identity(plan.model, plan.folder),
        "quantization": plan.asked.arguments() if plan.asked else None,
        "recipe": plan.recipe,
        "components": {
            component.name: told
            for component, told in zip(plan.components, components, strict=True)
        },
    }


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
