"""A server of the API on a free port, with a folder of its own."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from mlx_cogvideo.web import server
from mlx_cogvideo.web.home import open_home
from mlx_cogvideo.web.jobs import JobStore
from mlx_cogvideo.web.runner import Runner
from mlx_cogvideo.web.service import Service

QUICK = {"model": "demo", "prompt": "a circle", "num_frames": 9, "num_inference_steps": 2}
"""A video that is made in a few seconds."""


@contextmanager
def serving(
    folder: Path, *, work: bool = False, most_queued: int = 100, **options
) -> Iterator[httpx.Client]:
    """A client of a server in this process, with the service that it uses as an attribute.

    Args:
        work: whether jobs are carried out.
        options: of ``make_app``.
    """
    home = open_home(folder)
    runner = Runner(JobStore(home, most_queued))
    service = Service(home, runner)
    app = server.make_app(service, **options)
    if work:
        runner.start()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with server._serving(app, listener), httpx.Client(base_url=address, timeout=60) as client:
            client.service = service
            yield client
    if work:
        for job in runner.store.all():
            runner.remove(job.id)
        runner.close()


def until(condition: Callable[[], object], seconds: float = 60) -> object:
    """Waits until a condition holds; returns what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def finished(client: httpx.Client, video_id: str) -> dict:
    """A video once it is completed or has failed."""

    def look():
        video = client.get(f"/v1/videos/{video_id}").json()
        return video if video["status"] in ("completed", "failed") else None

    return until(look)
