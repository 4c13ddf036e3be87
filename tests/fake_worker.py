"""A worker that acts as its job's options say, so that what surrounds it can be tested fast.

``options["lives"]`` has a list of acts for each start of the job: an event as a dictionary, or one
of the words below.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START, DONE = {"event": "start"}, {"event": "end", "status": "done", "error": None}
WAIT = "until it is asked to stop"
STUCK, SIGKILL, SIGTERM, HALF, EXIT = "stuck", "SIGKILL", "SIGTERM", "half a line", "exit"
LIVES = "lives"


def step(number: int, total: int = 10) -> dict[str, Any]:
    return {"event": "progress", "stage": "denoise", "step": number, "total": total}


def failed(error: str) -> dict[str, Any]:
    return {"event": "end", "status": "failed", "error": error}


def interrupted() -> dict[str, Any]:
    return {"event": "end", "status": "interrupted", "error": "interrupted"}


def command(home, job_id: str) -> list[str]:
    """In place of ``process.worker_command``."""
    return [sys.executable, "-S", "-E", __file__, str(home.of_job(job_id))]


def lives(home, job_id: str) -> int:
    """How often a job has been started."""
    file = home.of_job(job_id) / LIVES
    return len(file.read_text()) if file.exists() else 0


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Waits for a condition and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it doesn't happen"
        time.sleep(0.01)
    return value


def _emit(event: dict[str, Any], end: str = "\n") -> None:
    os.write(1, (json.dumps(event) + end).encode())


def _act(what: Any) -> None:
    if isinstance(what, dict):
        _emit(what)
    elif what == WAIT:
        os.read(0, 1)
        _emit(interrupted())
        sys.exit(130)
    elif what == STUCK:
        while True:
            time.sleep(1)
    elif what == HALF:
        os.write(1, b'{"event": "progr')
    elif what.startswith(EXIT):
        os.write(2, b"Traceback\nValueError: no such thing\n")
        sys.exit(int(what.removeprefix(EXIT)))
    else:
        os.kill(os.getpid(), getattr(signal, what))


def main(folder: str) -> None:
    os.chdir(folder)
    acts = json.loads(Path("options.json").read_text())["lives"]
    with open(LIVES, "a") as file:
        file.write(".")
    life = len(Path(LIVES).read_text())
    for what in acts[min(life, len(acts)) - 1]:
        _act(what)


if __name__ == "__main__":
    main(*sys.argv[1:])
