"""Random LoRA adapters for the demo."""

import mlx.core as mx

from mlx_cogvideo.checkpoints import DEMO_PATH, read_config, save_adapter
from mlx_cogvideo.nn.low_rank import LowRank
from mlx_cogvideo.nn.quantization import linear_layers
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

RANK, ALPHA = 4, 8


def layers() -> dict[str, tuple[int, int]]:
    """Returns the ``(outputs, inputs)`` of each linear layer of the demo's transformer."""
    config = TransformerConfig.from_dict(read_config(DEMO_PATH / "transformer" / "config.json"))
    return linear_layers(CogVideoXTransformer3DModel(config))


def make_adapter(folder, seed=0, targets=("attn1.to_q", "attn1.to_out.0", "ff.net.2")):
    """Writes a random adapter for the demo, large enough to change its videos."""
    folder.mkdir()
    keys = iter(mx.random.split(mx.random.key(seed), 2 * len(layers())))
    additions = {
        path: LowRank(
            0.1 * mx.random.normal((RANK, inputs), key=next(keys)),
            0.1 * mx.random.normal((outputs, RANK), key=next(keys)),
            ALPHA / RANK,
        )
        for path, (outputs, inputs) in layers().items()
        if path.endswith(targets)
    }
    save_adapter(folder, additions, rank=RANK, alpha=ALPHA, base_model="demo")
    return folder
