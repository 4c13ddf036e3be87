"""Times one text-to-video run, ours stage by stage and that of diffusers as a whole.

    python benchmarks/generate.py --model demo --steps 20

Both run in one process, one after the other, in float32 on the CPU. On another device, or without
diffusers (the `test` extra), ours runs alone. Peak memory is what MLX allocated.
"""

import argparse
import platform
import time
from importlib.util import find_spec

import mlx.core as mx

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.pipeline.recording import Meter

PROMPT = "a red circle moves right on a white background"


def time_ours(model: str, steps: int) -> list[tuple[str, float, float]]:
    record = {"timings": {}, "peak_memory": {}}
    pipe = CogVideoXPipeline.from_pretrained(model)
    pipe(PROMPT, num_inference_steps=steps, seed=0, scheduler="ddim", on_progress=Meter(record))
    peaks = record["peak_memory"]
    return [(stage, seconds, peaks[stage] / 2**20) for stage, seconds in record["timings"].items()]


def time_diffusers(model: str, steps: int) -> float:
    import diffusers
    import torch

    folder = CogVideoXPipeline.from_pretrained(model).folder
    pipe = diffusers.CogVideoXPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    start = time.perf_counter()
    pipe(
        PROMPT,
        num_frames=pipe.transformer.config.sample_frames,
        num_inference_steps=steps,
        max_sequence_length=pipe.transformer.config.max_text_seq_length,
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--model", default="demo", help="folder, short name or hub id (default: demo)"
    )
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    args = parser.parse_args()

    device = mx.default_device()
    print(
        f"{args.model}, {args.steps} steps, {device}, MLX {mx.__version__}, {platform.platform()}"
    )
    rows = time_ours(args.model, args.steps)
    print(f"{'stage':12}{'seconds':>10}{'peak MiB':>10}")
    for stage, seconds, peak in rows:
        print(f"{stage:12}{seconds:10.1f}{peak:10.0f}")
    print(f"{'ours':12}{sum(seconds for _, seconds, _ in rows):10.1f}")
    if device.type == mx.DeviceType.cpu and find_spec("diffusers"):
        print(f"{'diffusers':12}{time_diffusers(args.model, args.steps):10.1f}")


if __name__ == "__main__":
    main()
