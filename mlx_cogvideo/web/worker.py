"""The process that carries out one job: ``python -m mlx_cogvideo.web.worker FOLDER JOB``.

It runs a command in the job's folder. What the command reports goes to a file, so that it doesn't
matter who reads it. It takes a lock, because a worker whose server was killed may still be
finishing its step. It stops, with its state saved, when its standard input ends: then the server
has gone.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from ..cli.main import run_command
from ..cli.parser import INTERRUPTED
from ..errors import OutputError
from ..files import locked
from ..runs.saved_run import saved_path
from ..training.checkpoint import saved_checkpoints
from .home import Home
from .jobs import COMMANDS, ID, OPTIONS

_PAUSE = 0.2


def main(folder: str, job_id: str) -> int:
    """Carries out a job; returns the command's exit code."""
    home, name = Home(Path(folder)), ID.fullmatch(job_id)
    if name is None:
        raise ValueError(job_id)
    threading.Thread(target=_stop_without_server, daemon=True).start()
    os.chdir(home.of_job(job_id))
    try:
        while True:
            try:
                with locked(home.running, "wait until it has ended"):
                    return run_command(COMMANDS[name[1]], _arguments(name[1]))
            except OutputError:  # the lock is held; the command itself raises nothing
                time.sleep(_PAUSE)
    except KeyboardInterrupt:  # while it waited
        return INTERRUPTED


def _arguments(kind: str) -> list[str]:
    """The command line, which continues what was saved, if anything was."""
    words = ["--config", OPTIONS, "--json-events"]
    options = json.loads(Path(OPTIONS).read_text(encoding="utf-8"))
    begun = {
        "video": lambda: any(
            map(os.path.lexists, (options["output"], saved_path(options["output"])))
        ),
        "training": lambda: bool(saved_checkpoints(Path(options["adapter_path"]))),
        "model": lambda: False,
    }
    return [*words, "--resume"] if begun[kind]() else words


def _files_of(output: str) -> tuple[str, Path]:
    return output, saved_path(output)


def _stop_without_server() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
