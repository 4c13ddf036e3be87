"""A service of the page with its runner, in a folder of its own."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_cogvideo.web.home import open_home
from mlx_cogvideo.web.jobs import Job, JobStore
from mlx_cogvideo.web.runner import Runner
from mlx_cogvideo.web.service import Service

PATIENCE = 120.0


@contextmanager
def running_service(folder: Path) -> Iterator[Service]:
    """A service whose jobs are carried out inside the block."""
    runner = Runner(JobStore(open_home(folder)))
    runner.start()
    try:
        yield Service(runner.store.home, runner)
    finally:
        runner.hurry()
        runner.close()


def wait(service: Service, condition: Callable[[], object]) -> None:
    """Waits until a condition holds, which is looked at whenever a job changes."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, [
            (job.id, job.state, job.error) for job in service.store.all()
        ]
        service.runner.wait_for_change(0.2)


def ended(service: Service, job_id: str) -> Job:
    """The job, once it neither waits nor runs."""
    wait(service, lambda: service.store.get(job_id).is_over)
    return service.store.get(job_id)
