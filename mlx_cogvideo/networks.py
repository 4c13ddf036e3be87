"""The three networks of a model folder, by the names of their folders."""

from .nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX
from .nn.t5 import T5Config, T5EncoderModel
from .nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

NETWORKS = {
    "transformer": (CogVideoXTransformer3DModel, TransformerConfig),
    "vae": (AutoencoderKLCogVideoX, AutoencoderConfig),
    "text_encoder": (T5EncoderModel, T5Config),
}
"""Each network's class and that of its configuration."""
