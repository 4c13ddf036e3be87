"""``mlx-cogvideo tune``: finds the steps that presets compute for a model, and what they cost."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..device import manage_memory
from ..distributed import Distributed
from ..errors import CogVideoXError, InvalidInputError, note_resume, resume_command
from ..files import locked
from ..runs.settings import RunSettings
from ..runs.tuning import PROMPTS_AT_MOST, REPORT, SHEET, TuningFolder
from .awake import awake
from .common import (
    add_run_options,
    at_least_one,
    be_quiet,
    positive,
    run,
    wired_bytes,
)
from .config_file import with_config_file
from .json_events import JsonEvents, add_events_option
from .model_options import add_model_options
from .options import add_setting, add_settings, path
from .parser import Parser
from .tuning_job import TuningJob

GROUPS = {
    "what": "what to make",
    "source": "what to start from",
    "sampling": "how to sample",
    "memory": "how to fit in memory",
    "output": "where the results go",
}
"""The groups of options, by name."""

LEFT_OUT = (
    *("prompt", "seed", "lora", "quantize", "extend", "overlap", "fps", "interpolate"),
    *("video", "video_start", "video_end", "strength", "preset", "cache", "cache_threshold"),
    *("computed_steps", "guidance_range", "vae", "tiny_vae", "source_tiling"),
)
"""Settings that the runs of a tuning don't have, or that have options of their own here."""

DESCRIPTION = f"""\
Finds which steps of a model can be left out, on this machine and for prompts like
yours: makes a video of each prompt with all steps, fits the lists of the presets to
what the model predicted, and makes a video with each preset to see what it costs.
Afterwards generate --preset balanced or fast uses these lists for the model.

The folder gets the videos, {SHEET} with frames of each (a row for the exact
video, one for each preset) and {REPORT}. What is interrupted goes on with the
same command.
"""
EXAMPLES = """\
examples:
  %(prog)s --model 5b --dry-run
      say how long it will take
  %(prog)s --model 5b --prompt "A heron wades through a misty lake at dawn. ..."
      tune for videos like this one
  %(prog)s --model 5b-i2v --image lake.png --prompt "The heron takes off. ..." "..."
      tune with two prompts and a picture
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run(tune, arguments)


def tune(arguments: Sequence[str], events: JsonEvents) -> int | None:
    parser = make_parser()
    args = parser.parse_args(with_config_file(parser, arguments))
    events.start("tune", args.json_events)
    if args.quiet:
        be_quiet()
    distributed = Distributed.connect()
    if distributed.size > 1:
        raise InvalidInputError("tune runs in one process: start it without mlx.launch")
    if len(args.prompt or ()) > PROMPTS_AT_MOST:
        raise InvalidInputError(f"give at most {PROMPTS_AT_MOST} prompts: each makes a whole video")
    wired, folder = wired_bytes(args), TuningFolder(args.output)
    job = TuningJob(args, arguments, folder, events)
    if args.dry_run:
        job.check()
        job.announce()
        return None
    with locked(Path(os.path.realpath(folder.path)), "choose another --output"):
        job.check()
        job.announce()
        job.open()
        manage_memory(job.plan.pipe.memory_limit, wired)
        with awake(args.caffeinate), _going_on(job.continuing):
            job.run()
    return None


@contextmanager
def _going_on(again: str) -> Iterator[None]:
    """Has what ends a tuning say how it goes on: its runs only know how each is continued.

    Args:
        again: the command that goes on.
    """
    try:
        yield
    except (CogVideoXError, KeyboardInterrupt) as error:
        of_run = resume_command(error)
        notes = [note for note in getattr(error, "__notes__", []) if str(of_run) not in note]
        error.__notes__ = notes
        note_resume(error, f"what is done is kept; continue with: {again}", again)
        raise


def make_parser() -> Parser:
    parser = Parser("tune", lone="--prompt", description=DESCRIPTION, epilog=EXAMPLES)
    groups = add_settings(parser, RunSettings, GROUPS, leave_out=LEFT_OUT)
    add = groups["what"].add_argument
    add(
        "--prompt",
        "-p",
        nargs="+",
        metavar="TEXT",
        help=f"What videos like yours show: 1 to {PROMPTS_AT_MOST} texts, each of which makes a "
        "video with all steps. Default: one of ours.",
    )
    add = groups["sampling"].add_argument
    add_setting(add, RunSettings, "seed", default=0, help="Seed of all noise. Default: 0.")
    add_model_options(groups)
    add = groups["memory"].add_argument
    add(
        "--memory-limit",
        type=positive,
        metavar="GIB",
        help="Limit the estimated memory of each stage to GIB. Default: the memory of this "
        "machine.",
    )
    add = groups["output"].add_argument
    add(
        "--output",
        "-o",
        type=path,
        default=Path("tuning"),
        metavar="FOLDER",
        help="Folder that the results go to. Default: tuning.",
    )
    add(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Begin again where the folder holds a tuning.",
    )
    add_events_option(add)
    long = parser.add_argument_group("long runs").add_argument
    long(
        "--preview-every",
        type=at_least_one,
        metavar="STEPS",
        help="Draw a small preview of each video every so many steps. Default: never.",
    )
    add_run_options(long)
    long("--dry-run", action="store_true", help="Say what would happen, and stop.")
    return parser
