"""Times the denoising of whole runs with all steps, with caches, and with presets.

    python benchmarks/presets.py 5b
    python benchmarks/presets.py 1.5-5b --frames 41 --cases exact balanced fast

All cases have the same random weights with the official shapes, the same noise and text, the
sampler and the guidance of the official model. The text encoder and the VAE, whose times don't
depend on the case, aren't run. Beside the seconds of a run, the table has the median times of the
steps that are computed and of those that are skipped. What TeaCache and first-block skip depends on
the weights: with random ones it isn't what they would skip with the official ones.
"""

import argparse
import platform
import time
from statistics import median

import mlx.core as mx
import mlx.nn as nn
from cases import add_size, model_and_size
from mlx.utils import tree_map

from mlx_cogvideo.checkpoints.official import official_config
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.diffusion.computed_steps import (
    PRESETS,
    choose_computed_steps,
    steps_to_compute,
)
from mlx_cogvideo.diffusion.conditioning import Conditioning
from mlx_cogvideo.diffusion.denoising import Sampling, denoising_steps
from mlx_cogvideo.diffusion.extrapolation import EXTRAPOLATED
from mlx_cogvideo.diffusion.schedulers import Scheduler, make_scheduler
from mlx_cogvideo.diffusion.step_cache import IDENTITY, POLYNOMIALS, resolve_cache_threshold
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

CASES = ["exact", "teacache", "first-block", "guidance", "balanced", "fast"]
GUIDANCE = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_size(parser)
    add = parser.add_argument
    add("--steps", type=int, default=50, help="denoising steps (default: 50)")
    add("--cases", nargs="+", default=CASES, choices=CASES, help="cases (default: all)")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    args = parser.parse_args()
    args.dtype = getattr(mx, args.dtype)
    config, geometry = model_and_size(args)
    print(
        f"{args.variant}, {str(args.dtype).split('.')[-1]}, {geometry.num_frames} frames of "
        f"{geometry.width}x{geometry.height}, {args.steps} steps, {mx.default_device()}, "
        f"MLX {mx.__version__}, {mx.device_info().get('device_name', '')}, {platform.platform()}"
    )
    print(f"{'':12}{'computed':>10}{'seconds':>9}{'times faster':>14}{'a step':>10}{'skipped':>11}")
    compare(random_model(config, args.dtype), config, geometry.latent_shape, args)


def random_model(config: TransformerConfig, dtype: mx.Dtype) -> CogVideoXTransformer3DModel:
    """A transformer with small random weights."""
    model = CogVideoXTransformer3DModel(config)
    weights = model.parameters()
    model.update(tree_map(lambda w: 0.02 * mx.random.normal(w.shape).astype(dtype), weights))
    mx.eval(model.parameters())
    return model


def compare(
    model: nn.Module, config: TransformerConfig, shape: tuple[int, ...], args: argparse.Namespace
) -> None:
    noise = mx.random.normal(shape, key=mx.random.key(1))
    embeds = mx.random.normal((2, config.max_text_seq_length, config.text_embed_dim))
    inputs = embeds.astype(args.dtype), noise, Conditioning(image_latents=picture(config, shape))
    variant = next((each for each in VARIANTS if each.alias == args.variant), None)
    table = {} if variant is None else official_config(variant, "scheduler")
    first = None
    for case in ["warm-up", *args.cases]:
        scheduler = make_scheduler("dpm", table, mx.random.key(0))
        scheduler.set_timesteps(2 if case == "warm-up" else args.steps)
        sampling = sampling_of(case, scheduler, args)
        seconds, before = [], time.perf_counter()
        for state in denoising_steps(model, scheduler, sampling, *inputs):
            seconds.append(time.perf_counter() - before)
            before, skipped = time.perf_counter(), state.skipped
        if case != "warm-up":
            first = first or sum(seconds)
            report(case, seconds, skipped, first)


def picture(config: TransformerConfig, shape: tuple[int, ...]) -> mx.array | None:
    """The latents that an image-to-video model has beside the noisy ones."""
    more = config.in_channels - shape[-1]
    return mx.random.normal((*shape[:-1], more)) if more else None


def sampling_of(case: str, scheduler: Scheduler, args: argparse.Namespace) -> Sampling:
    """How a case samples."""
    steps = len(scheduler.timesteps)
    cache = None if case in ("exact", "warm-up") else "latents" if case in PRESETS else case
    asked = steps_to_compute(PRESETS[case], steps) if case in PRESETS else None
    is_extrapolated = cache in EXTRAPOLATED
    return Sampling(
        steps=steps,
        guidance_scale=GUIDANCE,
        guidance_schedule="wave",
        guidance_range=None,
        batch_parts=1,
        cache=cache,
        cache_threshold=resolve_cache_threshold(cache, None),
        computed_steps=choose_computed_steps(cache, asked, scheduler) if is_extrapolated else None,
        polynomial=POLYNOMIALS.get(args.variant, IDENTITY),
        dtype=args.dtype,
    )


def report(case: str, seconds: list[float], skipped: tuple[int, ...], first: float) -> None:
    """Prints the row of a case; `first` are the seconds of the first one."""
    computed = [each for i, each in enumerate(seconds) if i not in skipped]
    others = [each for i, each in enumerate(seconds) if i in skipped]
    row = f"{case:12}{len(computed):4} of {len(seconds):<3}{sum(seconds):7.1f} s"
    row += f"{first / sum(seconds):14.2f}{1e3 * median(computed):7.0f} ms"
    print(row + (f"{1e3 * median(others):8.1f} ms" if others else ""), flush=True)


if __name__ == "__main__":
    main()
