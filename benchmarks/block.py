"""Times the parts of one of the transformer's blocks at full size, beside the ceilings.

    python benchmarks/block.py 5b
    python benchmarks/block.py 1.5-5b --dtype float16

Each part is computed by itself, four times in a row, on random numbers, for a video with guidance
(a batch of two). The ceilings are those of large products, of attention and of a copy, measured
first. The second column is the time of a part at its ceiling: of its products, or of the bytes that
it has to read and write. The last lines are the sum and a whole block.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import mlx.core as mx
from cases import add_size, model_and_size

from mlx_cogvideo.machine.speed import measure_ceilings
from mlx_cogvideo.nn.attention import attention
from mlx_cogvideo.nn.eval_schedule import EvalSchedule
from mlx_cogvideo.nn.low_rank import permute_rows
from mlx_cogvideo.nn.modulation import gated_residual, norm_heads
from mlx_cogvideo.nn.positions import half_split
from mlx_cogvideo.nn.transformer import (
    CogVideoXTransformer3DModel,
    TransformerConfig,
    gelu_tanh,
)

REPEATS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_size(parser)
    add = parser.add_argument
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    args = parser.parse_args()

    dtype = getattr(mx, args.dtype)
    config, geometry = model_and_size(args)
    tokens = config.token_count(geometry.latent_shape)
    print(
        f"{args.variant}, 2 x {tokens} tokens, {args.dtype}, {mx.default_device()}, "
        f"MLX {mx.__version__}, {platform.platform()}"
    )
    ceilings = measure_ceilings(dtype)
    print(
        f"ceilings: products {ceilings.matmul / 1e12:.3g} TFLOP/s, attention "
        f"{ceilings.attention / 1e12:.3g}, copies {ceilings.bandwidth / 1e9:.4g} GB/s"
    )
    print(f"{'':28}{'ms':>9}{'at the ceiling':>16}")
    rates = {"product": ceilings.matmul, "scores": ceilings.attention, "bytes": ceilings.bandwidth}
    took = ideal = 0.0
    for name, compute, kind, amount in parts(config, geometry.latent_shape, dtype):
        seconds, least = measured(compute), amount / rates[kind]
        if name != "a block":
            took, ideal = took + seconds, ideal + least
        else:
            print(f"{'sum':28}{1000 * took:9.2f}{1000 * ideal:16.2f}")
            least = ideal
        print(f"{name:28}{1000 * seconds:9.2f}{1000 * least:16.2f}", flush=True)


Part = tuple[str, Callable[[], mx.array], str, float]
"""Name, function, what bounds it, and its number of operations or bytes."""


def parts(config: TransformerConfig, shape: tuple[int, ...], dtype: mx.Dtype) -> Iterator[Part]:
    """Yields the parts of a block in their order, and at last the whole block."""
    network = CogVideoXTransformer3DModel(replace(config, num_layers=1))
    network.set_dtype(dtype)
    latents = mx.random.normal((2, *shape[1:4], config.in_channels)).astype(dtype)
    text = mx.random.normal((2, config.max_text_seq_length, config.text_embed_dim)).astype(dtype)
    x, context = network.embed(latents, text, mx.array([500, 500]))
    block, heads = network.transformer_blocks[0], config.num_attention_heads
    attend, (into, _, out_of) = block.attn1, block.ff.net
    modulation = block.norm1.modulation(context.temb)
    modulated, gates = block.norm1(x, context.is_text, modulation), modulation.gates
    wide = into.proj(modulated)
    by_heads = modulated.reshape(*x.shape[:2], heads, -1)
    heads_first = by_heads.swapaxes(1, 2)
    mx.eval(block.parameters(), x, context, modulated, gates, wide)

    schedule = EvalSchedule()
    array, square = x.nbytes, 2 * x.size * config.dim
    yield (
        "modulated norm",
        lambda: block.norm1(x, context.is_text, block.norm1.modulation(context.temb), schedule),
        "bytes",
        2 * array,
    )
    permutation = half_split(heads, config.attention_head_dim)
    for name, linear in (("queries", attend.to_q), ("keys", attend.to_k)):
        yield (
            name,
            lambda linear=linear: permute_rows(linear, modulated, permutation),
            "product",
            square,
        )
    yield "values", lambda: attend.to_v(modulated), "product", square
    for name, norm in (("norm of queries", attend.norm_q), ("norm of keys", attend.norm_k)):
        compute = partial(
            norm_heads, by_heads, norm.weight, norm.bias, norm.eps, context.rotation, schedule
        )
        yield name, compute, "bytes", 2 * array
    scores = 4 * x.size * x.shape[1]
    yield "attention", lambda: attention(heads_first, heads_first, heads_first), "scores", scores
    yield "out of attention", lambda: attend.to_out[0](modulated), "product", square
    yield "gate", lambda: gated_residual(x, modulated, context.is_text, *gates), "bytes", 3 * array
    yield (
        "modulated norm",
        lambda: block.norm2(x, context.is_text, block.norm2.modulation(context.temb), schedule),
        "bytes",
        2 * array,
    )
    yield "into the wide layer", lambda: into.proj(modulated), "product", 4 * square
    yield "GELU", lambda: gelu_tanh(wide), "bytes", 8 * array
    yield "out of it", lambda: out_of(wide), "product", 4 * square
    yield "gate", lambda: gated_residual(x, modulated, context.is_text, *gates), "bytes", 3 * array
    yield "a block", lambda: schedule.flush(block(x, context, schedule)), "bytes", 0


def measured(compute: Callable[[], mx.array]) -> float:
    """Seconds for one computation, the best of three timings."""
    mx.eval(compute())
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        mx.eval([compute() for _ in range(REPEATS)])
        best = min(best, (time.perf_counter() - start) / REPEATS)
    return best


if __name__ == "__main__":
    main()
