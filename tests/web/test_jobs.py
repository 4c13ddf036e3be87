import json
import os
import time

import pytest

from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.web import jobs
from mlx_cogvideo.web.home import new_id, open_home
from mlx_cogvideo.web.job_files import end_last_line, last_message, lines_of, shorten
from mlx_cogvideo.web.jobs import DESCRIPTION, Job, JobStore, QueueFullError, UnknownJobError
from mlx_cogvideo.web.progress import Progress


@pytest.fixture
def home(tmp_path):
    return open_home(tmp_path / "home")


def add(store: JobStore, **fields) -> Job:
    job_id, _ = store.new_folder("video")
    return store.add(Job(id=job_id, options={"prompt": "a circle"}, **fields))


def test_jobs_are_the_same_after_a_restart(home):
    store = JobStore(home)
    added = [
        add(store, about={"seed": n, "warnings": ()}, output=f"videos/{n}.mp4") for n in range(3)
    ]
    store.change(added[1].id, state=jobs.DONE, started=1.0, ended=2.0)
    assert JobStore(home).all() == store.all()
    assert [job.id for job in store.queued()] == [added[0].id, added[2].id]


def test_a_job_that_ran_is_first_after_a_restart(home):
    store = JobStore(home)
    first, second, third = (add(store) for _ in range(3))
    store.change(third.id, state=jobs.RUNNING)
    again = JobStore(home)
    assert [job.id for job in again.queued()] == [third.id, first.id, second.id]
    assert JobStore(home).all() == again.all()


DAMAGED = {
    "half a file": '{"id": ',
    "nothing": "",
    "no object": "[1, 2]",
    "bytes": b"\xff\xfe\x00",
    "no id": {"id": None},
    "another's": {"id": "video_" + 24 * "0"},
    "a path": {"id": "../../video"},
    "no state": {"state": "asleep"},
    "a text for a number": {"order": "1"},
    "no number": {"created": None},
    "not a finite number": {"order": float("nan")},
    "options of another type": {"options": []},
    "an error of another type": {"error": 5},
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_description_is_left_out_and_kept_on_disk(home, change):
    store = JobStore(home)
    bad, good = add(store), add(store)
    path = home.of_job(bad.id) / DESCRIPTION
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_bytes(change if isinstance(change, bytes) else change.encode())
    assert [job.id for job in JobStore(home).all()] == [good.id]
    assert path.exists()


def test_a_description_from_a_later_version_is_read(home):
    store = JobStore(home)
    job = add(store)
    path = home.of_job(job.id) / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    assert JobStore(home).all() == [job]


def test_what_a_crash_leaves_before_a_job_is_added_is_removed_later(home):
    store = JobStore(home)
    job = add(store)
    new, _ = store.new_folder("video")
    _, folder = store.new_folder("video")
    (folder / "picture.png").write_text("an upload")
    an_hour_ago = time.time() - 3700
    os.utime(folder, (an_hour_ago, an_hour_ago))
    (home.of_job(job.id) / ".job.json.01234567.part").write_text("{")
    others = home.jobs / "notes"
    others.mkdir()
    os.utime(others, (an_hour_ago, an_hour_ago))
    JobStore(home)
    assert {path.name for path in home.jobs.iterdir()} == {job.id, new, "notes"}
    assert sorted(os.listdir(home.of_job(job.id))) == ["job.json", "options.json"]


def test_a_job_that_is_removed_in_part_does_not_come_back(home, monkeypatch):
    store = JobStore(home)
    job = add(store)
    monkeypatch.setattr(jobs.shutil, "rmtree", lambda *_, **__: None)  # the process is killed
    store.remove(job.id)
    assert JobStore(home).all() == []
    with pytest.raises(UnknownJobError, match="no job"):
        store.get(job.id)


def test_a_change_that_can_not_be_written_is_none(home):
    store = JobStore(home)
    job = add(store)
    path = home.of_job(job.id) / DESCRIPTION
    path.unlink()
    path.mkdir()  # nothing can be written in its place
    (path / "file").touch()
    with pytest.raises(OutputError, match="can't be kept"):
        store.change(job.id, state=jobs.STOPPED)
    assert store.get(job.id) == job
    store.note(job.id, state=jobs.DONE)
    assert store.get(job.id).state == jobs.DONE and not store.write_again()
    (path / "file").unlink()
    path.rmdir()
    assert store.write_again()
    assert JobStore(home).get(job.id).state == jobs.DONE
    assert sorted(os.listdir(path.parent)) == ["job.json", "options.json"]


def test_jobs_that_ran_are_found_where_nothing_can_be_written(home, monkeypatch):
    store = JobStore(home)
    job = add(store)
    store.change(job.id, state=jobs.RUNNING)

    def full(path, value):
        raise OutputError("the job can't be kept: No space left on device")

    monkeypatch.setattr(jobs, "write_json", full)
    assert JobStore(home).get(job.id).state == jobs.QUEUED


def test_jobs_can_be_moved_between_the_same_two_for_ever(home):
    store = JobStore(home)
    ids = [add(store).id for _ in range(4)]
    for _ in range(60):
        ids = [ids[0], ids[2], ids[1], ids[3]]
        store.move(ids[1], 1)
        assert [job.id for job in store.queued()] == ids
    for job_id, place in ((ids[3], -5), (ids[0], 99), (ids[2], 2)):
        ids.remove(job_id)
        ids.insert(min(max(place, 0), 3), job_id)
        store.move(job_id, place)
        assert [job.id for job in store.queued()] == ids
    assert [job.id for job in JobStore(home).queued()] == ids
    store.change(ids[0], state=jobs.STOPPED)
    with pytest.raises(InvalidInputError, match="waits"):
        store.move(ids[0], 0)


def test_a_crash_while_the_queue_is_numbered_anew_keeps_its_order(home, monkeypatch):
    store = JobStore(home)
    ids = [add(store).id for _ in range(5)]
    for job_id in ids[1:4]:
        store.change(job_id, order=1.0)
    expected = [job.id for job in store.queued()]
    keep, written = JobStore._keep, []

    def crash_later(self, job):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(job.id)
        return keep(self, job)

    monkeypatch.setattr(JobStore, "_keep", crash_later)
    with pytest.raises(KeyboardInterrupt):
        store.move(expected[4], 2)
    monkeypatch.undo()
    left = [job.id for job in JobStore(home).queued()]
    expected.remove(moved := ids[4])
    assert [job_id for job_id in left if job_id != moved] == expected


def test_later_jobs_are_later_even_if_the_clock_is_set_back(home, monkeypatch):
    store = JobStore(home)
    first = add(store)
    monkeypatch.setattr(jobs.time, "time", lambda: 1000.0)
    later = [add(store) for _ in range(5)]
    assert store.all() == [first, *later]
    assert JobStore(home).all() == [first, *later]


def test_a_full_queue_takes_no_job_and_keeps_nothing_of_it(home):
    store = JobStore(home, most_queued=2)
    first = add(store)
    add(store)
    with pytest.raises(QueueFullError, match="2 jobs are waiting"):
        add(store)
    store.change(first.id, state=jobs.STOPPED)
    add(store)
    with pytest.raises(QueueFullError):
        store.requeue(first.id)
    assert len(os.listdir(home.jobs)) == 3


def test_thousands_of_jobs_are_opened_and_listed_at_once(home):
    store = JobStore(home)
    for number in range(3000):
        job_id = new_id("video")
        home.of_job(job_id).mkdir()
        text = {"id": job_id, "options": {}, "created": number, "order": number, "state": "done"}
        (home.of_job(job_id) / DESCRIPTION).write_text(json.dumps(text))
    start = time.perf_counter()
    store = JobStore(home)
    opened = time.perf_counter()
    assert len(store.all()) == 3000
    for _ in range(20):
        assert store.queued() == []
    assert opened - start < 10 and time.perf_counter() - opened < 2


@pytest.mark.parametrize("name", ["a\0b", "file/inside"])
def test_a_folder_that_can_not_be_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --folder"):
        open_home(tmp_path / name)


def test_lines_are_read_as_far_as_they_are_whole(tmp_path):
    file = tmp_path / "events.jsonl"
    assert lines_of(file) == ([], 0)
    file.write_bytes(b'{"a": 1}\nnot json\n[1]\n{"b": 2}\n{"c"')
    found, position = lines_of(file)
    assert found == [{"a": 1}, {"b": 2}] and position == file.stat().st_size - 4
    assert end_last_line(file) == file.stat().st_size == position + 5
    assert end_last_line(file) == position + 5
    with open(file, "ab") as more:
        more.write(b'{"d": 4}\n')
    assert lines_of(file, position)[0] == [{"d": 4}]


def test_the_last_message_is_one_of_this_process(tmp_path):
    file = tmp_path / "messages.txt"
    assert last_message(file, 0) is None
    file.write_text("error: of an earlier one\n")
    size = file.stat().st_size
    assert last_message(file, size) is None
    file.write_text(file.read_text() + "x" * 10_000 + "\nerror: no memory\n\n")
    assert last_message(file, size) == "error: no memory"


def test_shortened_events_mean_the_same(tmp_path):
    file = tmp_path / "events.jsonl"
    events = [{"event": "start"}, {"event": "warning", "message": "small"}]
    for n in range(500):
        events.append(_step(n, 500, loss=1 / (n + 1)))
        events.append({"event": "preview", "path": f"{n}.gif"})
    events.append({"event": "end", "status": "interrupted", "error": "stopped"})
    file.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    before = _progress(events)
    shorten(file)
    shorter = lines_of(file)[0]
    assert len(shorter) == 5 and _progress(shorter) == before
    assert os.listdir(tmp_path) == ["events.jsonl"]


def _step(done: int, total: int, stage: str = "denoise", **more) -> dict:
    return {"event": "progress", "stage": stage, "step": done, "total": total, **more}


def _progress(events: list[dict]) -> Progress:
    progress = Progress()
    for event in events:
        progress = progress.after(event)
    return progress


def test_the_fraction_never_falls_within_a_run():
    stages = {"encode": 1, "source": 1, "denoise": 5, "decode": 17}
    events = [
        _step(n, total, stage, window=window, windows=3)
        for window in (1, 2, 3)
        for stage, total in stages.items()
        if window == 1 or stage in ("denoise", "decode")
        for n in range(total + 1)
    ]
    events += [_step(0, 3, "encode", window=None, windows=None), _step(1, 2, "bytes of others")]
    progress, fractions = Progress(), []
    for event in events:
        progress = progress.after(event)
        fractions.append(progress.fraction)
    assert fractions == sorted(fractions) and fractions[-1] == 1
    again = progress.after({"event": "start"})
    assert again.fraction == 0 and again.furthest == 1


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event": None},
        {"event": []},
        {"event": "progress"},
        {"event": "progress", "stage": 5, "step": "x", "total": 0},
        {"event": "progress", "stage": "denoise", "step": -3, "total": -1, "windows": "a"},
        {"event": "progress", "stage": [], "step": 1e308, "total": 1e-308, "window": 9},
        {"event": "progress", "step": float("nan"), "total": float("inf"), "loss": "nan"},
        {"event": "preview"},
        {"event": "warning"},
        {"event": "end"},
    ],
)
def test_a_damaged_event_does_no_harm(event):
    progress = Progress().after({"event": "start"}).after(event)
    assert 0 <= progress.fraction <= 1


def test_warnings_are_kept_once_and_not_for_ever():
    events = [{"event": "warning", "message": str(n % 50)} for n in range(5000)]
    assert len(_progress(events).warnings) == 20
