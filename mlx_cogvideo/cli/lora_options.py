"""The options of ``lora.py``."""

import argparse
from pathlib import Path
from typing import Any

from ..checkpoints.components import DTYPES
from ..training.settings import TrainingSettings
from ..video.clip import TIMEOUT
from .common import Parser, add_machine_options, at_least_one, not_negative, positive
from .options import add_settings, given_settings

GROUPS = {
    "data": "what to learn from",
    "adapter": "adapter",
    "training": "training",
    "prior": "prior preservation",
    "output": "saving, validation and samples",
    "machine": "this run",
}

EXAMPLES = """examples:
  python lora.py --data clips --model 2b --dry-run
  python lora.py --data clips --model mlx_model --frames 17 --height 256 --width 384 --iters 2000
  python lora.py --data clips --model 2b --sample-every 250 --sample-prompt "a red kite" --resume
"""


def make_parser() -> Parser:
    parser = Parser(
        prog="lora.py",
        description="Fine-tunes CogVideoX on clips with LoRA, in MLX.",
        epilog=EXAMPLES,
    )
    groups = add_settings(parser, TrainingSettings, GROUPS)
    _add_data_options(groups["data"].add_argument)
    _add_output_options(groups["output"].add_argument)
    _add_run_options(groups["machine"].add_argument)
    return parser


def read_settings(args: argparse.Namespace) -> TrainingSettings:
    """The settings of a parsed command line.

    Raises:
        InvalidInputError: a number is out of its range.
    """
    given: dict[str, Any] = {"prior_batch_size": 1, **given_settings(args, TrainingSettings)}
    if args.prior_prompts is None:
        given["prior_batch_size"] = 0
    return TrainingSettings(**given)


def _add_data_options(add) -> None:
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="Folder of clips and their captions. Required.",
    )
    add(
        "--prior-prompts",
        type=Path,
        metavar="FILE",
        help="Text file of prompts, one a line, whose videos should not change (prior "
        "preservation). Default: none.",
    )
    add(
        "--model",
        help="Folder, hub id or short name of the model, as in generate.py. Default: the folder "
        "mlx_model if it exists, else the bundled demo.",
    )
    add("--frames", type=int, metavar="N", help="Frames of a clip, 8N+1. Default: the model's own.")
    for side in ("height", "width"):
        add(
            f"--{side}",
            type=int,
            metavar="PIXELS",
            help=f"{side.capitalize()} of a clip in pixels. Default: the model's own.",
        )
    add(
        "--bucket",
        type=_bucket,
        nargs="+",
        metavar="FxHxW",
        help="Frames, height and width, in place of the three options above. If there are several, "
        "each clip is learned in the one that fits it best.",
    )
    add(
        "--fps",
        type=positive,
        metavar="FPS",
        help="Frames per second at which clips are read. Default: the model's own.",
    )
    add(
        "--skip-frames",
        type=int,
        nargs="+",
        default=(0,),
        metavar="N",
        help="Frames to leave out at the beginning and at the end of each clip; one number counts "
        "for both. Default: 0.",
    )
    add(
        "--crop",
        choices=("center", "random"),
        default="center",
        help="Place at which a clip is cropped: its center, or a random place, which stays the "
        "same in every run. Default: center.",
    )
    add(
        "--short",
        choices=("drop", "repeat"),
        default="drop",
        help="What to do with a clip that is too short: drop leaves it out, repeat repeats its "
        "last frame. Default: drop.",
    )
    add(
        "--timeout",
        type=positive,
        default=TIMEOUT,
        metavar="SECONDS",
        help="Seconds that opening a clip or reading from it may take; a slower clip is left out. "
        f"Default: {TIMEOUT:g}.",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="Folder that keeps the encoded clips and captions. Default: .mlx_cogvideo in --data.",
    )


def _add_output_options(add) -> None:
    add(
        "--adapter-path",
        type=Path,
        default=Path("adapters"),
        metavar="DIR",
        help="Folder that gets the adapter, its checkpoints and the log. Default: adapters.",
    )
    add(
        "--save-every",
        type=at_least_one,
        default=250,
        metavar="UPDATES",
        help="Updates between two checkpoints. Default: 250.",
    )
    add(
        "--keep-checkpoints",
        type=at_least_one,
        default=3,
        metavar="N",
        help="Number of checkpoints to keep; older ones are removed. Default: 3.",
    )
    add(
        "--val-every",
        type=not_negative,
        default=0,
        metavar="UPDATES",
        help="Updates between two validations, which compute the loss at fixed noise and "
        "timesteps. Default: 0, never.",
    )
    add(
        "--sample-every",
        type=not_negative,
        default=0,
        metavar="UPDATES",
        help="Updates after which videos of --sample-prompt are made. Default: 0, never.",
    )
    add(
        "--sample-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="Prompt of a video that is made during the training; TEXT@@IMAGE for image-to-video "
        "models. May be given several times.",
    )
    add(
        "--sample-steps",
        type=int,
        default=25,
        metavar="STEPS",
        help="Denoising steps of such a video. Default: 25.",
    )


def _add_run_options(add) -> None:
    add("--resume", action="store_true", help="Continue the training in --adapter-path.")
    add(
        "--dtype",
        choices=DTYPES,
        help="Type of weights and activations. Default: the model's own, and float32 on the CPU.",
    )
    add_machine_options(add)
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="Read options from a TOML or JSON file; command-line options override it.",
    )
    add(
        "--dry-run",
        action="store_true",
        help="List what would be learned of each clip and the memory that training needs, and "
        "stop.",
    )
    add("--quiet", "-q", action="store_true", help="Print only warnings and errors.")


def _bucket(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"must be FRAMESxHEIGHTxWIDTH, got {text}")
    return tuple(map(int, parts))
