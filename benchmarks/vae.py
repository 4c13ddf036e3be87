"""Measures time and memory of the full-size VAE, ours in each mode and that of diffusers.

    python benchmarks/vae.py --frames 49 --height 480 --width 720
    python benchmarks/vae.py --clip clip.mp4 --model demo

All cases use the same weights (random ones in the official shapes, or those of `--model`) and the
same noise or clip. Each case runs in its own process: once to compile and warm up, then once for
the numbers. Memory is the device's peak (what MLX or PyTorch allocated, weights and input included)
plus the growth of the process's own memory during the run. Differences are from our whole frames in
float32 (with --float32), else from the first case. diffusers needs the `test` extra.
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from cases import run_apart

CASES = ["ours none", "ours exact", "ours tiled", "diffusers untiled", "diffusers tiled"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--model", help="folder, short name or hub id (default: random weights)")
    add("--frames", type=int, default=49, help="frames of the clip (default: 49)")
    add("--height", type=int, default=480, help="in pixels (default: 480)")
    add("--width", type=int, default=720, help="in pixels (default: 720)")
    add("--clip", type=Path, help="encode this file, and decode the result")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--only", nargs="+", default=["decode", "encode"], choices=["decode", "encode"])
    add(
        "--cases",
        nargs="+",
        default=CASES,
        metavar="CASE",
        help=f"cases to run, of: {', '.join(CASES)}",
    )
    add("--float32", action="store_true", help="compare with our whole frames in float32")
    add("--case", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args)))
        return

    import mlx.core as mx

    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        prepare(args)
        print(
            f"{args.frames}x{args.height}x{args.width}, {args.dtype}, {mx.default_device()}, "
            f"MLX {mx.__version__}, {platform.platform()}"
        )
        print(f"{'':28}{'seconds':>9}{'peak GiB':>10}{'of that host':>14}{'difference':>12}")
        # A clip is encoded first, so that its own latents are decoded.
        for direction in sorted(args.only, reverse=args.clip is not None):
            compare(args, direction)


def prepare(args: argparse.Namespace) -> None:
    """Writes the weights and the inputs that all cases share."""
    import mlx.core as mx
    from random_checkpoint import write_component

    from mlx_cogvideo.checkpoints import resolve_model
    from mlx_cogvideo.video import read_frames

    vae = args.folder / "vae"
    if args.model:
        vae.symlink_to(resolve_model(args.model).resolve() / "vae")
    else:
        write_component(vae, "vae", {"scaling_factor": 0.7}, mx.bfloat16)
    shape = (1, (args.frames + 3) // 4, args.height // 8, args.width // 8, 16)
    np.save(args.folder / "latents.npy", np.array(mx.random.normal(shape, key=mx.random.key(1))))
    if args.clip:
        clip = np.stack(list(islice(read_frames(args.clip), args.frames)))
        clip = clip[:, : args.height, : args.width]
        if clip.shape[:3] != (args.frames, args.height, args.width):
            sys.exit(
                f"{args.clip} has only {clip.shape[0]} frames of {clip.shape[2]}x{clip.shape[1]}"
            )
    else:
        shape = (args.frames, args.height // 8, args.width // 8, 3)
        blocks = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        clip = blocks.repeat(8, axis=1).repeat(8, axis=2)
    np.save(args.folder / "clip.npy", clip[None])


def compare(args: argparse.Namespace, direction: str) -> None:
    cases = [(case, args.dtype) for case in args.cases]
    if args.float32:
        cases.insert(0, ("ours none", "float32"))
    expected = None
    for case, dtype in cases:
        command = [sys.executable, __file__, "--case", f"{direction} {case}", "--dtype", dtype]
        command += ["--folder", str(args.folder)]
        title = f"{direction} {case}" + (f" {dtype}" if dtype != args.dtype else "")
        done = run_apart(f"{title:28}", command, capture_output=True)
        if done is None:
            continue
        numbers = json.loads(done.stdout.splitlines()[-1])
        result = np.load(args.folder / "result.npy")
        line = f"{title:28}{numbers['seconds']:9.2f}{numbers['peak']:10.2f}{numbers['host']:14.2f}"
        if expected is None:
            expected = result
        elif result.shape != expected.shape:
            line += f"  has {result.shape[2]}x{result.shape[1]} pixels"
        else:
            # Frame by frame, because a small machine can't hold a large clip twice.
            largest = max(np.abs(a - b).max() for a, b in zip(expected, result, strict=True))
            line += f"{largest:12.4f}"
        if direction == "decode" and args.clip and result.shape == expected.shape:
            clip = np.load(args.folder / "clip.npy")[0] / 127.5 - 1
            line += f"  PSNR {10 * np.log10(4 / np.square(result - clip).mean()):.1f} dB"
        print(line, flush=True)
    if direction == "encode" and args.clip and expected is not None:
        np.save(args.folder / "latents.npy", expected[None])


def run_case(args: argparse.Namespace) -> dict[str, float]:
    direction, side, mode = args.case.split()
    load = {"ours": load_ours, "diffusers": load_diffusers}[side]
    code, peak, start = load(args, direction, mode)
    code()
    start()
    before = resident()
    began = time.perf_counter()
    result = code()
    seconds = time.perf_counter() - began
    host = max(resident(peak=True) - before, 0) / 2**30
    numbers = {"seconds": seconds, "host": host, "peak": peak() / 2**30 + host}
    np.save(args.folder / "result.npy", result())
    return numbers


def load_ours(args: argparse.Namespace, direction: str, mode: str):
    import mlx.core as mx

    from mlx_cogvideo.checkpoints import load_component, read_config
    from mlx_cogvideo.nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX

    config = AutoencoderConfig.from_dict(read_config(args.folder / "vae" / "config.json"))
    dtype = getattr(mx, args.dtype)
    vae = load_component(AutoencoderKLCogVideoX(config), args.folder / "vae", dtype)
    if direction == "decode":
        latents = mx.array(np.load(args.folder / "latents.npy")).astype(dtype)
    else:
        clip = mx.array(np.load(args.folder / "clip.npy"))
    mx.eval(vae.parameters())

    def code():
        if direction == "decode":
            result = vae.decode(latents, tiling=mode)
        else:
            result = vae.encode(clip, tiling=mode).mean
        mx.eval(result)
        return lambda: np.array(result[0].astype(mx.float32))

    def start():
        mx.clear_cache()
        mx.reset_peak_memory()

    mx.set_cache_limit(2**30)
    return code, mx.get_peak_memory, start


def load_diffusers(args: argparse.Namespace, direction: str, mode: str):
    import torch
    from diffusers import AutoencoderKLCogVideoX

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    vae = AutoencoderKLCogVideoX.from_pretrained(args.folder / "vae", torch_dtype=dtype).to(device)
    if mode == "tiled":
        vae.enable_tiling()
    if direction == "decode":
        latents = torch.tensor(np.load(args.folder / "latents.npy")).permute(0, 4, 1, 2, 3)
        latents = latents.to(device, dtype)
    else:
        clip = torch.tensor(np.load(args.folder / "clip.npy"), device=device)
        clip = (clip.to(dtype) / 127.5 - 1).permute(0, 4, 1, 2, 3)

    @torch.no_grad()
    def code():
        if direction == "decode":
            result = vae.decode(latents).sample
        else:
            result = vae.encode(clip).latent_dist.mean
        if device == "cuda":
            torch.cuda.synchronize()
        return lambda: result[0].permute(1, 2, 3, 0).float().cpu().numpy()

    def start():
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    if device == "cuda":
        return code, torch.cuda.max_memory_allocated, start
    unit = 1 if sys.platform == "darwin" else 1024
    return code, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, start


def resident(peak: bool = False) -> int:
    """Bytes of memory that this process has, or its peak since the last call without `peak`.

    0 if the device's memory is the process's own, which is counted already.
    """
    status = Path("/proc/self/status")
    if not is_cuda() or not status.exists():
        return 0
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def is_cuda() -> bool:
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.gpu and not mx.metal.is_available()


if __name__ == "__main__":
    main()
