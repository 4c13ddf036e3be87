"""Starts a training from an existing adapter, which decides its rank, its alpha and its layers."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import Adapter, open_adapter
from ..checkpoints.adapters import layer_in_block
from ..checkpoints.components import listed
from ..errors import InvalidInputError
from ..nn.low_rank import LowRank
from ..nn.quantization import linear_layers
from ..nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from .checkpoint import recorded_settings
from .settings import TrainingSettings, adapted_layers

DECIDED = ("rank", "alpha", "targets")
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
    decided = {name: recorded[name] for name in DECIDED if name not in given}
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
    ranks = {len(low.lora_A) for low in layers.values()}
    scales = {low.scale for low in layers.values()}
    if len(ranks) > 1 or len(scales) > 1:
        raise InvalidInputError(
            f"the layers of {source} differ in rank or scale (ranks {listed(sorted(ranks))}; "
            f"alpha / rank {listed(sorted(scales))}): training needs one of each"
        )
    if outside := [layer for layer in layers if not layer.startswith("transformer_blocks.")]:
        raise InvalidInputError(
            f"{source} adapts {listed(sorted(outside))}: only layers of the blocks can be trained"
        )
    (rank,), (scale,) = ranks, scales
    for name, own in (("rank", rank), ("alpha", scale * rank)):
        if given.get(name, own) != own:
            raise _other(source, name, own, given[name])
    targets = _names(layers, config)
    wanted = given.get("targets", targets)
    if adapted_layers(config, wanted).keys() != layers.keys():
        raise _other(source, "target", " ".join(targets), " ".join(wanted))
    return replace(settings, rank=rank, alpha=scale * rank, targets=targets), adapter


def existing_layers(adapter: Adapter, settings: TrainingSettings) -> dict[str, LowRank]:
    """The layers of an adapter in float32, by path, for settings of `open_existing`."""
    return {
        path: LowRank(low.lora_A.astype(mx.float32), low.lora_B.astype(mx.float32), settings.scale)
        for path, low in adapter.load().items()
    }


def _names(layers: Collection[str], config: TransformerConfig) -> tuple[str, ...]:
    """The shortest ends of names that mean these layers and no others."""
    short = tuple(sorted({layer_in_block(layer) for layer in layers}))
    means = adapted_layers(config, short).keys()
    return short if means == set(layers) else tuple(sorted(layers))


def _other(source: str, name: str, own: Any, given: Any) -> InvalidInputError:
    return InvalidInputError(
        f"{source} has {name} {own}, and --{name} is {given}: leave out --{name}"
    )
