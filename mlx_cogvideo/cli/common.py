"""What the commands share: errors and exit codes, messages and progress bars."""

import argparse
import logging
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from ..errors import CogVideoXError, InvalidInputError, device_error, is_by_mlx, with_notes
from .json_events import JsonEvents
from .options import named, number, path
from .parser import DONE, FAILED, INTERRUPTED, USAGE, Parser
from .signals import ended_gently
from .streams import prepare, printable, unheard
from .troubleshooting import explained


def warn_of_idle(parser: Parser, args: argparse.Namespace, alone: str, *others: str) -> None:
    """Warns of given options that have no effect beside one that does something else and stops.

    Args:
        alone: that option.
        others: options that have an effect beside it.
    """
    idle: dict[str, str] = {}
    for action in parser._actions:
        given = getattr(args, action.dest, action.default) != action.default
        if given and not {alone, *others} & set(action.option_strings):
            name = next(name for name in action.option_strings if name.startswith("--"))
            idle.setdefault(action.dest, name)
    if idle:
        names = ", ".join(idle.values())
        logging.getLogger(__name__).warning("%s: no effect beside %s", names, alone)


class WithScale(argparse.Action):
    """``--lora ADAPTER [SCALE]``, which collects pairs."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            source, scale = values if len(values) > 1 else (*values, "1")
            pair = named(source), number(scale)
        except (ValueError, argparse.ArgumentTypeError):
            parser.error(f"{option_string} takes an adapter and at most one number, its scale")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), pair])


class Bits(argparse.Action):
    """``--quantize BITS``; many a program's ``-q`` stands for quiet, and has no number."""

    def __init__(self, **options: Any):
        super().__init__(**options | {"nargs": "?", "type": str})

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            setattr(namespace, self.dest, int(values or ""))
        except ValueError:
            parser.error(
                "-q needs the number of bits to quantize the weights to, such as -q 4; for less "
                "output, give --quiet"
            )


def at_least_one(text: str) -> int:
    return not_negative(text, least=1)


def not_negative(text: str, least: int = 0) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


Command = Callable[[Sequence[str], JsonEvents], int | None]
"""Takes a command line and reports events; returns an exit code, or None if all is done."""


def run(command: Command, arguments: Sequence[str] | None) -> int:
    """Runs a command and turns how it ends into an exit code and at most one line on stderr.

    Args:
        arguments: command line; None means the process's own.
    """
    prepare()
    show_log_messages()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    events = JsonEvents(arguments)
    with events.with_warnings(), ended_gently(events.leave):
        try:
            code, error = _carried_out(command, arguments, events)
        except KeyboardInterrupt as again:  # while the first was reported
            code, error = INTERRUPTED, again
        except Exception as error:
            events.end(FAILED, error)
            raise
        events.end(code, error)
    return code


def _carried_out(
    command: Command, arguments: Sequence[str], events: JsonEvents
) -> tuple[int, BaseException | None]:
    """Runs a command; returns its exit code and the error that ended it, which has been said."""
    try:
        return command(arguments, events) or DONE, None
    except CogVideoXError as error:
        say(f"error: {explained(error)}")
        return USAGE if isinstance(error, InvalidInputError) else FAILED, error
    except KeyboardInterrupt as error:
        if not with_notes(error):
            error.add_note(_before_it(error))
        say(f"interrupted: {with_notes(error)}")
        return INTERRUPTED, error
    except OSError as error:
        ours = OSError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        say(f"error: {ours}")
        return FAILED, ours
    except (RuntimeError, ValueError, IndexError, OverflowError, MemoryError) as error:
        if not is_by_mlx(error):
            raise
        by_device = device_error(error)
        say(f"error: {explained(by_device)}")
        return FAILED, by_device


def _before_it(error: KeyboardInterrupt) -> str:
    """What an interrupt says that found no note: it may have cut the handling of another short."""
    earlier = error.__context__
    while earlier is not None and not isinstance(earlier, KeyboardInterrupt):
        earlier = earlier.__context__
    if earlier is None:
        return "nothing was written"
    return with_notes(earlier) or "twice, so that it isn't known what was written last"


def say(message: str) -> None:
    """A line on stderr, above any progress bar."""
    with unheard():
        tqdm.write(printable(message), file=sys.stderr)


def with_help(
    group: argparse._ActionsContainer, texts: Mapping[str, str]
) -> Callable[..., argparse.Action]:
    """The ``add_argument`` of a parser or group, with each option's help from `texts`."""
    return lambda *names, **options: group.add_argument(*names, help=texts[names[0]], **options)


def add_run_options(add: Callable[..., Any]) -> None:
    """Adds the options that the long commands share.

    Args:
        add: a parser's or a group's ``add_argument``.
    """
    add(
        "--wired-limit",
        type=positive,
        metavar="GIB",
        help="Keep up to GIB of the model resident, whatever other programs need, on macOS 15 and "
        "later. Such limits have ended in kernel panics. Default: the system decides.",
    )
    add_awake_option(add)
    add(
        "--config",
        type=path,
        metavar="FILE",
        help="Read options from a TOML, JSON or YAML file; command-line options override it.",
    )
    add("--quiet", action="store_true", help="Print only warnings and errors.")


def add_awake_option(add: Callable[..., Any]) -> None:
    """Adds ``--no-caffeinate``; see `add_run_options`."""
    add(
        "--no-caffeinate",
        dest="caffeinate",
        action="store_false",
        help="Let a Mac fall asleep during the run. Default: a run of more than a minute keeps it "
        "awake.",
    )


BASE = (
    "Model that gives the parts which --model lacks, for a finetune that has only a transformer: a "
    "folder, hub id or short name."
)
"""Help of ``--base``."""


def in_bytes(gibibytes: float | None) -> int | None:
    """A limit in bytes, of one in GiB; None is none."""
    return None if gibibytes is None else int(min(gibibytes * 2**30, sys.maxsize))


def wired_bytes(args: argparse.Namespace) -> int | None:
    """The ``--wired-limit`` in bytes, or None.

    Raises:
        InvalidInputError: this system has no such limit.
    """
    if args.wired_limit is None:
        return None
    version = platform.mac_ver()[0]
    if not version or int(version.split(".")[0]) < 15:
        raise InvalidInputError("--wired-limit needs macOS 15 or later: leave it out")
    return in_bytes(args.wired_limit)


def show_log_messages() -> None:
    """Sends the package's messages to stderr, a line each."""
    logger = logging.getLogger("mlx_cogvideo")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.emit = _say_record
        logger.addHandler(handler)
        logger.propagate = False


def be_quiet() -> None:
    """Leaves only warnings and errors of what is said."""
    logging.getLogger("mlx_cogvideo").setLevel(logging.WARNING)


def _say_record(record: logging.LogRecord) -> None:
    level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
    say(level + record.getMessage())


class Bars:
    """A progress bar for each stage of some work, on stderr; a `pipeline.events.Progress`."""

    def __init__(self, events: JsonEvents, *, quiet: bool = False, **options: Any):
        """
        Args:
            events: get the progress, too; where they are on there are no bars.
            quiet: shows none.
            options: tqdm's.
        """
        self._events = events
        self._quiet = quiet or events.on
        self._options = options
        self._stage: str | None = None
        self._bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int, **more: Any) -> None:
        """`more` are fields of the event."""
        self._events.progress(stage, done, total, **more)
        if self._quiet:
            return
        with unheard():
            if self._bar is None or stage != self._stage or done < self._bar.n:
                self.close()
                self._stage = stage
                self._bar = tqdm(
                    total=total, initial=done, desc=stage, file=sys.stderr, **self._options
                )
            self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """Puts a few words behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            with unheard():
                self._bar.close()


class StageBars(Bars):
    """The bars of a run, which say once how long its denoising takes.

    Attributes:
        later: steps of the windows after the one that is denoised.
    """

    def __init__(self, events: JsonEvents, videos: int = 1, *, quiet: bool = False):
        """`videos` are to be made."""
        super().__init__(events, quiet=quiet, dynamic_ncols=True)
        self.later = 0
        self._videos, self._said = videos, False

    def __call__(self, stage: str, done: int, total: int, **more: Any) -> None:
        super().__call__(stage, done, total, **more)
        if stage == "denoise" and not (self._said or self._quiet):
            self._estimate(total - done + self.later)

    def _estimate(self, left: int) -> None:
        time_left = self._events.progress.time
        step = time_left.pace.get("steps")
        self._said = step is not None
        if self._said and left:
            until = time.strftime("%H:%M", time.localtime(time.time() + left * step))
            message = f"about {duration(left * step)} of denoising left, until {until}"
            if self._videos > 1:
                rest = time_left.work["steps"] * step
                message += f"; {duration(rest)} for all {self._videos} videos"
            say(message)


def duration(seconds: float) -> str:
    """``40 s``, ``25 min``, ``1 h 05 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
