"""Gradients block by block, by functions that are compiled as on a GPU."""

import re

import mlx.core as mx
import pytest
from support import OFFICIAL_SCHEDULER_CONFIG, needs_compiler, relative_error

from mlx_cogvideo.diffusion.schedulers import make_scheduler
from mlx_cogvideo.nn import attention_backward, fusion
from mlx_cogvideo.nn.eval_schedule import LAZY
from mlx_cogvideo.nn.low_rank import add_adapter
from mlx_cogvideo.nn.quantization import Quantization, QuantizedLinear, quantize_layers
from mlx_cogvideo.nn.transformer import (
    BlockContext,
    CogVideoXTransformer3DModel,
    TransformerConfig,
)
from mlx_cogvideo.training import blockwise
from mlx_cogvideo.training.loss import Batch, TransformerLoss
from mlx_cogvideo.training.settings import TrainingSettings, new_adapter

CONFIG = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=2,
    time_embed_dim=32,
    text_embed_dim=32,
    use_rotary_positional_embeddings=True,
)
BITS = {
    "transformer_blocks.0.attn1.to_q": 8,
    "transformer_blocks.0.ff.net.2": 4,
    "transformer_blocks.1.attn1.to_q": 4,
}


def network(bits: dict[str, int], targets: tuple[str, ...]) -> CogVideoXTransformer3DModel:
    """With random weights, some of them packed, and an adapter that adds something."""
    mx.random.seed(0)
    model = CogVideoXTransformer3DModel(CONFIG)
    weights = {path: layer.weight for path, layer in model.named_modules() if path in bits}
    quantize_layers(model, {path: Quantization(n, 32) for path, n in bits.items()})
    for path, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            made = mx.quantize(weights[path], **layer.quantization.arguments())
            layer.weight, layer.scales, layer.biases = made
            layer.bias = mx.zeros(layer.bias.shape)
    model.freeze()
    layers = new_adapter(model, TrainingSettings(rank=4, targets=targets))
    for layer in layers.values():
        layer.lora_B = 0.1 * mx.random.normal(layer.lora_B.shape)
    add_adapter(model, layers)
    return model


@needs_compiler
@pytest.mark.parametrize("targets", [("to_q",), ("ff.net.2", "norm1.linear")], ids=str)
@pytest.mark.parametrize("bits", [{}, BITS], ids=["16 bits", "packed"])
def test_compiled_gradients_of_some_layers_are_the_others(monkeypatch, bits, targets):
    shape = 1, 2, 8, 8, 16
    latents, noise, text = map(mx.random.normal, (shape, shape, (1, 7, 32)))
    batch = Batch(latents, text, noise, mx.array([300]))
    scheduler = make_scheduler("ddim", OFFICIAL_SCHEDULER_CONFIG, mx.random.key(0))

    def gradients():
        objective = TransformerLoss(network(bits, targets), scheduler, mx.float32)
        return objective.loss_and_gradients(batch)[1]

    expected = gradients()
    monkeypatch.setattr(blockwise, "fused", mx.compile)
    found = gradients()
    assert found.keys() == expected.keys() and len(found) == 4 * len(targets)
    for path, gradient in found.items():
        assert relative_error(gradient, expected[path]) < 1e-5, path


class Traced(Exception):
    """Ends a test once it has what it looks for."""


def test_parts_of_a_compiled_block_can_be_evaluated_one_after_another(monkeypatch, tmp_path):
    """Additions that were fused over all parts would need the gradients of all parts at once."""
    model = CogVideoXTransformer3DModel(CONFIG)
    x, temb = mx.random.normal((1, 39, 64)), mx.random.normal((1, 32))
    monkeypatch.setattr(blockwise, "WIDE_ELEMENTS", x.size)  # four parts
    monkeypatch.setattr(attention_backward, "has_own_backward", lambda dtype: True)
    monkeypatch.setattr(fusion, "on_gpu", lambda: True)

    def look(arrays, elements, schedule):
        assert elements.count(blockwise.PUSH_ELEMENTS) == 4 * len(blockwise.PIECES)
        mx.export_to_dot(str(tmp_path / "graph.dot"), *arrays)
        raise Traced

    monkeypatch.setattr(blockwise, "replay", look)
    backward = blockwise.BlockBackward(model.transformer_blocks[0], with_temb=True)
    with pytest.raises(Traced):
        backward.gradients(x, BlockContext(temb, mx.arange(39)[:, None] < 7, None), x, LAZY)
    names = re.findall(r'label ="(Compiled\w+)"', (tmp_path / "graph.dot").read_text())
    assert names and not [name for name in names if "AddAddAdd" in name]
