"""The options of ``lora.py``."""

import argparse
from pathlib import Path

from ..checkpoints.components import DTYPES
from ..pipeline.sources import IMAGE_LATENT_SCALES
from ..training.settings import TARGETS
from ..video.clip import TIMEOUT
from .common import Parser, add_machine_options, at_least_one, not_negative, positive


def make_parser() -> Parser:
    parser = Parser(prog="lora.py", description="Fine-tune CogVideoX on clips, with LoRA, in MLX.")
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="options in TOML or JSON; these here go first")
    add("--data", type=Path, required=True, metavar="DIR", help="clips and their captions")
    add("--model", help="folder, hub id or short name, as in generate.py")
    add("--adapter-path", type=Path, default=Path("adapters"), help="default: adapters")
    add("--iters", type=at_least_one, default=1000, help="updates of the adapter (default: 1000)")
    add("--learning-rate", type=float, default=1e-4, help="default: 1e-4")
    add("--lr-schedule", choices=("constant", "cosine"), default="constant")
    add("--warmup", type=not_negative, default=50, metavar="STEPS", help="default: 50")
    add("--rank", type=at_least_one, default=64, help="default: 64")
    add("--alpha", type=float, help="scale of the adapter, times its rank (default: the rank)")
    add(
        "--target",
        nargs="+",
        default=TARGETS,
        metavar="LAYER",
        help=f"layers to adapt (default: {' '.join(TARGETS)}; ff.net.0.proj and ff.net.2 too)",
    )
    add("--batch-size", type=at_least_one, default=1, help="default: 1")
    add(
        "--grad-accumulation-steps",
        type=at_least_one,
        default=1,
        metavar="N",
        help="batches an update (default: 1)",
    )
    add("--caption-dropout", type=float, default=0.1, metavar="SHARE", help="default: 0.1")
    add(
        "--prior-prompts",
        type=Path,
        metavar="FILE",
        help="prompts, one a line, that are to give what they give now",
    )
    add("--prior-batch-size", type=int, default=1, metavar="N", help="a step (default: 1)")
    add(
        "--prior-weight", type=float, default=0.05, metavar="W", help="of theirs in the loss (0.05)"
    )
    add("--image-dropout", type=float, default=0.05, metavar="SHARE", help="default: 0.05")
    add(
        "--image-latent-scale",
        choices=IMAGE_LATENT_SCALES,
        default="official",
        help="of image-to-video models of version 1.5, as it will be used (default: official)",
    )
    add("--frames", type=int, help="8N+1 (default: the model's own)")
    add("--height", type=int, help="in pixels (default: the model's own)")
    add("--width", type=int, help="in pixels (default: the model's own)")
    add(
        "--bucket",
        type=_bucket,
        nargs="+",
        metavar="FxHxW",
        help="frames, height and width; of several, each clip is learned in what suits it best",
    )
    add("--crop", choices=("center", "random"), default="center", help="default: center")
    add(
        "--short",
        choices=("drop", "repeat"),
        default="drop",
        help="clips with too few frames are left out, or go on with their last one (default: drop)",
    )
    add("--timeout", type=positive, default=TIMEOUT, metavar="SECONDS", help="to read a clip (20)")
    add("--fps", type=positive, help="frames a second to learn (default: the model's own)")
    add(
        "--skip-frames",
        type=int,
        nargs="+",
        default=(0,),
        metavar="N",
        help="frames of each clip to leave out at its beginning and its end",
    )
    add("--seed", type=int, default=0)
    add("--save-every", type=at_least_one, default=250, metavar="STEPS", help="default: 250")
    add("--keep-checkpoints", type=at_least_one, default=3, metavar="N", help="default: 3")
    add("--val-every", type=not_negative, default=0, metavar="STEPS", help="default: never")
    add("--sample-every", type=not_negative, default=0, metavar="STEPS", help="default: never")
    add(
        "--sample-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="make a clip of this on the way, for image-to-video models TEXT@@IMAGE; may be given "
        "several times",
    )
    add("--sample-steps", type=int, default=25, metavar="STEPS", help="of a sample (default: 25)")
    add("--cache", type=Path, metavar="DIR", help="default: .mlx_cogvideo in --data")
    add("--dtype", choices=DTYPES, help="default: the model's own, float32 on the CPU")
    add("--resume", action="store_true", help="go on with an unfinished training")
    add_machine_options(add)
    add("--dry-run", action="store_true", help="say what would be learned and stop there")
    add("--quiet", "-q", action="store_true", help="say only what is wrong")
    return parser


def _bucket(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"must be FRAMESxHEIGHTxWIDTH, got {text}")
    return tuple(map(int, parts))
