import json
import os
import signal
import threading
import time

import pytest
from fake_worker import (
    DONE,
    EXIT,
    HALF,
    SIGKILL,
    SIGTERM,
    START,
    STUCK,
    WAIT,
    command,
    failed,
    lives,
    step,
    until,
)

from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.runs.saved_run import saved_path
from mlx_cogvideo.web import jobs, process, runner
from mlx_cogvideo.web.home import open_home
from mlx_cogvideo.web.jobs import Job, JobStore, UnknownJobError
from mlx_cogvideo.web.runner import Runner


@pytest.fixture(autouse=True)
def fake_workers(monkeypatch):
    monkeypatch.setattr(process, "worker_command", command)


@pytest.fixture
def home(tmp_path):
    return open_home(tmp_path / "home")


@pytest.fixture
def made(home):
    """Makes runners, which are closed in the end."""
    all_of_them = []

    def make(start: bool = True) -> Runner:
        new = Runner(JobStore(home))
        all_of_them.append(new)
        if start:
            new.start()
        return new

    yield make
    for each in all_of_them:
        each.hurry()
        each.close()


def add(to: Runner, *acts_of_lives: list) -> str:
    job_id, _ = to.store.new_folder("video")
    options = {"lives": acts_of_lives}
    return to.add(Job(id=job_id, options=options, output=f"videos/{job_id}.mp4")).id


def wait_for_state(of: Runner, job_id: str, state: str) -> Job:
    until(lambda: of.view(job_id).job.state == state and of.view(job_id).progress)
    return of.view(job_id).job


def wait_for_step(of: Runner, job_id: str, number: int) -> None:
    until(lambda: of.progress(job_id).step == number)


def on_disk(home, job_id: str) -> dict:
    return json.loads((home.of_job(job_id) / jobs.DESCRIPTION).read_text())


def test_jobs_are_done_one_after_another_in_order(home, made):
    worker = made(start=False)
    ids = [add(worker, [START, step(n), DONE]) for n in range(1, 4)]
    worker.move(ids[2], 0)
    assert [worker.place(i) for i in ids] == [1, 2, 0]
    worker.start()
    for job_id in ids:
        wait_for_state(worker, job_id, jobs.DONE)
    views = {view.job.id: view for view in worker.views()}
    order = sorted(ids, key=lambda i: views[i].job.started)
    assert order == [ids[2], ids[0], ids[1]]
    assert all(view.progress.fraction == 1 and view.place is None for view in views.values())
    assert [lives(home, i) for i in ids] == [1, 1, 1]


def test_a_stopped_job_stays_stopped_and_resumes_behind_the_others(home, made):
    worker = made()
    job_id = add(worker, [START, step(3), WAIT], [START, step(10), DONE])
    wait_for_step(worker, job_id, 3)
    worker.stop(job_id)
    worker.stop(job_id)
    assert worker.view(job_id).is_stopping or worker.view(job_id).job.is_over
    wait_for_state(worker, job_id, jobs.STOPPED)
    assert on_disk(home, job_id)["state"] == jobs.STOPPED
    with pytest.raises(InvalidInputError, match="can't be stopped"):
        worker.stop(job_id)
    again = made(start=False)
    assert again.store.get(job_id).state == jobs.STOPPED
    worker.resume(job_id)
    assert wait_for_state(worker, job_id, jobs.DONE).error is None
    assert lives(home, job_id) == 2


def test_a_job_that_is_just_stopping_can_be_resumed(home, made):
    worker = made()
    job_id = add(worker, [START, step(1), STUCK], [START, DONE])
    wait_for_step(worker, job_id, 1)
    with pytest.raises(InvalidInputError, match="can't be resumed"):
        worker.resume(job_id)
    worker.stop(job_id)
    worker.resume(job_id)
    assert worker.view(job_id).is_stopping
    assert worker.view(job_id).job.state == jobs.RUNNING
    worker._worker._process.kill()
    wait_for_state(worker, job_id, jobs.DONE)
    assert lives(home, job_id) == 2


def test_a_job_that_is_stopped_or_removed_before_its_process_starts_never_starts(home, made):
    worker = made(start=False)
    stopped, removed, done = (add(worker, [START, DONE]) for _ in range(3))
    first = worker._next_job()  # as its thread takes it
    assert first.id == stopped
    worker.stop(stopped)
    worker._carry_out(first)
    worker._running = None
    assert worker.store.get(stopped).state == jobs.STOPPED
    second = worker._next_job()
    worker.remove(removed)
    worker._carry_out(second)
    worker._running = None
    with pytest.raises(UnknownJobError):
        worker.view(removed)
    worker.start()
    wait_for_state(worker, done, jobs.DONE)
    assert lives(home, stopped) == 0
    assert not home.of_job(removed).exists()


def test_a_removed_job_takes_what_it_saved_with_it_and_leaves_what_is_done(home, made):
    worker = made()
    running = add(worker, [START, step(1), WAIT])
    waiting, finished = add(worker, [START, DONE]), None
    wait_for_step(worker, running, 1)
    for job_id in (running, waiting):
        saved_path(home.videos / f"{job_id}.mp4").write_text("saved")
    worker.remove(waiting)
    worker.remove(running)
    worker.remove(running) if running in {v.job.id for v in worker.views()} else None
    until(lambda: not worker.views())
    assert not any(home.videos.iterdir()) and not any(home.jobs.iterdir())
    finished = add(worker, [START, DONE])
    (home.videos / f"{finished}.mp4").write_text("a video")
    wait_for_state(worker, finished, jobs.DONE)
    worker.remove(finished)
    assert [file.name for file in home.videos.iterdir()] == [f"{finished}.mp4"]


@pytest.mark.parametrize("output", ["", "videos", "../elsewhere", "/tmp/elsewhere", "jobs/x"])
def test_only_what_is_in_a_folder_of_results_is_removed_with_a_job(home, made, output):
    worker = made(start=False)
    job_id, _ = worker.store.new_folder("training")
    worker.add(Job(id=job_id, options={}, output=output))
    (home.adapters / "kept").mkdir()
    (home.videos / "kept").write_text("a video")
    worker.remove(job_id)
    assert (home.adapters / "kept").is_dir() and (home.videos / "kept").is_file()
    assert home.jobs.is_dir()


def test_a_process_that_does_not_stop_is_killed_once_it_has_to(home, made, monkeypatch):
    monkeypatch.setattr(process, "LONGEST_STOP", 0.3)
    worker = made()
    job_id = add(worker, [START, step(1), STUCK])
    wait_for_step(worker, job_id, 1)
    worker.stop(job_id)
    started = time.monotonic()
    while time.monotonic() < started + 0.5:  # stop alone has patience
        worker.wait_for_change(0.1)
        assert worker.view(job_id).is_stopping
    pid = worker._worker._process.pid
    worker.remove(job_id)
    until(lambda: not worker.views())
    with pytest.raises(ProcessLookupError):  # nor is it a zombie
        os.kill(pid, 0)


def test_closing_leaves_the_job_first_in_the_queue_and_it_goes_on_at_the_next_start(home, made):
    worker = made()
    job_id = add(worker, [START, step(4), WAIT], [START, DONE])
    wait_for_step(worker, job_id, 4)
    other = add(worker, [START, DONE])
    worker.move(other, 0)
    worker.close()
    assert on_disk(home, job_id)["state"] == jobs.QUEUED
    assert [job.id for job in JobStore(home).queued()] == [job_id, other]
    again = made()
    assert again.progress(job_id).fraction > 0.3
    wait_for_state(again, other, jobs.DONE)
    assert lives(home, job_id) == 2


def test_a_runner_can_be_closed_before_it_starts_and_while_it_is_idle(home, made):
    made(start=False).close()
    idle = made()
    idle.close()
    idle.close()
    assert not idle._thread.is_alive()


def test_closing_does_not_hide_a_failure(home, made):
    worker = made()
    job_id = add(worker, [START, step(1), failed("no memory")])
    wait_for_state(worker, job_id, jobs.FAILED)
    worker.close()
    assert on_disk(home, job_id)["error"] == "no memory"


def test_a_killed_process_begins_again_until_it_gets_no_further(home, made):
    worker = made()
    further = [[START, step(n), SIGKILL] for n in range(1, 6)]
    job_id = add(worker, *further, [START, DONE])
    wait_for_state(worker, job_id, jobs.DONE)
    assert lives(home, job_id) == 6
    stays = add(worker, *[[START, step(n), SIGKILL] for n in (5, 3, 4, 4)])
    job = wait_for_state(worker, stays, jobs.FAILED)
    assert lives(home, stays) == 3 and "3 times" in job.error and "\n" not in job.error
    worker.resume(stays)
    wait_for_state(worker, stays, jobs.FAILED)
    assert lives(home, stays) > 4


def test_a_worker_that_the_system_ends_leaves_its_job_to_go_on(home, made):
    worker = made()
    ended_gently = [START, step(2), {"event": "end", "status": "interrupted", "error": "SIGTERM"}]
    job_id = add(worker, ended_gently, [START, SIGTERM], [START, DONE])
    wait_for_state(worker, job_id, jobs.DONE)
    assert lives(home, job_id) == 3


def test_a_process_that_fails_without_an_event_is_not_started_again(home, made):
    worker = made()
    job = wait_for_state(worker, add(worker, [EXIT + "1"]), jobs.FAILED)
    assert job.error == "ValueError: no such thing" and lives(home, job.id) == 1
    assert wait_for_state(worker, add(worker, [START, HALF, EXIT + "0"]), jobs.DONE)


def test_an_end_of_an_earlier_life_is_not_taken_for_one_of_this(home, made):
    worker = made()
    job_id = add(worker, [START, failed("once")], [SIGKILL], [HALF, SIGKILL], [START, DONE])
    wait_for_state(worker, job_id, jobs.FAILED)
    worker.resume(job_id)
    assert wait_for_state(worker, job_id, jobs.DONE).error is None
    assert lives(home, job_id) == 4
    for line in (home.of_job(job_id) / jobs.EVENTS).read_text().splitlines()[-2:]:
        json.loads(line)


def test_a_job_whose_process_can_not_be_started_fails_and_the_next_one_is_done(
    home, made, monkeypatch
):
    worker = made(start=False)
    bad, good = add(worker, [START, DONE]), add(worker, [START, DONE])
    missing = str(home.folder / "no such program")
    monkeypatch.setattr(
        process,
        "worker_command",
        lambda home, job_id: [missing] if job_id == bad else command(home, job_id),
    )
    worker.start()
    assert "can't be started" in wait_for_state(worker, bad, jobs.FAILED).error
    wait_for_state(worker, good, jobs.DONE)


def test_an_unexpected_error_ends_one_job_and_its_process_and_nothing_else(home, made, monkeypatch):
    worker = made(start=False)
    bad, good = add(worker, [START, step(1), STUCK]), add(worker, [START, DONE])
    processes = []
    watch = Runner._watch

    def broken(self, job, process):
        processes.append(process._process)
        if job.id == bad:
            raise RuntimeError("of no kind that is known\nwith two lines")
        return watch(self, job, process)

    monkeypatch.setattr(Runner, "_watch", broken)
    worker.start()
    job = wait_for_state(worker, bad, jobs.FAILED)
    assert job.error == "RuntimeError: of no kind that is known"
    wait_for_state(worker, good, jobs.DONE)
    assert processes[0].returncode == -signal.SIGKILL and processes[0].stdin.closed


def test_a_full_disk_loses_no_end_of_a_job(home, made, monkeypatch):
    monkeypatch.setattr(runner, "_RETRY", 0.05)
    is_full, write = threading.Event(), jobs.write_json

    def write_json(path, value):
        if is_full.is_set():
            raise OutputError("the job can't be kept: No space left on device")
        write(path, value)

    monkeypatch.setattr(jobs, "write_json", write_json)
    worker = made(start=False)
    job_id = add(worker, [START, step(5), DONE])
    is_full.set()
    with pytest.raises(OutputError, match="No space left"):
        add(worker, [START, DONE])
    with pytest.raises(OutputError, match="No space left"):
        worker.stop(job_id)
    assert worker.view(job_id).job.state == jobs.QUEUED
    worker.start()
    wait_for_state(worker, job_id, jobs.DONE)
    assert on_disk(home, job_id)["state"] == jobs.QUEUED
    is_full.clear()
    until(lambda: on_disk(home, job_id)["state"] == jobs.DONE)
    assert lives(home, job_id) == 1


def test_events_of_a_job_that_is_over_are_shortened_and_say_the_same(home, made):
    worker = made()
    steps = [step(n, 1000) for n in range(1, 400)]
    warning = {"event": "warning", "message": "too small"}
    job_id = add(worker, [START, warning, *steps, WAIT])
    wait_for_step(worker, job_id, 399)
    events = home.of_job(job_id) / jobs.EVENTS
    size = events.stat().st_size
    worker.stop(job_id)
    wait_for_state(worker, job_id, jobs.STOPPED)
    until(lambda: events.stat().st_size < size / 50)
    assert made(start=False).progress(job_id) == worker.progress(job_id)
    assert worker.progress(job_id).warnings == ("too small",)


def test_changes_are_seen_even_if_they_came_before_the_wait(made):
    worker = made(start=False)
    seen = worker.changes
    add(worker, [START, DONE])
    started = time.monotonic()
    now = worker.wait_for_change(30, since=seen)
    assert now != seen and time.monotonic() < started + 10
    assert worker.wait_for_change(0.01, since=now) == now


def test_views_from_many_threads_always_fit_together(home, made):
    worker = made()
    ids = [add(worker, [START, *[step(n) for n in range(1, 11)], DONE]) for _ in range(5)]
    problems, over = [], threading.Event()

    def look():
        furthest = dict.fromkeys(ids, 0.0)
        while not over.is_set():
            for view in worker.views():
                is_waiting = view.job.state == jobs.QUEUED
                if is_waiting != (view.place is not None):
                    problems.append(view)
                if view.progress.fraction < furthest[view.job.id]:
                    problems.append(view)
                furthest[view.job.id] = view.progress.fraction
            time.sleep(0.002)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for job_id in ids:
            wait_for_state(worker, job_id, jobs.DONE)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == []
