"""The process that carries out one job: ``python -m mlx_cogvideo.web.worker FOLDER JOB``.

It runs a command in the job's folder. What the command reports goes to a file, so that it doesn't
matter who reads it. It takes a lock, because a worker whose server was killed may still be
finishing its step. Its standard input says when to stop: each byte is as Ctrl-C, and the end of the
input, which comes with the end of the server, is as one Ctrl-C unless another came before.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..cli.json_events import OPTION, JsonEvents
from ..cli.main import run_command
from ..cli.parser import FAILED, INTERRUPTED
from ..errors import CogVideoXError, InvalidInputError, OutputError, first_line
from ..files import check_unlocked, locked
from ..runs.saved_run import saved_path
from ..training.checkpoint import saved_checkpoints
from .downloads import get_model
from .home import Home
from .jobs import COMMANDS, ID, OPTIONS

_NEEDED = {"video": "output", "training": "adapter_path", "model": "model"}
"""An option that each job of a kind has."""
_PAUSE = 0.2
_MOST_TRIES = 10
"""How often a lock that nobody holds is tried before it is taken for one that can't be had."""
_BETWEEN_SIGNALS = 0.1
"""Seconds between two signals, which might be taken for one."""


def main(folder: str, job_id: str) -> int:
    """Carries out a job; returns the command's exit code."""
    # A shell that starts a server with & has it, and so this process, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    events = JsonEvents([OPTION])
    try:
        threading.Thread(target=_obey, daemon=True).start()
        name = ID.fullmatch(job_id)
        if name is None:
            raise InvalidInputError(f"{job_id!r} is no job")
        home = Home(Path(folder))
        os.chdir(home.of_job(job_id))
        with ExitStack() as stack:
            _wait_for_turn(home, stack, events)
            return _carry_out(name[1])
    except KeyboardInterrupt:  # before the command has begun, or after its end
        return INTERRUPTED
    except (CogVideoXError, OSError) as error:
        events.end(FAILED, error)  # the command itself raises nothing
        return FAILED


def _wait_for_turn(home: Home, stack: ExitStack, events: JsonEvents) -> None:
    """Takes the lock that one worker has at a time.

    Raises:
        OutputError: nobody holds it, and yet it can't be taken.
    """
    failed = 0
    while True:
        try:
            stack.enter_context(locked(home.running, "wait until it has ended"))
            return
        except OutputError as error:
            problem = error
        if _is_held(home.running):
            if failed >= 0:
                events.emit("warning", message="waits for the end of an earlier job's last step")
            failed = -1
        else:
            failed += 1
            if failed >= _MOST_TRIES:
                raise problem
        time.sleep(_PAUSE)


def _is_held(path: Path) -> bool:
    try:
        check_unlocked(path, "wait")
    except OutputError:
        return True
    return False


def _carry_out(kind: str) -> int:
    """Runs the command of a job, which continues what was saved, if anything was."""
    options = _read_options(kind)
    if kind == "model":
        return get_model(options)
    words, output = ["--config", OPTIONS, OPTION], options[_NEEDED[kind]]
    if kind == "video":
        has_begun = os.path.lexists(output) or os.path.lexists(saved_path(output))
    else:
        has_begun = bool(saved_checkpoints(Path(output)))
    return run_command(COMMANDS[kind], [*words, "--resume"] if has_begun else words)


def _read_options(kind: str) -> dict[str, Any]:
    """The options of a job of some kind, with the one that it can't do without."""
    try:
        options = json.loads(Path(OPTIONS).read_text(encoding="utf-8"))
        Path(options[_NEEDED[kind]])
    except (OSError, ValueError, LookupError, TypeError) as error:
        problem = f"{OPTIONS} of the job can't be used ({first_line(error)})"
        raise InvalidInputError(f"{problem}: remove the job and make it again") from None
    return options


def _obey() -> None:
    """Interrupts the command when standard input says so."""
    asked = False
    while os.read(0, 1):
        if asked:
            time.sleep(_BETWEEN_SIGNALS)
        asked = True
        os.kill(os.getpid(), signal.SIGINT)
    if not asked:
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
