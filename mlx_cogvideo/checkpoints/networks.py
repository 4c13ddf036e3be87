"""The three networks of a model folder, by the names of their folders."""

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn

from ..nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX
from ..nn.t5 import T5Config, T5EncoderModel
from ..nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

NETWORKS = {
    "transformer": (CogVideoXTransformer3DModel, TransformerConfig),
    "vae": (AutoencoderKLCogVideoX, AutoencoderConfig),
    "text_encoder": (T5EncoderModel, T5Config),
}
"""The class of each network and the class of its configuration."""


def make_network(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A network as its ``config.json`` describes it; memory is allocated on first use."""
    network, config_class = NETWORKS[name]
    return network(config_class.from_dict(config))
