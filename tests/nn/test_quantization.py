"""Quantized linear layers: which layers they replace, and the two methods of multiplication."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from support import relative_error

from mlx_cogvideo.checkpoints import DEMO_PATH, read_config
from mlx_cogvideo.checkpoints.networks import NETWORKS
from mlx_cogvideo.nn import quantization
from mlx_cogvideo.nn.low_rank import DoRA, Kronecker, LoRALinear, LowRank, permute_rows
from mlx_cogvideo.nn.quantization import (
    KINDS,
    MODES,
    Quantization,
    QuantizedLinear,
    layer_kind,
    linear_layers,
    packings,
    quantize_layers,
)

ALL = [
    Quantization(b, g, mode) for mode, (bits, sizes) in MODES.items() for b in bits for g in sizes
]


def make_layer(how: Quantization, bias: bool = True) -> QuantizedLinear:
    layer = QuantizedLinear(128, 96, bias, how)
    weight = mx.random.normal((96, 128), scale=0.1, key=mx.random.key(0))
    parts = mx.quantize(weight, **how.arguments())
    for name, part in zip(("weight", "scales", "biases"), parts, strict=False):
        assert layer[name].shape == part.shape
        assert layer[name].dtype == part.dtype
        layer[name] = part
    if bias:
        layer.bias = mx.random.normal((96,), key=mx.random.key(1))
    return layer


@pytest.fixture(params=[0, 10**9], ids=["unpacked", "packed"])
def way(request, monkeypatch):
    """Makes every product use one method, whatever its number of rows."""
    rows = dict.fromkeys(quantization.PACKED_ROWS, request.param)
    monkeypatch.setattr(quantization, "PACKED_ROWS", rows)


@pytest.mark.parametrize("how", ALL, ids=lambda how: f"{how.mode}-{how.bits}-{how.group_size}")
def test_both_ways_are_the_product_with_the_unpacked_weight(how, way):
    layer = make_layer(how)
    x = mx.random.normal((2, 5, 128), key=mx.random.key(2))
    weight = mx.dequantize(layer.weight, layer.scales, layer.get("biases"), **how.arguments())
    expected = x @ weight.T.astype(mx.float32) + layer.bias
    assert relative_error(layer(x), expected) < 2e-6


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_the_result_has_the_dtype_of_the_input(dtype, way):
    layer = make_layer(Quantization(4, 64), bias=False)
    layer.apply(lambda a: a.astype(dtype) if a.dtype == mx.float32 else a)
    assert layer(mx.ones((3, 128), dtype)).dtype == dtype
    # As in T5's wo, whose input is float32 where the weights are float16.
    assert layer(mx.ones((3, 128), mx.float32)).dtype == mx.float32


def test_it_works_compiled(way):
    layer = make_layer(Quantization(4, 64))
    x = mx.random.normal((7, 128))
    assert relative_error(mx.compile(lambda x: layer(x))(x), layer(x)) < 1e-6


def test_gradients_flow_to_the_input_and_to_nothing_else(way):
    layer = make_layer(Quantization(8, 32))
    x = mx.random.normal((7, 128))
    gradient = mx.grad(lambda x: mx.square(layer(x)).sum())(x)
    weight = layer.unpacked(mx.float32)
    expected = 2 * layer(x) @ weight
    assert relative_error(gradient, expected) < 1e-5
    layer.unfreeze()
    assert tree_flatten(layer.trainable_parameters()) == []


def test_few_rows_stay_packed_and_many_are_unpacked(monkeypatch):
    monkeypatch.setattr(quantization, "PACKED_ROWS", dict.fromkeys(quantization.PACKED_ROWS, 4))
    layer, unpacked = make_layer(Quantization(4, 64)), []
    unpack = mx.dequantize
    monkeypatch.setattr(
        mx, "dequantize", lambda *arrays, **how: unpacked.append(1) or unpack(*arrays, **how)
    )
    layer(mx.ones((4, 128)))
    layer(mx.ones((2, 2, 128)))
    assert unpacked == []
    layer(mx.ones((5, 128)))
    layer(mx.ones((2, 3, 128)))
    assert unpacked == [1, 1]


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("adapter", [None, "LoRA", "DoRA", "LoKr"])
def test_outputs_are_permuted_on_request(monkeypatch, rows, adapter):
    monkeypatch.setattr(quantization, "PACKED_ROWS", dict.fromkeys(quantization.PACKED_ROWS, 4))
    permutation, x = mx.array([5, 0, 63, 2]), mx.random.normal((rows, 128))
    plain = nn.Linear(128, 96)
    halves = mx.random.normal((4, 128)), mx.random.normal((96, 4))
    addition = {
        "LoRA": LowRank(*halves, 0.5),
        "DoRA": DoRA(*halves, mx.random.uniform(0.5, 2, (96,)), 0.5),
        "LoKr": Kronecker([mx.random.normal((4, 8))], [mx.random.normal((24, 16))], 0.5),
    }.get(adapter)
    for layer in (plain, nn.Linear(128, 96, bias=False), make_layer(Quantization(4, 64))):
        if addition is not None:
            layer = LoRALinear(layer)
            layer.adapters.append(addition)
        assert (
            relative_error(permute_rows(layer, x, permutation), layer(x)[..., permutation]) < 1e-6
        )


@pytest.mark.parametrize("how", [Quantization(4, 64), Quantization(4, 32, "mxfp4")], ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_gradients_pass_a_packed_layer(how, ordered):
    layer, permutation = make_layer(how), mx.array([5, 0, 63, 2]) if ordered else None
    x, cotangent = mx.random.normal((40, 128)), mx.random.normal((40, 4 if ordered else 96))
    _, (found,) = mx.vjp(lambda x: [layer(x, permutation)], [x], [cotangent])
    weight = layer.unpacked(mx.float32)
    expected = cotangent @ (weight if permutation is None else weight[permutation])
    assert relative_error(found, expected) < 1e-6


def test_an_unpacked_weight_lives_for_one_layer():
    layers = [QuantizedLinear(1024, 1024, False, Quantization(4, 64)) for _ in range(24)]
    mx.eval([layer.parameters() for layer in layers])
    x = mx.random.normal((quantization.PACKED_ROWS[mx.default_device().type] + 8, 1024))
    mx.eval(x)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for layer in layers:
        x = layer(x)
    mx.eval(x)
    # 4 MiB each; the sum would be 96.
    assert mx.get_peak_memory() - before < 20 * 2**20


def demo_network(name: str) -> nn.Module:
    network, config = NETWORKS[name]
    return network(config.from_dict(read_config(DEMO_PATH / name / "config.json")))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_linear_layer_is_of_a_kind_or_named_here(name):
    kept = {
        "transformer": {
            "patch_embed.text_proj",
            "time_embedding.linear_1",
            "time_embedding.linear_2",
            "proj_out",
        },
        "text_encoder": set(),
        "vae": set(),
    }
    paths = linear_layers(demo_network(name))
    assert {path for path in paths if layer_kind(path) is None} == kept[name]
    if name == "transformer":
        assert {layer_kind(path) for path in paths} - {None} == {
            kind for kind in KINDS if not kind.startswith("T5")
        }


def bits(recipe: str, path: str, asked: Quantization = Quantization(4, 64)) -> int:  # noqa: B008
    paths = [path, *(f"transformer_blocks.{i}.attn1.to_k" for i in range(42))]
    return packings(paths, asked, recipe)[path].bits


@pytest.mark.parametrize(
    ("path", "standard", "uniform", "mixed"),
    [
        ("transformer_blocks.20.attn1.to_q", 4, 4, 4),
        ("transformer_blocks.20.attn1.to_v", 4, 4, 8),
        ("transformer_blocks.20.ff.net.0.proj", 4, 4, 4),
        ("transformer_blocks.20.ff.net.2", 4, 4, 8),
        ("transformer_blocks.4.attn1.to_q", 4, 4, 8),
        ("transformer_blocks.5.attn1.to_q", 4, 4, 4),
        ("transformer_blocks.37.attn1.to_q", 4, 4, 8),
        ("transformer_blocks.20.norm1.linear", 8, 4, 8),
        ("norm_out.linear", 8, 4, 8),
        ("encoder.block.20.layer.1.DenseReluDense.wo", 8, 4, 8),
        ("encoder.block.20.layer.1.DenseReluDense.wi_0", 4, 4, 4),
    ],
)
def test_a_recipe_says_how_many_bits_a_layer_has(path, standard, uniform, mixed):
    assert [bits(r, path) for r in ("standard", "uniform", "mixed")] == [standard, uniform, mixed]


def test_sensitive_layers_of_other_modes_have_eight_affine_bits():
    path, asked = "transformer_blocks.1.norm1.linear", Quantization(4, 16, "nvfp4")
    assert packings([path], asked, "standard") == {path: Quantization(8, 32)}
    assert packings([path], asked, "uniform") == {path: asked}


def test_a_layer_that_groups_do_not_divide_is_refused():
    network = demo_network("transformer")
    with pytest.raises(ValueError, match="192 inputs"):
        quantize_layers(network, {"transformer_blocks.0.attn1.to_q": Quantization(4, 128)})
