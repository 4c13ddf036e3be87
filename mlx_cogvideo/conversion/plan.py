"""Plans a conversion from names, shapes and configurations alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import Adapter
from ..checkpoints.compatibility import check_model, check_networks, open_tokenizer
from ..checkpoints.component_sources import ComponentSource, folder_source, sat_sources
from ..checkpoints.components import FLOATING
from ..checkpoints.model_files import files_of, other_files
from ..checkpoints.networks import NETWORKS
from ..checkpoints.packing import no_layer_fits, packed_tensors
from ..checkpoints.resolve import Base
from ..checkpoints.sat import VAE_FILES, is_sat
from ..checkpoints.sat_configs import sat_configurations
from ..checkpoints.tensor_files import NAMES, TensorInfo
from ..checkpoints.variants import Variant, match_variant
from ..errors import CheckpointError, InvalidInputError
from ..nn.quantization import Quantization, layer_kind, linear_layers, packings
from ..nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from .fused import open_adapters


@dataclass(frozen=True)
class TensorPlan:
    """A tensor and how it will be written.

    Attributes:
        shape: shape of the weight, unpacked.
        dtype: type of its written numbers, or of its scales if it is quantized.
        stored: quantization in the source, or None.
        wanted: quantization in the result, or None.
        kind: kind of its layer if the recipe quantizes that; see `nn.quantization.KINDS`.
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
    def entries(self) -> dict[str, TensorInfo]:
        """The tensors that are written, by name."""
        if self.wanted is None:
            return {self.name: TensorInfo(self.dtype, self.shape)}
        return packed_tensors(self.layer, self.shape, self.dtype, self.wanted)


@dataclass
class ComponentPlan:
    """A network, before and after.

    Attributes:
        source: the network as it is stored.
        config: the contents of the new ``config.json``.
        unfit: layers that stay unquantized because their width doesn't divide into groups.
    """

    name: str
    source: ComponentSource
    config: dict[str, Any]
    tensors: list[TensorPlan] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)

    @property
    def entries(self) -> dict[str, TensorInfo]:
        return {name: entry for plan in self.tensors for name, entry in plan.entries.items()}

    @property
    def bytes_before(self) -> int:
        return sum(info.bytes for info in self.source.stored.values())

    @property
    def bytes_after(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes_after / sum(prod(plan.shape) for plan in self.tensors)


@dataclass
class ConversionPlan:
    """What a conversion will do.

    Attributes:
        folder: the folder of the source.
        model: the source's name as the user gave it.
        base: where the components are that the source lacks, or None.
        variant: the official model that it is, or None.
        asked: the requested quantization, or None.
        adapters: LoRA adapters to fuse into the transformer, with their scales.
        extra: other files to write, by names relative to the model folder: files to copy, or the
            contents of JSON files.
    """

    folder: Path
    model: str | Path
    base: Base | None
    variant: Variant | None
    asked: Quantization | None
    recipe: str
    components: list[ComponentPlan]
    extra: dict[str, Path | dict[str, Any]]
    adapters: list[tuple[Adapter, float]] = field(default_factory=list)

    @property
    def bytes_after(self) -> int:
        return sum(component.bytes_after for component in self.components)

    @property
    def takes_image(self) -> bool:
        """Whether it is an image-to-video model."""
        return transformer_config(self.components).takes_image


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
    lora: Collection[tuple[str | Path, float]] = (),
    base: Base | None = None,
    stand_in: Variant | None = None,
    download: bool = True,
) -> ConversionPlan:
    """Plans what a conversion writes; reads configurations and file headers only.

    Args:
        model: the name that the user gave to the model.
        folder: the model: a folder in the official layout, one that was converted before, or a
            file or folder of the SAT code.
        quantization: for the layers that can be quantized; None keeps 16 bits.
        recipe: one of `RECIPES`, which decides the number of bits of each kind of layer.
        dtype: type of all numbers that aren't quantized; None keeps the source's.
        dequantize: whether a quantized source is converted back to 16 bits.
        components: the networks to quantize, dequantize or cast; others are copied.
        text_encoder: for SAT checkpoints, a model folder with the tokenizer, and with the text
            encoder unless the source contains one.
        lora: adapters to fuse into the transformer, and their scales.
        base: the model that gives the components which the folder lacks.
        stand_in: an official model that isn't downloaded: components that aren't here are planned
            as its.
        download: False leaves out adapters of the hub that aren't in the local cache.

    Raises:
        CheckpointError: the folder has no CogVideoX model, or one that is damaged or incomplete, or
            whose parts don't fit each other.
        InvalidInputError: the model is quantized already, is to be dequantized but isn't
            quantized, or has no layer that can be quantized as requested; or an adapter's scale
            isn't a finite number.
    """
    sources, extra = _sources(folder, base, text_encoder, stand_in)
    plans = [plan_component(name, sources[name]) for name in NETWORKS]
    _check_quantized(model, plans, components, dequantize=dequantize)
    for plan in plans:
        if plan.name in components:
            _decide(plan, quantization, recipe, dtype)
    if quantization is not None and not any(t.wanted for plan in plans for t in plan.tensors):
        raise no_layer_fits(quantization)
    config = transformer_config(plans)
    adapters = []
    if lora:
        layers = linear_layers(CogVideoXTransformer3DModel(config))
        adapters = list(open_adapters(lora, layers, download=download))
    variant = match_variant(config)
    return ConversionPlan(
        folder, model, base, variant, quantization, recipe, plans, extra, adapters
    )


def _check_quantized(
    model: str | Path,
    plans: Collection[ComponentPlan],
    components: Collection[str],
    *,
    dequantize: bool,
) -> None:
    """Raises InvalidInputError unless exactly a quantized model is to be dequantized, wholly."""
    quantized = [plan.name for plan in plans if plan.source.quantized]
    if dequantize and not quantized:
        raise InvalidInputError(f"{model} isn't quantized: there is nothing to dequantize")
    if quantized and not dequantize:
        raise InvalidInputError(
            f"{model} is quantized already ({', '.join(quantized)}): convert the original, or "
            "use --dequantize"
        )
    for name in quantized:
        if name not in components:
            raise InvalidInputError(
                f"{name} is quantized and would stay so: add it to --components"
            )


def _sources(
    folder: Path, base: Base | None, text_encoder: Path | None, stand_in: Variant | None
) -> tuple[dict[str, ComponentSource], dict[str, Path | dict[str, Any]]]:
    """The sources of the networks, and the other files of the model."""
    if not is_sat(folder):
        if stand_in is None:
            check_model(folder, base)
        sources = {name: folder_source(folder, name, base, stand_in) for name in NETWORKS}
        check_networks({name: source.config for name, source in sources.items()})
        return sources, other_files(folder, base)
    sources = sat_sources(folder)
    if "vae" not in sources:
        raise CheckpointError(f"{folder} holds no VAE: put {VAE_FILES[0]} into one folder with it")
    if text_encoder is None:
        raise CheckpointError(
            f"{folder} holds no tokenizer: name a model that does, --text-encoder"
        )
    if "text_encoder" not in sources:
        sources["text_encoder"] = folder_source(text_encoder, "text_encoder", stand_in=stand_in)
    check_networks({name: source.config for name, source in sources.items()})
    if stand_in is None:
        open_tokenizer(text_encoder, sources["text_encoder"].config)
    extra: dict[str, Path | dict[str, Any]] = files_of(text_encoder, ("tokenizer/*",))
    return sources, extra | sat_configurations(sources["transformer"].config)


def plan_component(name: str, source: ComponentSource) -> ComponentPlan:
    """A component as it is stored, before anything is decided."""
    plan = ComponentPlan(name, source, source.config)
    for tensor, info in source.stored.items():
        layer, _, part = tensor.rpartition(".")
        if layer in source.quantized and part in ("scales", "biases"):
            continue
        how, shape, dtype = None, info.shape, info.dtype
        if layer in source.quantized and part == "weight":
            how = source.quantized[layer]
            shape = (shape[0], shape[1] * 32 // how.bits)
            dtype = source.stored[f"{layer}.scales"].dtype
            if dtype not in FLOATING:  # some modes have integer scales
                dtype = next(i.dtype for i in source.stored.values() if i.dtype in FLOATING)
        plan.tensors.append(TensorPlan(tensor, shape, dtype, how, how))
    return plan


def transformer_config(plans: Collection[ComponentPlan]) -> TransformerConfig:
    config = next(plan.config for plan in plans if plan.name == "transformer")
    return TransformerConfig.from_dict(config)


def _decide(
    plan: ComponentPlan, quantization: Quantization | None, recipe: str, dtype: mx.Dtype | None
) -> None:
    """Decides how each tensor of a component is written, and its configuration."""
    weights = [tensor.layer for tensor in plan.tensors if tensor.name.endswith(".weight")]
    wanted = {} if quantization is None else packings(weights, quantization, recipe)
    plan.tensors = [_converted(tensor, wanted, dtype) for tensor in plan.tensors]
    candidates = [tensor for tensor in plan.tensors if tensor.kind is not None]
    plan.unfit = [tensor.layer for tensor in candidates if tensor.wanted is None]
    plan.config = {k: v for k, v in plan.config.items() if k != "quantization"}
    if any(tensor.wanted for tensor in candidates):
        plan.config["quantization"] = _quantization_config(candidates, quantization)


def _quantization_config(
    candidates: Collection[TensorPlan], quantization: Quantization
) -> dict[str, Any]:
    """The ``quantization`` of a ``config.json``, with the layers that differ from it by name."""
    exceptions = {
        tensor.layer: tensor.wanted.arguments() if tensor.wanted else False
        for tensor in candidates
        if tensor.wanted != quantization
    }
    return {**quantization.arguments(), **exceptions}


def _converted(
    tensor: TensorPlan, wanted: Mapping[str, Quantization], dtype: mx.Dtype | None
) -> TensorPlan:
    """The plan of a tensor that is quantized if its layer is wanted so and its width fits."""
    name = NAMES[dtype] if dtype is not None else tensor.dtype
    if not tensor.name.endswith(".weight") or tensor.layer not in wanted:
        return replace(tensor, dtype=name, wanted=None)
    how = wanted[tensor.layer]
    fitting = how if how.fits(tensor.shape[1]) else None
    return replace(tensor, dtype=name, wanted=fitting, kind=layer_kind(tensor.layer))
