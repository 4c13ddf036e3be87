import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from fake_worker import STUCK, command, until
from safetensors.numpy import load_file

from mlx_cogvideo.files import locked
from mlx_cogvideo.runs.saved_run import saved_path
from mlx_cogvideo.web import jobs, process
from mlx_cogvideo.web.home import new_id, open_home
from mlx_cogvideo.web.job_files import lines_of
from mlx_cogvideo.web.jobs import EVENTS, MESSAGES, OPTIONS, Job, JobStore
from mlx_cogvideo.web.process import WorkerProcess, worker_command
from mlx_cogvideo.web.runner import Runner

STEPS = 12


@pytest.fixture
def home(tmp_path):
    return open_home(tmp_path / "home")


def job_folder(home, kind: str = "video", options: dict | None = None) -> str:
    job_id = new_id(kind)
    home.of_job(job_id).mkdir()
    if options is not None:
        (home.of_job(job_id) / OPTIONS).write_text(json.dumps(options))
    return job_id


def events_of(home, job_id: str) -> list[dict]:
    return lines_of(home.of_job(job_id) / EVENTS)[0]


@pytest.fixture
def started(home):
    """Starts workers, which are ended with the test."""
    processes = []

    def start(job_id: str) -> WorkerProcess:
        processes.append(WorkerProcess(home, job_id))
        return processes[-1]

    yield start
    for each in processes:
        each.close()


def video_options(job_id: str, **more) -> dict:
    return {
        "prompt": "a red circle moves right",
        "model": "demo",
        "seed": 7,
        "num_inference_steps": STEPS,
        "output": f"../../videos/{job_id}.safetensors",
    } | more


def add_video(store: JobStore, **more) -> Job:
    job_id, _ = store.new_folder("video")
    options = video_options(job_id, **more)
    return store.add(Job(id=job_id, options=options, output=f"videos/{job_id}.safetensors"))


def latents_of(home, job_id: str) -> np.ndarray:
    return load_file(home.videos / f"{job_id}.safetensors")["latents"]


SERVER = """
    import sys
    from mlx_cogvideo.web.home import open_home
    from mlx_cogvideo.web.jobs import JobStore
    from mlx_cogvideo.web.runner import Runner
    runner = Runner(JobStore(open_home(sys.argv[1])))
    runner.start()
    while True:
        runner.wait_for_change(60)
"""


def test_a_job_goes_on_after_its_server_was_killed_with_the_same_latents(home):
    store = JobStore(home)
    first, whole = add_video(store), add_video(store)
    server = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SERVER), str(home.folder)])
    try:
        denoising = {"event": "progress", "stage": "denoise"}.items()
        until(
            lambda: [e for e in events_of(home, first.id) if denoising <= e.items() and e["step"]]
        )
    finally:
        server.kill()
        server.wait()
    until(lambda: [e for e in events_of(home, first.id) if e["event"] == "end"])
    end = events_of(home, first.id)[-1]
    assert (
        end["status"] == "interrupted"
        and saved_path(home.videos / f"{first.id}.safetensors").exists()
    )
    runner = Runner(JobStore(home))
    assert [job.id for job in runner.store.queued()] == [first.id, whole.id]
    runner.start()
    try:
        until(lambda: all(view.job.is_over for view in runner.views()), 120)
    finally:
        runner.hurry()
        runner.close()
    assert [job.state for job in runner.store.all()] == [jobs.DONE, jobs.DONE]
    assert np.array_equal(latents_of(home, first.id), latents_of(home, whole.id))
    outputs = [e for e in events_of(home, first.id) if e["event"] == "output"]
    assert len(outputs) == 1 and outputs[0]["record"]["resumed_at"]
    assert sorted(os.listdir(home.videos)) == sorted(f"{j.id}.safetensors" for j in (first, whole))


def test_a_worker_whose_video_is_there_says_that_it_is_done(home, started):
    job_id = job_folder(home)
    options = video_options(job_id, num_inference_steps=1)
    (home.of_job(job_id) / OPTIONS).write_text(json.dumps(options))
    for _ in range(2):  # the server was killed before it heard of the end
        worker = started(job_id)
        assert until(lambda: worker.poll() is not None, 60) and worker.poll() == 0  # noqa: B023
        events = worker.new_events()
        assert events[0]["event"] == "start" and events[-1]["status"] == "done"
    assert len([e for e in events_of(home, job_id) if e["event"] == "output"]) == 1


def test_a_worker_waits_for_another_one_and_says_so(home, started):
    job_id = job_folder(home, options={"output": "x.safetensors", "no_such_option": 1})
    with locked(home.running, "wait"):
        worker = started(job_id)
        until(lambda: [e for e in events_of(home, job_id) if e["event"] == "warning"])
        assert worker.poll() is None
    until(lambda: worker.poll() is not None)
    end = events_of(home, job_id)[-1]
    assert end["status"] == "failed" and "no_such_option" in end["error"].replace("-", "_")


def test_a_worker_that_waits_can_be_stopped_even_if_ctrl_c_is_ignored(home):
    job_id = job_folder(home, options={})
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *worker_command(home, job_id)]
    with locked(home.running, "wait"), open(home.of_job(job_id) / EVENTS, "ab") as events:
        worker = subprocess.Popen(ignoring, stdin=subprocess.PIPE, stdout=events)
        until(lambda: [e for e in events_of(home, job_id) if e["event"] == "warning"])
        worker.communicate(b".", timeout=30)
        assert worker.returncode == 130


def test_a_worker_whose_server_has_gone_before_it_began_ends(home):
    job_id = job_folder(home, options=video_options("video"))
    command_line = worker_command(home, job_id)
    done = subprocess.run(
        command_line, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 130
    assert os.listdir(home.videos) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (None, "options.json"),
        ("{", "options.json"),
        ("[]", "options.json"),
        ('{"prompt": "a circle"}', "output"),
    ],
)
def test_bad_options_are_said_in_one_line(home, started, options, problem):
    job_id = job_folder(home)
    if options is not None:
        (home.of_job(job_id) / OPTIONS).write_text(options)
    worker = started(job_id)
    until(lambda: worker.poll() is not None)
    end = worker.new_events()[-1]
    assert end["status"] == "failed" and problem in end["error"] and "\n" not in end["error"]


def test_a_lock_that_nobody_can_take_ends_the_worker(home, started):
    (home.folder / ".worker.lock").mkdir()
    worker = started(job_folder(home, options={}))
    until(lambda: worker.poll() is not None)
    end = worker.new_events()[-1]
    assert end["status"] == "failed" and "lock" in end["error"]


def test_a_model_folder_that_is_there_was_made_by_an_earlier_life(home, started):
    (home.models / "small").mkdir()
    options = {"model": "demo", "mlx_path": "../../models/small"}
    worker = started(job_folder(home, "model", options))
    until(lambda: worker.poll() is not None)
    assert worker.new_events()[-1]["status"] == "done" and worker.poll() == 0


def test_a_worker_keeps_no_socket_of_its_server_open(home, started, monkeypatch):
    monkeypatch.setattr(process, "worker_command", command)
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    server.set_inheritable(True)
    worker = started(job_folder(home, options={"lives": [[STUCK]]}))
    server.close()
    socket.create_server(("127.0.0.1", port), reuse_port=False).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert worker.poll() is None


def test_a_closed_worker_leaves_no_process_and_no_pipe(home, started, monkeypatch):
    monkeypatch.setattr(process, "worker_command", command)
    worker = started(job_folder(home, options={"lives": [[STUCK]]}))
    worker.close()
    assert worker.poll() == -signal.SIGKILL and worker._process.stdin.closed
    assert (home.jobs / os.listdir(home.jobs)[0] / MESSAGES).exists()
