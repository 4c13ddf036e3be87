"""The norm kernels for CUDA: their numbers, and where they are used."""

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from support import relative_error

from mlx_cogvideo.nn import cuda
from mlx_cogvideo.nn.eval_schedule import EvalSchedule
from mlx_cogvideo.nn.modulation import norm_heads
from mlx_cogvideo.nn.positions import rope_tables
from mlx_cogvideo.nn.transformer import BlockContext, CogVideoXBlock, TransformerConfig

TOKENS, TEXT, EPS = 110, 5, 1e-5  # with a batch of two and three heads, not a whole number of warps
IS_TEXT = (mx.arange(TOKENS) < TEXT)[:, None]


def rotation(rotated: bool):
    return rope_tables(TEXT, (3, 5, 7), 64, None) if rotated else None


def modulated_norm(x, weight, bias, eps, is_text, vectors):
    """The same as the kernel of this name, in MLX's operations."""
    shift, scale, _, text_shift, text_scale, _ = mx.split(vectors, 6, axis=-1)
    normed = mx.fast.layer_norm(x, weight, bias, eps)
    scale = mx.where(is_text, text_scale, scale)
    return normed * (1 + scale) + mx.where(is_text, text_shift, shift)


@pytest.mark.skipif(not cuda.available(), reason="these kernels are for CUDA")
@pytest.mark.parametrize(
    ("dtype", "limit"), [("float32", 1e-6), ("float16", 5e-4), ("bfloat16", 4e-3)]
)
def test_the_kernels_give_what_mlx_gives_in_float32_rounded_once(dtype, limit):
    def compare(kernel, function, x, *shapes, rest):
        arrays = [3 * mx.random.normal(x) + 1, *map(mx.random.normal, shapes)]
        arrays = [a.astype(getattr(mx, dtype)) for a in arrays]
        found = kernel(*arrays[:3], EPS, *rest, *arrays[3:])
        wide = [a.astype(mx.float32) for a in arrays]
        expected = function(*wide[:3], EPS, *rest, *wide[3:])
        assert found.dtype == arrays[0].dtype
        assert relative_error(found.astype(mx.float32), expected) < limit

    for rotated in (False, True):
        shapes = (2, TOKENS, 3, 64), (64,), (64,)
        compare(cuda.norm_heads, norm_heads, *shapes, rest=[rotation(rotated)])
    for dim in (192, 1920):  # less and more than a warp takes at once
        shapes = (2, TOKENS, dim), (dim,), (dim,), (2, 1, 6 * dim)
        compare(cuda.modulated_norm, modulated_norm, *shapes, rest=[IS_TEXT])


@pytest.mark.parametrize("rotated", [False, True])
def test_they_are_used_where_no_gradient_is_taken(monkeypatch, rotated):
    mx.random.seed(0)
    block = CogVideoXBlock(TransformerConfig(num_attention_heads=3, time_embed_dim=32))
    block.update(tree_map(lambda p: mx.random.normal(p.shape) / 8, block.parameters()))
    x = 3 * mx.random.normal((2, TOKENS, 192)) + 1
    context = BlockContext(mx.random.normal((2, 32)), IS_TEXT, rotation(rotated))
    expected, used = block(x, context), []
    monkeypatch.setattr(cuda, "available", lambda: True)
    for function in (norm_heads, modulated_norm):
        monkeypatch.setattr(
            cuda,
            function.__name__,
            lambda *given, f=function: used.append(f.__name__) or f(*given),
        )
    assert relative_error(block(x, context), expected) == 0 and not used
    assert relative_error(block(x, context, EvalSchedule()), expected) < 1e-6
    assert used == ["modulated_norm", "norm_heads", "norm_heads", "modulated_norm"]
