"""Starts a training from an existing adapter, which decides its kind, rank, alpha and layers."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import Adapter, open_adapter
from ..checkpoints.adapters import layer_in_block
from ..checkpoints.components import listed
from ..errors import InvalidInputError
from ..nn.low_rank import Addition, DoRA, LowRank
from ..nn.quantization import linear_layers
from ..nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from .checkpoint import recorded_settings
from .settings import TrainingSettings, adapted_layers

DECIDED = ("fine_tune_type", "rank", "alpha", "use_rslora", "targets")
"""Settings that an existing adapter decides."""


def resumed_settings(
    settings: TrainingSettings, given: Collection[str], folder: Path
) -> TrainingSettings:
    """The settings with which the training in a folder is resumed.

    What an existing adapter decided at its beginning is taken from its last checkpoint.

    Args:
        given: names of the settings that the user gave, which are kept.

    Raises:
        InvalidInputError: the training began with another adapter than `settings` name.
        CheckpointError: the checkpoint is damaged.
    """
    recorded = recorded_settings(folder)
    source = recorded.get("resume_adapter_file")
    if settings.resume_adapter_file not in (None, source) and recorded:
        raise InvalidInputError(
            f"the training in {folder} began with {source or 'a new adapter'}: leave out "
            "--resume-adapter-file, or choose another --adapter-path and leave out --resume"
        )
    if source is None:
        return settings
    decided = {name: recorded[name] for name in DECIDED if name in recorded and name not in given}
    return replace(settings, resume_adapter_file=source, **decided)


def open_existing(
    settings: TrainingSettings,
    given: Mapping[str, Any],
    config: TransformerConfig,
    *,
    download: bool = True,
) -> tuple[TrainingSettings, Adapter]:
    """Opens the adapter that `settings` name, and completes them with what it decides.

    Args:
        given: the settings that the user gave, by name.

    Raises:
        InvalidInputError: it differs from what the user gave, or can't be trained.
        ModelNotFoundError: there is no such adapter.
        CheckpointError: it is damaged, or for another model.
    """
    source = settings.resume_adapter_file or ""
    if not source.strip():  # which would be the current folder
        raise InvalidInputError("--resume-adapter-file is empty: name a file, a folder or a hub id")
    network = CogVideoXTransformer3DModel(config)
    adapter = open_adapter(source, linear_layers(network), download=download)
    layers = adapter.load()
    own = _decided(source, layers, adapter.use_rslora)
    for name, value in own.items():
        if given.get(name, value) != value:
            raise _other(source, name, value, given[name])
    targets = _names(layers, config)
    wanted = given.get("targets", targets)
    if adapted_layers(config, wanted).keys() != layers.keys():
        raise _other(source, "target", " ".join(targets), " ".join(wanted))
    return replace(settings, **own, targets=targets), adapter


def _decided(source: str, layers: Mapping[str, Addition], use_rslora: bool) -> dict[str, Any]:
    """The settings that the layers of an adapter decide, but for their names.

    Raises:
        InvalidInputError: the layers can't be trained, or not together.
    """
    if outside := [layer for layer in layers if not layer.startswith("transformer_blocks.")]:
        raise InvalidInputError(
            f"{source} adapts {listed(sorted(outside))}: only layers of the blocks can be trained"
        )
    low_rank = [layer for layer in layers.values() if isinstance(layer, LowRank)]
    kinds = {isinstance(layer, DoRA) for layer in low_rank}
    if len(low_rank) < len(layers) or len(kinds) > 1:
        raise InvalidInputError(f"{source} isn't all LoRA or all DoRA: only these can be trained")
    ranks = {len(low.lora_A) for low in low_rank}
    scales = {low.scale for low in low_rank}
    if len(ranks) > 1 or len(scales) > 1:
        raise InvalidInputError(
            f"the layers of {source} differ in rank or scale (ranks {listed(sorted(ranks))}; "
            f"scales {listed(sorted(scales))}): training needs one of each"
        )
    (rank,), (scale,), (is_dora,) = ranks, scales, kinds
    alpha = scale * (rank**0.5 if use_rslora else rank)
    return {
        "fine_tune_type": "dora" if is_dora else "lora",
        "rank": rank,
        "alpha": float(f"{alpha:.12g}"),  # as it was before it was divided by a root
        "use_rslora": use_rslora,
    }


def existing_layers(adapter: Adapter, settings: TrainingSettings) -> dict[str, Addition]:
    """The layers of an adapter in float32, by path, for settings of `open_existing`."""
    layers = adapter.load()
    for layer in layers.values():
        layer.set_dtype(mx.float32)
        layer.scale = settings.scale
    return layers


def _names(layers: Collection[str], config: TransformerConfig) -> tuple[str, ...]:
    """The shortest ends of names that mean these layers and no others."""
    short = tuple(sorted({layer_in_block(layer) for layer in layers}))
    means = adapted_layers(config, short).keys()
    return short if means == set(layers) else tuple(sorted(layers))


def _other(source: str, name: str, own: Any, given: Any) -> InvalidInputError:
    option = "--" + name.replace("_", "-")
    return InvalidInputError(
        f"{source} has {name} {own}, and {option} is {given}: leave out {option}"
    )
