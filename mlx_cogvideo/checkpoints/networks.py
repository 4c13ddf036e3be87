"""The three networks of a model folder, by the names of their folders."""

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn

from ..errors import CheckpointError
from ..nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX
from ..nn.t5 import T5Config, T5EncoderModel
from ..nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

NETWORKS = {
    "transformer": (CogVideoXTransformer3DModel, TransformerConfig),
    "vae": (AutoencoderKLCogVideoX, AutoencoderConfig),
    "text_encoder": (T5EncoderModel, T5Config),
}
"""The class of each network and the class of its configuration."""


def network_config(name: str, contents: Mapping[str, Any]) -> Any:
    """The configuration of a network from its ``config.json``.

    Raises:
        CheckpointError: a field can't be what it is, or changes what isn't computed here.
    """
    try:
        return NETWORKS[name][1].from_dict(contents)
    except ValueError as error:
        raise CheckpointError(f"{name}/config.json: {error}") from None


def make_network(name: str, contents: Mapping[str, Any]) -> nn.Module:
    """A network as its ``config.json`` describes it; memory is allocated on first use.

    Raises:
        CheckpointError: as `network_config`.
    """
    return NETWORKS[name][0](network_config(name, contents))
