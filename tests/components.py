"""A tiny transformer as a component on disk."""

from pathlib import Path

import mlx.core as mx

from mlx_cogvideo.checkpoints import save_component
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "time_embed_dim": 8,
    "text_embed_dim": 8,
}
FILE = "diffusion_pytorch_model.safetensors"


def make_model() -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(TransformerConfig.from_dict(CONFIG))


def write_component(folder: Path) -> Path:
    """Writes the transformer, with seeded random weights, and returns its folder."""
    mx.random.seed(0)
    save_component(folder / "transformer", make_model(), CONFIG)
    return folder / "transformer"
