"""``mlx-cogvideo generate``: prompts in, videos out."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ..device import manage_memory
from ..distributed import Distributed
from ..errors import InvalidInputError
from ..runs.jobs import Plan, make_plan
from ..runs.origin import Options
from ..runs.settings import RunSettings
from ..video import read_record
from .announce import announce, announce_download
from .awake import awake
from .common import (
    FAILED,
    add_run_options,
    at_least_one,
    be_quiet,
    in_bytes,
    positive,
    run,
    warn_of_idle,
    wired_bytes,
)
from .config_file import with_config_file
from .json_events import OPTION, JsonEvents, add_events_option
from .model_options import add_model_options
from .options import add_setting, add_settings, given_settings, named, path
from .parser import Parser
from .processes import (
    Team,
    add_process_options,
    check_one_each,
    help_out,
    joined,
    process_lines,
    short_of_memory,
)
from .session import Session
from .streams import json_text

PROCESSES = (
    "Processes that mlx.launch starts, on one machine or several, share each video: "
    "mlx.launch -n 2 --backend ring -- COMMAND. docs/several-macs.md describes it."
)

GROUPS = {
    "what": "what to make",
    "source": "what to start from",
    "sampling": "how to sample",
    "memory": "how to fit in memory",
    "output": "where the video goes",
}

EXAMPLES = """examples:
  %(prog)s --prompt "a red circle moves right on a white background"
  %(prog)s --model 5b --prompt-file prompts.txt --output "{index}-{seed}.mp4" --seed 1 2
  %(prog)s --resume video.mp4
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run(generate, arguments)


def generate(arguments: Sequence[str], events: JsonEvents) -> int | None:
    parser = make_parser()
    args = parser.parse_args(with_config_file(parser, arguments))
    distributed = Distributed.connect()
    leads = distributed.is_main or args.one_each
    events.start("generate", args.json_events, is_main=leads)
    if args.quiet or not leads:
        be_quiet()
    if args.show is not None:
        warn_of_idle(parser, args, "--show", "--quiet", OPTION)
        show(args.show, events)
        return None
    if args.prompt is args.prompt_file is args.replay is None and not args.resume:
        parser.error("give --prompt, --prompt-file, --replay or --resume")
    wired = wired_bytes(args)
    check_one_each(args, distributed)
    if not leads:
        return help_out(args, distributed, wired)
    with joined(args, distributed, events) as team:
        plan = make_plan(read_options(args, team), partial(announce_download, events=events))
        plan.warnings += _without_effect(args, plan)
        with plan.locks:
            return _carry_out(plan, args, events, team, wired)


def _carry_out(
    plan: Plan, args: argparse.Namespace, events: JsonEvents, team: Team, wired: int | None
) -> int | None:
    """Announces a plan and makes its videos; returns the exit code."""
    if team.helpers is not None and plan.jobs:
        team.helpers.open(plan, team.processes, plans=args.dry_run)
        plan.warnings += short_of_memory(team, plan)
    names_model = bool(args.model or args.replay or args.resume)
    announce(
        plan, events, names_model=names_model, also=process_lines(team, plan, measures=args.dry_run)
    )
    if args.dry_run:
        return FAILED if plan.failed else None
    manage_memory(plan.pipe.memory_limit, wired)
    with awake(args.caffeinate):
        return Session(plan, args, events, team).run()


def read_options(args: argparse.Namespace, team: Team) -> Options:
    """What a parsed command line asks for."""
    return Options(
        given=given_settings(args, RunSettings),
        prompt_file=args.prompt_file,
        replay=args.replay,
        resume=args.resume,
        model=args.model,
        base=args.base,
        output=args.output,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        memory_limit=in_bytes(args.memory_limit),
        previews=args.preview_every is not None,
        processes=team.processes,
        turn=team.turn,
    )


def _without_effect(args: argparse.Namespace, plan: Plan) -> Iterator[str]:
    """Describes the options that change nothing in a plan, beside those of settings."""
    steps = max((job.settings.num_inference_steps for job in plan.jobs), default=sys.maxsize)
    for option, every in (
        ("--save-every", args.save_every),
        ("--preview-every", args.preview_every),
    ):
        if every is not None and every > steps:
            yield f"{option} {every} has no effect: there are {steps} steps"
    divided = args.split is not None or args.shares is not None
    if divided and plan.pipe.processes.size == 1:
        yield "--split and --shares have no effect: no other process shares a video with this one"
    if args.json and args.dry_run:
        yield "--json has no effect: a dry run has no results"


def show(file: Path, events: JsonEvents) -> None:
    """Prints how an output was made."""
    record = read_record(file)
    if record is None:
        raise InvalidInputError(f"{file} holds no record of how it was made")
    events.tell("record", json_text(record, indent=2), path=file, record=record)


def make_parser() -> Parser:
    parser = Parser(
        "generate",
        lone="--prompt",
        description="Makes videos of prompts with CogVideoX, in MLX.",
        epilog=EXAMPLES,
    )
    what = parser.add_argument_group("prompts").add_mutually_exclusive_group().add_argument
    add_setting(what, RunSettings, "prompt")
    what(
        "--prompt-file",
        type=path,
        metavar="FILE",
        help="Text file of prompts, one a line. PROMPT@@IMAGE starts from an image; lines that "
        "begin with # are comments.",
    )
    what(
        "--replay",
        type=path,
        metavar="FILE",
        help="Make the video of FILE, an output of this program, again.",
    )
    what(
        "--show",
        type=path,
        metavar="FILE",
        help="Print how FILE, an output of this program, was made, and stop.",
    )
    own = ("prompt", "seed", "lora", "quantize")
    groups = add_settings(parser, RunSettings, GROUPS, leave_out=own)
    add = groups["sampling"].add_argument
    add_setting(
        add,
        RunSettings,
        "seed",
        nargs="+",
        help="Seed of all noise; the same seed repeats a video. Several make one video each. "
        "Default: random.",
    )
    add_model_options(groups)
    add = groups["memory"].add_argument
    add(
        "--memory-limit",
        type=positive,
        metavar="GIB",
        help="Limit the estimated memory of each stage to GIB. Guidance and the VAE then use modes "
        "that need less; a run that can't fit is refused before anything is loaded. Default: the "
        "memory of this machine.",
    )
    add = groups["output"].add_argument
    add(
        "--output",
        "-o",
        type=named,
        help="File that is written: .mp4, .gif, .safetensors (latents), or a folder of PNG frames. "
        "It may contain {index}, {prompt} and {seed}. Default: video.mp4, or "
        "video-{index}-{seed}.mp4 for several.",
    )
    add("--overwrite", action="store_true", help="Replace files that exist.")
    add = groups["output"].add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="Print one line of JSON instead of the outputs' names.")
    add_events_option(add)
    together = parser.add_argument_group("several processes", PROCESSES)
    add_process_options(together.add_argument)
    _add_long_options(parser.add_argument_group("long runs").add_argument)
    return parser


def _add_long_options(add) -> None:
    add(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        type=named,
        metavar="FILE",
        help="Continue an unfinished run. FILE is its output or its .resume file; without FILE, "
        "give the same command or --output.",
    )
    add(
        "--save-every",
        type=at_least_one,
        metavar="STEPS",
        help="Save the run every so many steps. Default: about once a minute.",
    )
    add(
        "--preview-every",
        type=at_least_one,
        metavar="STEPS",
        help="Draw a small preview of the current estimate every so many steps, as "
        "OUTPUT.preview.gif, until the video exists. Default: never.",
    )
    add_run_options(add)
    add("--dry-run", action="store_true", help="Say what would happen, and stop.")
