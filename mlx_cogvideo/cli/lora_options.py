"""The options of ``mlx-cogvideo lora``."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..checkpoints.components import DTYPES
from ..checkpoints.model_configurations import ModelConfigurations
from ..errors import InvalidInputError
from ..pipeline.fields import settings_of
from ..runs.settings import RunSettings
from ..training.clip_windows import PLACES
from ..training.settings import TrainingSettings
from ..video.clip import TIMEOUT
from ..video.writer import FASTEST, SLOWEST
from .common import (
    BASE,
    Bits,
    WithScale,
    add_run_options,
    at_least_one,
    not_negative,
    positive,
    with_help,
)
from .json_events import add_events_option
from .options import add_settings, given_settings, named, path
from .parser import Parser
from .reports import Services, services
from .training_data import HELP as DATA_HELP
from .training_data import add_data_options, check_data

SAMPLE_STEPS = 25

GROUPS = {
    "data": "what to learn from",
    "adapter": "adapter",
    "training": "training",
    "prior": "prior preservation",
    "output": "saving, validation and samples",
    "machine": "this run",
}

HELP = {
    **DATA_HELP,
    "--prior-prompts": "Text file of prompts, one a line, whose videos should not change (prior "
    "preservation). Default: none.",
    "--model": "Folder, hub id or short name of the model, as to make a video. Default: the folder "
    "mlx_model if it exists, else the bundled demo.",
    "--base": f"{BASE} Default: none.",
    "--lora": "LoRA adapter that the model has before the training, a file, a folder, a hub id or "
    "a file there, and its weight. It isn't trained, and videos need it, too. May be given several "
    "times. Default: none.",
    "--frames": "Frames of a clip, 8N+1. Default: the model's own.",
    "--height": "Height of a clip in pixels. Default: the model's own.",
    "--width": "Width of a clip in pixels. Default: the model's own.",
    "--bucket": "Frames, height and width, in place of the three options above. If there are "
    "several, each clip is learned in the one that fits it best.",
    "--fps": "Frames per second at which clips are read. Default: the model's own.",
    "--skip-frames": "Frames to leave out at the beginning and at the end of each clip; one number "
    "counts for both. Default: 0.",
    "--crop": "Place at which a clip is cropped: its center, or a random place, which stays the "
    "same in every run. Default: center.",
    "--short": "What to do with a clip that is too short: drop leaves it out, repeat repeats its "
    "last frame. Default: drop.",
    "--windows": "Windows to learn of a clip that is longer than --frames, and no more than are "
    "needed to cover it. Default: 1, its beginning.",
    "--window-places": "Where the windows of a clip begin: spread evenly from its beginning to its "
    "end, or at random places, which stay the same in every run. Default: spread.",
    "--timeout": "Seconds that opening a clip or reading from it may take; a slower clip is left "
    f"out. Default: {TIMEOUT:g}.",
    "--cache": "Folder that keeps the encoded clips and captions. Default: .mlx_cogvideo in "
    "the folder of the clips, or of the first --data.",
    "--adapter-path": "Folder that gets the adapter, its checkpoints and the log. Default: "
    "adapters.",
    "--save-every": "Updates between two checkpoints. Default: 250.",
    "--keep-checkpoints": "Number of checkpoints to keep, beside the best one if clips are held "
    "out; older ones are removed. Default: 3 of an adapter, 1 of a whole model.",
    "--sample-every": "Updates after which videos of --sample-prompt are made. Default: 0, never.",
    "--sample-prompt": "Prompt of a video that is made during the training; TEXT@@IMAGE for "
    "image-to-video models. May be given several times.",
    "--upload-repo": "Upload the finished adapter or model, with its card, to a repository of the "
    "hub, such as me/my-adapter. Default: none.",
    "--trigger-word": "Word in the captions that stands for what is learned; the card names it. "
    "Default: none.",
    "--sample-steps": f"Denoising steps of such a video. Default: {SAMPLE_STEPS}.",
    "--report-to": "Also report the training to wandb or tensorboard, or to both with a comma "
    "between them. tensorboard writes to --adapter-path. Default: none.",
    "--project-name": "Project of Weights & Biases that gets the run. Default: mlx_cogvideo.",
    "--resume": "Continue the training in --adapter-path.",
    "--dtype": "Type of weights and activations. Default: the model's own, and float32 on the CPU.",
    "-q": f"{settings_of(RunSettings)['quantize'].help} The adapter isn't quantized. Default: as "
    "they are stored.",
    "--dry-run": "List what would be learned of each clip and the memory that training needs, and "
    "stop.",
    "--show-clips": "Write the first N clips as they are learned to samples/clips in "
    "--adapter-path, and stop: on the left as they are read, on the right as the VAE gives them "
    "back.",
}

EXAMPLES = """examples:
  %(prog)s --data clips --model 2b --dry-run
  %(prog)s --data clips --model mlx_model --frames 17 --height 256 --width 384 --iters 2000
  %(prog)s --data clips --model 2b --sample-every 250 --sample-prompt "a red kite" --resume
"""


def make_parser() -> Parser:
    description = "Fine-tunes CogVideoX on clips with LoRA, in MLX."
    parser = Parser("lora", lone="--data", description=description, epilog=EXAMPLES)
    groups = add_settings(parser, TrainingSettings, GROUPS)

    add = with_help(groups["data"], HELP)
    add_data_options(add)
    add("--prior-prompts", type=path, metavar="FILE")
    add("--model", type=named)
    add("--base", type=named, metavar="MODEL")
    add("--lora", nargs="+", action=WithScale, default=[], metavar=("ADAPTER", "WEIGHT"))
    add("--frames", type=int, metavar="N")
    add("--height", type=int, metavar="PIXELS")
    add("--width", type=int, metavar="PIXELS")
    add("--bucket", type=_bucket, nargs="+", metavar="FxHxW")
    add("--fps", type=_frame_rate, metavar="FPS")
    add("--skip-frames", type=int, nargs="+", default=(0,), metavar="N")
    add("--crop", choices=("center", "random"), default="center")
    add("--short", choices=("drop", "repeat"), default="drop")
    add("--windows", type=at_least_one, default=1, metavar="N")
    add("--window-places", choices=PLACES, default=PLACES[0])
    add("--timeout", type=positive, default=TIMEOUT, metavar="SECONDS")
    add("--cache", type=path, metavar="DIR")

    add = with_help(groups["output"], HELP)
    add("--adapter-path", type=path, default=Path("adapters"), metavar="DIR")
    add("--save-every", type=at_least_one, default=250, metavar="UPDATES")
    add("--keep-checkpoints", type=at_least_one, metavar="N")
    add("--val-every", type=not_negative, metavar="UPDATES")
    add("--sample-every", type=not_negative, default=0, metavar="UPDATES")
    add("--sample-prompt", action="append", default=[], metavar="TEXT")
    add("--sample-steps", type=int, metavar="STEPS")
    add("--report-to", type=services, nargs="+", action=Services, default=(), metavar="SERVICE")
    add("--project-name", type=named, metavar="NAME")
    add("--trigger-word", type=named, metavar="WORD")
    add("--upload-repo", type=named, metavar="REPO")

    add = with_help(groups["machine"], HELP)
    add("--resume", action="store_true")
    add("--dtype", choices=DTYPES)
    add("-q", "--quantize", action=Bits, metavar="BITS")
    add_run_options(groups["machine"].add_argument)
    add_events_option(groups["machine"].add_argument)
    add("--dry-run", action="store_true")
    add("--show-clips", type=at_least_one, metavar="N")
    return parser


def read_settings(args: argparse.Namespace) -> TrainingSettings:
    """The settings of a parsed command line.

    Raises:
        InvalidInputError: a number is out of its range.
    """
    given = given_settings(args, TrainingSettings)
    prior_batch_size = given.get("prior_batch_size", 1) if args.prior_prompts else 0
    return TrainingSettings(**given | {"prior_batch_size": prior_batch_size})


def _frame_rate(text: str) -> float:
    value = positive(text)
    if not SLOWEST <= value <= FASTEST:
        raise argparse.ArgumentTypeError(f"must be from {SLOWEST:g} to {FASTEST:g}, got {text}")
    return value


OF_ADAPTERS = ("rank", "alpha", "use_rslora", "targets", "resume_adapter_file")
OF_ALL_WEIGHTS = ("train_layers", "master_weights")
"""Settings that mean something in one kind of training only."""


def check_needs(args: argparse.Namespace) -> None:
    """Raises InvalidInputError where an option has no effect, because it needs another one."""
    _check_kind(args)
    check_data(args)
    if args.project_name and "wandb" not in args.report_to:
        raise InvalidInputError("--project-name needs --report-to wandb")
    for name in ("prior_batch_size", "prior_weight"):
        if getattr(args, name) is not None and not args.prior_prompts:
            raise InvalidInputError(f"--{name.replace('_', '-')} needs --prior-prompts")
    if bool(args.sample_every) != bool(args.sample_prompt):
        raise InvalidInputError("--sample-every and --sample-prompt go together")
    if args.sample_steps is not None and not args.sample_prompt:
        raise InvalidInputError("--sample-steps needs --sample-prompt")
    if args.window_places != PLACES[0] and args.windows == 1:
        raise InvalidInputError("--window-places needs --windows, 2 or more")
    if args.dry_run and args.show_clips:
        raise InvalidInputError("--dry-run writes nothing: leave out --show-clips")
    if args.upload_repo and args.show_clips:
        raise InvalidInputError("--show-clips trains nothing: leave out --upload-repo")


def _check_kind(args: argparse.Namespace) -> None:
    """Raises InvalidInputError for options that don't fit what is trained."""
    is_full = args.fine_tune_type == "full"
    known = settings_of(TrainingSettings)
    for name in OF_ADAPTERS if is_full else OF_ALL_WEIGHTS:
        if getattr(args, name) is not None:
            option = (*known[name].options, f"--{name.replace('_', '-')}")[0]
            kind = "full trains no adapter" if is_full else "it needs --fine-tune-type full"
            raise InvalidInputError(f"{option} has no effect: {kind}")
    if not is_full:
        return
    if args.clip_norm is not None:
        raise InvalidInputError(
            "--clip-norm isn't possible with --fine-tune-type full: a block is updated before the "
            "gradients of the others are known; the update of each tensor is clipped instead"
        )
    if args.quantize is not None:
        raise InvalidInputError(
            "-q isn't possible with --fine-tune-type full: quantized weights can't be trained"
        )


def without_effect(args: argparse.Namespace, pipe: ModelConfigurations) -> Iterator[str]:
    """Describes given options that change nothing in the training of a model."""
    iters = TrainingSettings.iters if args.iters is None else args.iters
    if args.sample_every > iters:
        yield f"--sample-every {args.sample_every} has no effect: there are {iters} updates"
    if len(args.data) == 1 and args.data[0].weight is not None:
        yield f"the weight of --data {args.data[0].path} has no effect: there is no other --data"
    if args.prior_prompts and args.prior_batch_size == 0:
        yield "--prior-prompts has no effect: --prior-batch-size is 0"
    if args.image_dropout is not None and not pipe.takes_image:
        yield "--image-dropout has no effect: the model takes no image"
    if args.master_weights and pipe.dtype_name == "float32":
        yield "--master-weights has no effect: the weights are float32 already"
    is_1_5 = pipe.configs["vae"].invert_scale_latents
    if args.image_latent_scale is not None and not (pipe.takes_image and is_1_5):
        yield "--image-latent-scale has no effect: it is for image-to-video models of version 1.5"


def _bucket(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"must be FRAMESxHEIGHTxWIDTH, got {text}")
    return tuple(map(int, parts))
