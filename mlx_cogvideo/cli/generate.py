"""``generate.py``: a prompt in, an mp4 out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..checkpoints import DEMO_PATH, default_model
from ..guidance import GUIDANCE_SCHEDULES
from ..pipeline import CogVideoXPipeline
from ..schedulers import SCHEDULERS
from ..variants import ALIASES
from ..video import check_output_path, write_video
from .common import Parser, StageBars, run, say

DTYPES = {name: getattr(mx, name) for name in ("float16", "bfloat16", "float32")}


def main(arguments: Sequence[str] | None = None) -> int:
    return run(generate, arguments)


def generate(arguments: Sequence[str] | None) -> None:
    args = make_parser().parse_args(arguments)
    check_output_path(args.output, args.overwrite)
    if args.no_compile:
        mx.disable_compile()
    model = args.model or default_model()
    if model == DEMO_PATH:
        say(
            "using the bundled demo, which knows only moving shapes (best with --guidance 2); "
            "--model 2b downloads the smallest real model (14 GB)"
        )
    pipe = CogVideoXPipeline.from_pretrained(model, DTYPES.get(args.dtype))
    bars = StageBars()
    try:
        frames = pipe(
            args.prompt,
            args.negative_prompt,
            num_frames=args.frames,
            height=args.height,
            width=args.width,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            dynamic_cfg=args.guidance_schedule,
            scheduler=args.scheduler,
            seed=args.seed,
            on_progress=bars,
        )
    finally:
        bars.close()
    write_video(args.output, frames, args.fps or pipe.fps, overwrite=args.overwrite)
    print(args.output)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="generate.py", description="Make a video of a prompt with CogVideoX, in MLX."
    )
    add = parser.add_argument
    add("--prompt", required=True, help="what to show; long English descriptions work best")
    add("--negative-prompt", "--negative_prompt", default="", help="what to steer away from")
    add(
        "--model",
        help=f"folder, hub id, demo or {', '.join(ALIASES)} "
        "(default: the folder mlx_model if there is one, else the bundled demo)",
    )
    add("--frames", "--num_frames", type=int, help="8N+1 (default: the model's own)")
    add("--height", type=int, help="in pixels (default: the model's own)")
    add("--width", type=int, help="in pixels (default: the model's own)")
    add("--fps", type=positive, help="of the file (default: the model's own)")
    add("--steps", "--num_inference_steps", type=int, default=50, help="default: 50")
    add("--guidance", "--guidance_scale", type=float, default=6.0, help="default: 6.0")
    add(
        "--guidance-schedule",
        choices=GUIDANCE_SCHEDULES,
        help="guidance over the steps (default: what suits the model)",
    )
    add("--scheduler", choices=SCHEDULERS, help="sampler (default: what suits the model)")
    add("--seed", type=int, help="repeats a video (default: another one each time)")
    add("--dtype", choices=DTYPES, help="default: the model's own, float32 on the CPU")
    add("--no-compile", action="store_true", help="don't fuse operations with mx.compile")
    add("--output", "-o", type=Path, default=Path("video.mp4"), help="default: video.mp4")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    return parser


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value
