"""Contents of the official checkpoints: ``data/*.json`` lists every tensor of their files."""

import json
from pathlib import Path

DATA = Path(__file__).parent / "data"

_LARGE = {
    "num_layers": 42,
    "num_attention_heads": 48,
    "use_rotary_positional_embeddings": True,
}
_V1_5 = {**_LARGE, "patch_size_t": 2, "patch_bias": False, "sample_frames": 81}

TRANSFORMERS = {
    "2b": {},
    "5b": _LARGE,
    "5b_i2v": {**_LARGE, "in_channels": 32, "use_learned_positional_embeddings": True},
    "1.5_5b": {**_V1_5, "sample_height": 300, "sample_width": 300},
    "1.5_5b_i2v": {
        **_V1_5,
        "sample_height": 96,
        "sample_width": 170,
        "in_channels": 32,
        "ofs_embed_dim": 512,
    },
}
"""The entries of each transformer's config.json that differ from diffusers' defaults."""


def official(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the names and stored shapes of a transformer, ``vae`` or ``t5_v1_1_xxl_encoder``."""
    tensors = json.loads((DATA / f"{name}.json").read_text())
    return {tensor: tuple(shape) for tensor, shape in tensors.items()}
