"""Times a denoising step at full size, ours and that of diffusers.

    python benchmarks/step.py 5b
    python benchmarks/step.py 1.5-5b --cases "ours bfloat16" diffusers --frames 81

A step passes noise and text through the transformer, with and without the prompt: as a batch of
two, or with `in turn` one after the other. `cached` checks in each step whether it can be skipped,
and never skips one. All cases use the same random weights with the official names and shapes. The
converter makes 8 and 4 bits of them. Each case runs in its own process, which reads its weights,
takes two steps, and times the next ones; the best time is reported. Memory is the peak of what MLX
or PyTorch allocated in these steps, weights included, and what it held at rest before them. The
difference is the largest difference from the velocities of the first case, divided by the largest
velocity. diffusers needs the `test` extra.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cases import add_cases, add_size, model_and_size, run_apart

CASES = [
    "ours bfloat16",
    "ours bfloat16 in turn",
    "ours bfloat16 cached",
    "ours 8-bit",
    "ours 4-bit",
    "diffusers",
    "diffusers compiled",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_size(parser)
    add_cases(parser, CASES, steps=3)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args)))
        return
    with tempfile.TemporaryDirectory() as name:
        args.folder = (args.folder or Path(name)) / args.variant
        compare(args)


def compare(args: argparse.Namespace) -> None:
    import mlx.core as mx

    shape = prepare(args)
    print(
        f"{args.variant}, latents {'x'.join(map(str, shape[1:4]))}, {mx.default_device()}, "
        f"MLX {mx.__version__}, {platform.platform()}"
    )
    print(f"{'':24}{'seconds':>9}{'peak GiB':>10}{'at rest':>9}{'difference':>12}")
    expected = None
    for case in args.cases:
        command = [sys.executable, __file__, args.variant, "--case", case]
        command += ["--folder", str(args.folder), "--steps", str(args.steps)]
        done = run_apart(f"{case:24}", command, capture_output=True, timeout=args.timeout)
        if done is None:
            continue
        numbers = json.loads(done.stdout.splitlines()[-1])
        velocity = np.load(args.folder / "velocity.npy")
        expected = velocity if expected is None else expected
        difference = np.abs(velocity - expected).max() / np.abs(expected).max()
        print(
            f"{case:24}{numbers['seconds']:9.3f}{numbers['peak'] / 2**30:10.2f}"
            f"{numbers['rest'] / 2**30:9.2f}{difference:12.4f}",
            flush=True,
        )


def prepare(args: argparse.Namespace) -> tuple[int, ...]:
    """Writes the inputs, and the checkpoint if it is missing; returns the latents' shape."""
    import mlx.core as mx
    from official import TRANSFORMERS
    from random_checkpoint import write_component, write_json

    from mlx_cogvideo.checkpoints import DEMO_PATH, SHARED_KEY

    variant = args.variant.replace("-", "_")
    config, geometry = model_and_size(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "transformer").exists():
        if variant == "demo":
            (args.folder / "transformer").symlink_to(DEMO_PATH / "transformer")
        else:
            official = TRANSFORMERS[variant]
            write_component(args.folder / "transformer", variant, official, mx.bfloat16)
        index = {"_class_name": "CogVideoXPipeline", SHARED_KEY: str(DEMO_PATH)}
        write_json(args.folder / "model_index.json", index)
    _, frames, height, width, _ = geometry.latent_shape
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((1, frames, height, width, config.in_channels), np.float32)
    text_shape = 2, config.max_text_seq_length, config.text_embed_dim
    text = rng.standard_normal(text_shape, np.float32)
    np.savez(args.folder / "inputs.npz", latents=latents, text=text)
    return geometry.latent_shape


def run_case(args: argparse.Namespace) -> dict[str, float]:
    side, *how = args.case.split()
    step, velocity, memory = {"ours": load_ours, "diffusers": load_diffusers}[side](args, how)
    rest = memory(False)
    for _ in range(2):
        step()
    memory(True)
    best = float("inf")
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    numbers = {"seconds": best, "rest": rest, "peak": memory(True)}
    np.save(args.folder / "velocity.npy", velocity())
    return numbers


def load_ours(args: argparse.Namespace, how: list[str]):
    import mlx.core as mx

    from mlx_cogvideo.diffusion.denoising import velocities
    from mlx_cogvideo.diffusion.step_cache import StepCache

    network = our_network(args.folder, how[0])
    inputs = np.load(args.folder / "inputs.npz")
    latents = mx.repeat(mx.array(inputs["latents"]).astype(mx.bfloat16), 2, axis=0)
    text = mx.array(inputs["text"]).astype(mx.bfloat16)
    passes, made = 2 if "turn" in how else 1, []
    cache = StepCache(None, threshold=0, last=10**9)

    def step():
        times = mx.array([500, 500])
        if "cached" in how:
            made[:] = [cache.velocity(network, latents, text, times, 0)]
        else:
            made[:] = [velocities(network, latents, text, times, passes)]
        mx.eval(made)

    def memory(peak: bool) -> int:
        allocated = mx.get_peak_memory() if peak else mx.get_active_memory()
        mx.reset_peak_memory()
        return allocated

    mx.set_cache_limit(2**31)
    return step, lambda: np.array(made[0].astype(mx.float32)), memory


def our_network(folder: Path, how: str):
    """Our transformer in the dtype `how`, or quantized if it is, for example, ``"4-bit"``."""
    import mlx.core as mx

    from mlx_cogvideo.checkpoints import load_component, read_config
    from mlx_cogvideo.checkpoints.networks import make_network

    dtype = mx.bfloat16
    if how.endswith("-bit"):
        folder = packed(folder, int(how[0]))
    else:
        dtype = getattr(mx, how)
    folder = folder / "transformer"
    network = make_network("transformer", read_config(folder / "config.json"))
    network = load_component(network, folder, dtype)
    mx.eval(network.parameters())
    return network


def their_network(folder: Path):
    """diffusers' transformer in bfloat16, frozen."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    network = CogVideoXTransformer3DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.bfloat16
    )
    return network.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)


def packed(folder: Path, bits: int) -> Path:
    """The folder of a quantized copy, which is made if it is missing."""
    from mlx_cogvideo.conversion import convert, plan_conversion
    from mlx_cogvideo.nn.quantization import Quantization

    copy = folder / f"{bits}-bit"
    if not copy.exists():
        plan = plan_conversion(
            "random", folder, quantization=Quantization(bits, 64), components=("transformer",)
        )
        convert(plan, copy)
    return copy


def load_diffusers(args: argparse.Namespace, how: list[str]):
    import torch

    network = their_network(args.folder)
    device, config = network.device.type, network.config
    inputs = np.load(args.folder / "inputs.npz")
    latents = torch.tensor(inputs["latents"]).to(device, torch.bfloat16)
    latents = latents.permute(0, 1, 4, 2, 3).repeat(2, 1, 1, 1, 1)
    text = torch.tensor(inputs["text"]).to(device, torch.bfloat16)
    frames, _, height, width = latents.shape[1:]
    rotation = rotation_tables(network, frames, height, width)
    if "compiled" in how:
        for block in network.transformer_blocks:
            block.compile()
    ofs = torch.tensor([2.0], device=device, dtype=torch.bfloat16) if config.ofs_embed_dim else None
    made = []

    @torch.no_grad()
    def step():
        time_step = torch.tensor([500, 500], device=device)
        made[:] = network(
            hidden_states=latents,
            encoder_hidden_states=text,
            timestep=time_step,
            ofs=ofs,
            image_rotary_emb=rotation,
            return_dict=False,
        )
        if device == "cuda":
            torch.cuda.synchronize()

    def memory(peak: bool) -> int:
        if device != "cuda":
            return 0
        read = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        allocated = read()
        torch.cuda.reset_peak_memory_stats()
        return allocated

    return step, lambda: made[0].permute(0, 1, 3, 4, 2).float().cpu().numpy(), memory


def rotation_tables(network, frames: int, height: int, width: int):
    """Rotation tables from diffusers' own pipeline for latents of a size; None for 2B."""
    from diffusers import CogVideoXPipeline

    if not network.config.use_rotary_positional_embeddings:
        return None
    pipe = SimpleNamespace(transformer=network, vae_scale_factor_spatial=8)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipe, 8 * height, 8 * width, frames, network.device
    )


if __name__ == "__main__":
    main()
