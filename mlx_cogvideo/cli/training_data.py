"""The options that say which clips a training learns and which it holds out."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InvalidInputError
from ..training.batches import VALIDATION_CLIPS
from ..training.clips import find_clips
from ..training.data_sets import (
    find_data_sets,
    hold_out_data,
    hold_out_share,
    warn_of_repeated,
)
from ..training.layouts import Clip, DataSet
from ..training.prepare import ClipOptions
from .options import number, path

LARGEST_WEIGHT = 1e6
"""Weights of data sets are up to this number, and not below its inverse."""

HELP = {
    "--data": "Folder of clips and their captions, or a table of them. May be given several times. "
    "A number behind each is its share of the batches; without such weights, all clips are learned "
    "equally often. Required.",
    "--val-data": "Folder or table of clips that are held out, for validation only. Default: none.",
    "--val-split": "Share of the clips that is held out, for validation only, such as 0.1; equal "
    "files stay together. Default: none.",
    "--val-every": "Updates between two validations, which compute the loss at fixed noise and "
    "timesteps; 0 is never. Default: --save-every if clips are held out, else 0.",
}


def add_data_options(add: Callable[..., argparse.Action]) -> None:
    """Adds the options that name clips.

    Args:
        add: the ``add_argument`` of a group, which knows `HELP`.
    """
    # A configuration file has the values as a list: the folders and tables are paths.
    add("--data", type=path, nargs="+", action=WithWeights, required=True, metavar="PATH")
    add("--val-data", type=path, metavar="PATH")
    add("--val-split", type=_share, metavar="SHARE")


class WithWeights(argparse.Action):
    """``--data PATH [WEIGHT]``, also several of them in a row, which collects data sets."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        found = [*(getattr(namespace, self.dest) or [])]
        for place, value in enumerate(values):
            weight = _number(value) if place else None
            if weight is None:
                found.append(DataSet(value))
            elif value.exists() or found[-1].weight is not None:
                parser.error(f"{option_string}: {value} is a number: for a path, repeat --data")
            elif not 1 / LARGEST_WEIGHT <= weight <= LARGEST_WEIGHT:
                parser.error(
                    f"{option_string}: a weight must be from {1 / LARGEST_WEIGHT:g} to "
                    f"{LARGEST_WEIGHT:g}, got {value}"
                )
            else:
                found[-1] = DataSet(found[-1].path, weight)
        setattr(namespace, self.dest, found)


def _number(value: Path) -> float | None:
    """A word of ``--data`` as a number; None if it is none."""
    try:
        return number(str(value))
    except (argparse.ArgumentTypeError, ValueError):
        return None


def _share(text: str) -> float:
    share = number(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, got {text}")
    return share


def check_data(args: argparse.Namespace) -> None:
    """Raises InvalidInputError where options of the data don't fit together."""
    weights = [data_set.weight for data_set in args.data]
    paths = [data_set.path.resolve() for data_set in args.data]
    if None in weights and any(weights):
        raise InvalidInputError("give each --data a weight, or none of them")
    if args.adapter_path.resolve() in paths:
        raise InvalidInputError(
            "--adapter-path is a folder of --data: its samples would be learned later as clips; "
            "choose another one"
        )
    if len({*paths}) < len(paths):
        raise InvalidInputError("the same --data is given twice: give it once, with a weight")
    if args.val_data and args.val_split:
        raise InvalidInputError("--val-data and --val-split: give one of them")
    if holds_out(args) and args.val_every == 0:
        raise InvalidInputError("--val-every 0 never validates: leave out the held-out clips")


def holds_out(args: argparse.Namespace) -> bool:
    """Whether clips are held out."""
    return bool(args.val_data or args.val_split)


def validation_interval(args: argparse.Namespace) -> int:
    """Updates between two validations; 0 is never."""
    if args.val_every is None:
        return args.save_every if holds_out(args) else 0
    return args.val_every


def find_all_clips(args: argparse.Namespace) -> tuple[list[Clip], list[Clip]]:
    """The clips of ``--data``, and those of ``--val-data``.

    Raises:
        InvalidInputError: one of them has no clips.
    """
    held_out = find_clips(args.val_data, args.adapter_path) if args.val_data else []
    return find_data_sets(args.data, args.adapter_path), held_out


def hold_out(
    args: argparse.Namespace,
    clips: Sequence[Clip],
    held_out: Sequence[Clip],
    seed: int,
    options: ClipOptions,
) -> list[Clip]:
    """The clips to learn, and then those that are held out; see `find_all_clips`.

    Raises:
        InvalidInputError: no clip is left on one side.
    """
    if len(args.data) > 1:
        warn_of_repeated(clips, options.digest)
    if held_out:
        return hold_out_data(clips, held_out, options.digest)
    if args.val_split:
        return hold_out_share(clips, args.val_split, seed, options.digest)
    return [*clips]


def data_lines(args: argparse.Namespace, clips: Sequence[Clip]) -> list[tuple[str, str]]:
    """Titles and lines of a plan about the clips."""
    learned = [clip for clip in clips if not clip.held_out]
    without = sum(not clip.caption for clip in learned)
    captions = f", {without} without a caption" if without else ""
    sources = " and ".join(map(_described, args.data))
    lines = [("clips", f"{len(learned)} from {sources}{captions}")]
    if held_out := len(clips) - len(learned):
        source = f"from {args.val_data}" if args.val_data else f"by --val-split {args.val_split:g}"
        some = f" {VALIDATION_CLIPS} of them" if held_out > VALIDATION_CLIPS else ""
        every = f"validated every {validation_interval(args)} updates"
        lines.append(("held out", f"{held_out} {source},{some} {every}"))
    return lines


def _described(data_set: DataSet) -> str:
    weight = data_set.weight
    return str(data_set.path) if weight is None else f"{data_set.path} (weight {weight:g})"


def cache_folder(args: argparse.Namespace) -> Path:
    """The folder that keeps what is encoded."""
    first = args.data[0].path
    return args.cache or (first if first.is_dir() else first.parent) / ".mlx_cogvideo"
