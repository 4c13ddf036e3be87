"""``generate.py``: prompts in, videos out."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints import BUNDLED
from ..checkpoints.components import DTYPES
from ..checkpoints.variants import ALIASES
from ..device import manage_memory
from ..diffusion.guidance import GUIDANCE_SCHEDULES, UNCONDS
from ..diffusion.schedulers import SCHEDULERS
from ..diffusion.step_cache import CACHES
from ..errors import InvalidInputError
from ..nn.autoencoder import TILINGS
from ..pipeline.sources import IMAGE_LATENT_SCALES
from ..runs.jobs import make_plan
from ..video import FITS, read_record
from .announce import announce
from .awake import awake
from .common import (
    FAILED,
    Parser,
    WithScale,
    add_machine_options,
    at_least_one,
    be_quiet,
    positive,
    run,
    share,
    wired_bytes,
)
from .session import Session


def main(arguments: Sequence[str] | None = None) -> int:
    return run(generate, arguments)


def generate(arguments: Sequence[str] | None) -> int | None:
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.quiet:
        be_quiet()
    if args.show is not None:
        show(args.show)
        return None
    if args.prompt is args.prompt_file is args.replay is None and not args.resume:
        parser.error("give --prompt, --prompt-file, --replay or --resume")
    wired = wired_bytes(args)
    plan = make_plan(args)
    with plan.locks:
        announce(plan)
        if args.dry_run:
            return FAILED if plan.failed else None
        manage_memory(plan.pipe.memory_limit, wired)
        with awake(args.caffeinate):
            return Session(plan, args).run()


def show(file: Path) -> None:
    """Prints how an output was made."""
    record = read_record(file)
    if record is None:
        raise InvalidInputError(f"{file} holds no record of how it was made")
    print(json.dumps(record, indent=2, ensure_ascii=False))


def make_parser() -> Parser:
    parser = Parser(
        prog="generate.py", description="Make videos of prompts with CogVideoX, in MLX."
    )
    what = parser.add_argument_group("what to make").add_mutually_exclusive_group().add_argument
    what("--prompt", help="what to show; long English descriptions work best")
    what(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="one prompt a line; lines that begin with # are comments",
    )
    what("--replay", type=Path, metavar="FILE", help="make again what FILE, a result, shows")
    what("--show", type=Path, metavar="FILE", help="only print how FILE, a result, was made")

    add = parser.add_argument_group("what to start from").add_argument
    add("--image", metavar="FILE", help="the picture it begins with, for image-to-video models")
    add("--video", metavar="FILE", help="a clip, or a folder of frames, to make another one of")
    add(
        "--strength",
        type=float,
        help="how much of --video is made anew, above 0 and up to 1 (default: 0.8)",
    )
    add(
        "--image-fit",
        choices=FITS,
        help="how --image or --video comes to the size: covering it and cropped, set on black, or "
        "distorted (default: crop)",
    )
    add(
        "--image-latent-scale",
        choices=IMAGE_LATENT_SCALES,
        help="of the picture of version 1.5, about which the tools disagree (default: official)",
    )

    add = parser.add_argument_group("how").add_argument
    add("--negative-prompt", "--negative_prompt", help="what to steer away from")
    add(
        "--model",
        help=f"folder, hub id, {', '.join(BUNDLED)}, or {', '.join(ALIASES)} "
        "(default: the folder mlx_model if there is one, else the bundled demo)",
    )
    add(
        "--lora",
        nargs="+",
        action=WithScale,
        metavar=("ADAPTER", "SCALE"),
        help="a LoRA adapter: a file, a folder, a hub id or a file there, and its weight "
        "(default: 1); may be given several times",
    )
    add("--frames", "--num_frames", type=int, help="8N+1 (default: the model's own)")
    add(
        "--extend",
        type=int,
        metavar="N",
        help="go on after the last frame, N times as long again less the overlap",
    )
    add(
        "--overlap",
        type=int,
        metavar="FRAMES",
        help="of --extend, 8N+1 (default: 9; models of images go on from 1)",
    )
    add("--height", type=int, help="in pixels (default: the model's own)")
    add("--width", type=int, help="in pixels (default: the model's own)")
    add("--fps", type=positive, help="of the file (default: the model's own)")
    add("--steps", "--num_inference_steps", type=int, help="default: 50")
    add("--guidance", "--guidance_scale", type=float, help="default: 6.0")
    add(
        "--guidance-schedule",
        choices=GUIDANCE_SCHEDULES,
        help="guidance over the steps (default: what suits the model)",
    )
    add(
        "--guidance-range",
        type=int,
        nargs=2,
        metavar=("FIRST", "END"),
        help="steps with guidance, from 0; the others skip the unconditional pass (default: all)",
    )
    add(
        "--uncond",
        choices=UNCONDS,
        help="what is unconditional: the negative prompt, empty unless told, or embeddings of "
        "zeros as in the original tools (default: empty)",
    )
    add(
        "--cache",
        choices=(*CACHES, "none"),
        help="skip the blocks in steps where little changes: faster, and a little different "
        "(default: compute all)",
    )
    add("--cache-threshold", type=float, help="how much may change (default: what is usual)")
    add(
        "--sequential-guidance",
        action=argparse.BooleanOptionalAction,
        help="compute the two passes of guidance one after the other: less memory (default: where "
        "there is none for both)",
    )
    add("--scheduler", choices=SCHEDULERS, help="sampler (default: what suits the model)")
    add(
        "--seed",
        type=int,
        nargs="+",
        help="repeats a video; several make one of each (default: another one each time)",
    )
    add(
        "--tiling",
        choices=("auto", *TILINGS),
        help="how the VAE computes a frame: none (whole frames), seamless (in strips of rows: the "
        "same video in less memory), or tiled (in tiles: another video in the least memory) "
        "(default: auto, by the memory of this machine)",
    )
    add(
        "--source-tiling",
        choices=("seamless", "tiled"),
        help="the same for an image, a video, or frames to go on from (default: as --tiling)",
    )
    add(
        "--tile-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of a tile, in pixels (default: half the model's own size)",
    )
    add(
        "--tile-overlap",
        type=share,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="share of a tile that the next one covers, too (default: about 1/6 and 1/5)",
    )
    add("--dtype", choices=DTYPES, help="default: the model's own, float32 on the CPU")
    add(
        "--memory-limit",
        type=positive,
        metavar="GIB",
        help="limit the estimated memory of each stage to GIB: guidance and the VAE use modes that "
        "need less, and what can't be done is refused before anything is loaded (default: what "
        "this machine has)",
    )
    add("--no-compile", action="store_true", help="don't fuse operations with mx.compile")

    add = parser.add_argument_group("where to").add_argument
    add(
        "--output",
        "-o",
        help=".mp4, .gif, .safetensors (latents), or a folder for PNG frames; may contain {index}, "
        "{prompt} and {seed} (default: video.mp4, of many video-{index}-{seed}.mp4)",
    )
    add("--overwrite", action="store_true", help="replace what is there")

    add = parser.add_argument_group("long runs").add_argument
    add(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="go on with an unfinished run: with the same arguments, with --output, or with the "
        "file in which it is saved",
    )
    add(
        "--save-every",
        type=at_least_one,
        metavar="STEPS",
        help="save the run after so many steps (default: about once a minute)",
    )
    add(
        "--preview-every",
        type=at_least_one,
        metavar="STEPS",
        help="draw a small, rough preview beside the output every so many steps, as "
        "OUTPUT.preview.gif, until the video is there",
    )
    add_machine_options(add)
    add("--dry-run", action="store_true", help="say what would happen and stop there")
    add("--quiet", "-q", action="store_true", help="say only what is wrong")
    add("--json", action="store_true", help="print one line of JSON instead of the outputs' names")
    return parser
