"""Several processes that make videos together, as ``mlx.launch`` starts them."""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from ..called import command
from ..checkpoints.model_folder import ModelFolder
from ..device import manage_memory, size
from ..diffusion.division import SPLITS, Division
from ..distributed import Distributed, Processes
from ..errors import InvalidInputError, PeerLostError, with_notes
from ..machine.link import Work, compared, measure_link
from ..machine.measured import measured
from ..machine.speed import Ceilings, chip_ceilings
from ..pipeline.estimates import estimate_memory
from ..pipeline.fields import settings_of
from ..runs.channel import Channel
from ..runs.guard import Guard
from ..runs.helper import Helper
from ..runs.helpers import Helpers
from ..runs.run_plan import Plan
from ..runs.settings import RunSettings
from .awake import awake
from .common import positive
from .json_events import JsonEvents
from .options import option_name
from .parser import DONE, INTERRUPTED
from .signals import Interrupts, before_leaving
from .streams import printable
from .troubleshooting import explained

MAY_DIFFER = {
    *("quiet", "json", "json_events", "caffeinate", "wired_limit", "memory_limit", "config"),
    *("overwrite", "save_every", "preview_every", "output"),
}
"""Names of the options that needn't be the same in all processes."""


@dataclass(frozen=True)
class Team:
    """This process, and the others of its run.

    Attributes:
        helpers: the others, if this is the main process of several.
    """

    distributed: Distributed
    processes: Processes
    interrupts: Interrupts
    helpers: Helpers | None = None

    @property
    def turn(self) -> tuple[int, int]:
        """As in `Options`."""
        shared = self.processes.size > 1
        return (0, 1) if shared else (self.distributed.rank, self.distributed.size)


def add_process_options(add: Callable[..., Any]) -> None:
    """Adds the options of several processes.

    Args:
        add: a group's ``add_argument``.
    """
    add(
        "--split",
        choices=SPLITS,
        help="What the processes that share a video divide first: the two passes of guidance, or "
        "the tokens. Default: guidance where there is one, the number of processes is even and two "
        "have no --shares; else tokens.",
    )
    add(
        "--shares",
        nargs="+",
        type=positive,
        metavar="SHARE",
        help="How much of the tokens each process computes, such as 2 1 where the first is twice "
        "as fast. Default: equal shares.",
    )
    add(
        "--one-each",
        action="store_true",
        help="Have each process make videos of its own, instead of all making each video together.",
    )


@contextmanager
def joined(
    args: argparse.Namespace, distributed: Distributed, events: JsonEvents
) -> Iterator[Team]:
    """Connects this process with the others, and tells them when the block ends.

    Yields:
        What the block can use; of a process that isn't the main one see `help_out`.

    Raises:
        InvalidInputError: they can't be reached, or the options don't fit them.
    """
    interrupts = Interrupts()
    if distributed.size == 1 or args.one_each:
        yield Team(distributed, Processes(), interrupts)
        return
    shares = args.shares and tuple(args.shares)
    processes = Processes(distributed.size, args.split, shares)
    with _guarded(distributed, partial(_say, events)) as (channel, guard):
        helpers = Helpers(distributed, channel, guard, lambda: interrupts.wanted, _compared(args))
        try:
            yield Team(distributed, processes, interrupts, helpers)
        finally:
            helpers.end()


@contextmanager
def _guarded(
    distributed: Distributed, say: Callable[[int, BaseException], None]
) -> Iterator[tuple[Channel, Guard]]:
    """Opens the connections to the others, and keeps what a run has come to.

    Args:
        say: as for `Guard`.
    """
    channel = Channel.open(distributed)
    guard = Guard(channel, say)
    before_leaving.append(guard.save)
    try:
        yield channel, guard
    finally:
        before_leaving.remove(guard.save)


def help_out(args: argparse.Namespace, distributed: Distributed, wired: int | None) -> int:
    """Takes part in the run of the main process until that ends; returns the exit code."""
    interrupts = Interrupts(silent=True)

    def be_patient(steps: bool) -> None:
        interrupts.patient = steps

    with _guarded(distributed, _say_alone) as (channel, guard):
        helper = Helper(
            distributed,
            channel,
            guard,
            lambda: interrupts.wanted,
            _compared(args),
            described_machine,
            measure_link,
            be_patient,
        )
        try:
            with interrupts, awake(args.caffeinate):
                manage_memory(wired=wired)
                helper.serve()
            return DONE
        except KeyboardInterrupt:
            channel.fail("it was interrupted")
            return INTERRUPTED
        except Exception as error:
            if isinstance(error, PeerLostError) and _has_ended(channel):
                return DONE  # the main process has said what is to say
            channel.fail(with_notes(error) or type(error).__name__)
            raise


def _has_ended(channel: Channel) -> bool:
    """Whether the main process has said that it ends; its word may come a moment later."""
    end = time.monotonic() + 1
    while time.monotonic() < end and not channel.main_has_ended:
        time.sleep(0.05)
    return channel.main_has_ended


def check_one_each(args: argparse.Namespace, distributed: Distributed) -> None:
    """Raises InvalidInputError unless all processes or none have ``--one-each``."""
    if distributed.size == 1:
        return
    given = distributed.all_gather(mx.array(int(args.one_each))).tolist()
    if len(set(given)) > 1:
        raise InvalidInputError("--one-each is for all processes or none: give all the same")


def _compared(args: argparse.Namespace) -> dict[str, str]:
    """The options that must be the same in all processes, by name."""
    settings = settings_of(RunSettings)
    return {
        option_name(RunSettings, name) if name in settings else f"--{name.replace('_', '-')}": (
            " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        )
        for name, value in vars(args).items()
        if name not in MAY_DIFFER
    }


def _say(events: JsonEvents, code: int, error: BaseException) -> None:
    events.leave(code, error)
    _say_alone(code, error)


def _say_alone(code: int, error: BaseException) -> None:
    # Not by tqdm, whose lock the main thread may have.
    os.write(2, f"\n{printable(f'error: {explained(error)}')}\n".encode())


def described_machine(pipe: ModelFolder) -> dict[str, Any]:
    """What a process says of its machine, to run a model."""
    machine, dtype, known = pipe.machine, pipe.dtype_name, measured()
    ceilings = (known and known.of(dtype)) or chip_ceilings(machine, dtype)
    return {
        "name": platform.node(),
        "chip": machine.chip,
        "memory": machine.memory,
        "available": machine.available,
        "ceilings": ceilings and asdict(ceilings),
    }


def process_lines(team: Team, plan: Plan, *, measures: bool) -> list[tuple[str, str]]:
    """Lines about the processes that share the runs of a plan.

    Args:
        measures: whether the link between them is measured.
    """
    if team.helpers is None or not plan.jobs:
        return []
    machines, settings = team.helpers.machines, plan.jobs[0].settings
    names = [f"{machine['name']} ({machine['chip']})" for machine in machines]
    lines = [
        ("together", f"{1 + len(names)} processes, with {', '.join(names)}"),
        ("divided", divided(settings.division)),
    ]
    if measures:
        link = measure_link(team.distributed)
        all_machines = [described_machine(plan.pipe), *machines]
        lines.append(("link", _speeds(plan, link, [each["ceilings"] for each in all_machines])))
    return lines


def short_of_memory(team: Team, plan: Plan) -> Iterator[str]:
    """Warnings of machines of other processes with too little memory for the steps of a plan."""
    needs = [estimate_memory(plan.pipe, job.settings).get("denoise", 0) for job in plan.jobs]
    for machine in team.helpers.machines if team.helpers is not None else ():
        if max(needs, default=0) > machine["memory"]:
            name, memory = machine["name"], size(machine["memory"])
            yield f"denoise needs about {size(max(needs))}, and {name} has {memory}"


def _speeds(plan: Plan, link: float, ceilings: list[dict[str, Any] | None]) -> str:
    """How fast the link is, and a step of a plan's first video over it."""
    rate = f"{link / 1e9:.2g} GB/s"
    known = [Ceilings(**each) for each in ceilings if each is not None]
    if len(known) < len(ceilings):
        return f"{rate}; {command('check')} on each machine lets a plan compare the divisions"
    settings = plan.jobs[0].settings
    texts = 2 if settings.guided else 1
    work = Work.of(plan.pipe, settings.geometry, known, link, texts=texts)
    ways = [f"{seconds:.3g} s with {options}" for options, seconds in compared(work)]
    return f"{rate}; a step takes about {', '.join(ways)}"


def divided(division: Division) -> str:
    """How processes divide a step, in words."""
    each = "" if len(set(division.shares)) == 1 else f", in shares of {_shares(division)}"
    if division.halves == 1:
        return f"each computes its part of the tokens{each}"
    if division.splits_tokens:
        return f"half of them compute each pass of guidance, each its part of the tokens{each}"
    idle = "; the third has nothing to do" if division.size == 3 else ""
    return f"each computes one pass of guidance{idle}"


def _shares(division: Division) -> str:
    return " to ".join(f"{share:g}" for share in division.shares)
