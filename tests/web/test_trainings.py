"""Trainings as jobs: what is refused, how they end, and what becomes of their adapters."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
from clips import make_clip
from services import ended, running_service, wait
from trainings import same

from mlx_cogvideo import device
from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.training.checkpoint import saved_checkpoints
from mlx_cogvideo.video import read_record, write_video
from mlx_cogvideo.web.adapters import curve_of, samples_of
from mlx_cogvideo.web.job_files import lines_of
from mlx_cogvideo.web.jobs import DONE, EVENTS, RUNNING, STOPPED
from mlx_cogvideo.web.service import VideoRequest
from mlx_cogvideo.web.trainings import TrainingRequest

SETTINGS = {"rank": 4, "warmup": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("home")) as service:
        yield service


@pytest.fixture
def uploads(tmp_path):
    """Four clips of 12 frames and their captions."""
    clips = []
    for number in range(4):
        path = tmp_path / f"upload {number}.MP4"
        write_video(path.with_suffix(".mp4"), make_clip(12, 48, 64), 8)
        path.with_suffix(".mp4").rename(path)
        clips.append((path, f"a yellow square moves\nright, take {number}"))
    return clips


@pytest.fixture
def request_for(uploads):
    def make(iters: int = 6, **more) -> TrainingRequest:
        size = {"frames": 9, "height": 32, "width": 48}
        settings = SETTINGS | {"iters": iters} | more.pop("settings", {})
        about = {"title": "yellow <b>", "model": "demo", "clips": uploads, "save_every": 2}
        return TrainingRequest(**{**about, **size, "settings": settings, **more})

    return make


def test_a_training_makes_an_adapter_that_videos_can_use(service, request_for):
    request = request_for(sample_prompt="-a square", sample_every=3, sample_steps=1)
    job = ended(service, service.add_training(request).id)
    assert job.state == DONE, job.error
    assert not any(path.exists() for path, _ in request.clips)
    curve = curve_of(service.home, job.id)
    assert [step for step, _ in curve.loss] == [1, 2, 3, 4, 5, 6]
    samples = samples_of(service.home, job.id)
    assert [sample.step for sample in samples] == [3, 6]
    assert read_record(samples[0].path)["prompt"] == "-a square"
    (adapter,) = (each for each in service.adapters() if each.id == job.id)
    assert (adapter.title, adapter.model, adapter.steps) == ("yellow <b>", "demo", 6)
    assert adapter.loss == curve.loss[-1][1]

    settings = {"prompt": "a square", "num_inference_steps": 1, "num_frames": 1}
    request = VideoRequest(model="demo", settings=settings, adapters=((job.id, 0.5),))
    video = ended(service, service.add_video(request).id)
    assert video.state == DONE, video.error
    (used,) = read_record(service.home.folder / video.output)["settings"]["lora"]
    # A record goes along with the file: it names no folder of this machine.
    assert (used["source"], used["scale"]) == (f"../../adapters/{job.id}", 0.5)

    # Its adapter stays when the job is forgotten.
    service.runner.remove(job.id)
    assert job.id in [each.id for each in service.adapters()]
    assert service.adapter(job.id).is_dir()


def test_a_training_goes_on_after_stops_and_kills_as_if_there_were_none(
    request_for, uploads, tmp_path
):
    copies = [(tmp_path / f"copy-{path.name}", caption) for path, caption in uploads]
    for (path, _), (copy, _) in zip(uploads, copies, strict=True):
        shutil.copyfile(path, copy)
    with running_service(tmp_path / "home") as service:
        whole = ended(service, service.add_training(request_for(10)).id)
        job = service.add_training(request_for(10, clips=copies))
        # Killed before its first checkpoint: it begins again by itself.
        wait(service, lambda: service.runner.progress(job.id).stage)
        kill(service, job)
        # Stopped, with its state kept.
        wait(service, lambda: saved(service, job))
        service.runner.stop(job.id)
        assert ended(service, job.id).state == STOPPED
        assert [each.id for each in service.adapters()] == [whole.id]
        steps = len(curve_of(service.home, job.id).loss)
        assert 0 < steps < 10
        # Killed after a checkpoint.
        service.runner.resume(job.id)
        wait(service, lambda: len(curve_of(service.home, job.id).loss) > steps)
        kill(service, job)
        assert ended(service, job.id).state == DONE
        assert same(service.adapter(job.id), service.adapter(whole.id))
        service.store.change(job.id, state=RUNNING)
    # The server has ended before it noted that the training was done.
    with running_service(tmp_path / "home") as service:
        assert ended(service, job.id).state == DONE
        assert same(service.adapter(job.id), service.adapter(whole.id))
        assert len(curve_of(service.home, job.id).loss) == 10


def kill(service, job) -> None:
    """Kills the process of a job that runs."""
    events = lines_of(service.home.of_job(job.id) / EVENTS)[0]
    os.kill([each["pid"] for each in events if each["event"] == "start"][-1], signal.SIGKILL)


def saved(service, job):
    return saved_checkpoints(service.home.adapters / job.id)


def test_a_removed_training_leaves_nothing(service, request_for):
    job = service.add_training(request_for(500))
    wait(service, lambda: service.runner.progress(job.id).stage == "train")
    service.runner.remove(job.id)
    wait(service, lambda: job.id not in [each.id for each in service.store.all()])
    assert not (service.home.adapters / job.id).exists()
    assert not service.home.of_job(job.id).exists()


def test_an_estimate_needs_no_clips_and_names_what_fits(service, monkeypatch):
    request = TrainingRequest(title="", model="demo", settings={"rank": 4})
    estimate = service.estimate_training(request)
    assert (estimate.frames, estimate.steps) == (17, 1000)
    assert estimate.fits and estimate.fitting is None and estimate.disk > 0
    monkeypatch.setattr(device, "machine_memory", lambda: estimate.memory["train"] - 1)
    tight = service.estimate_training(request)
    assert not tight.fits
    assert service.estimate_training(replace(request, frames=tight.fitting)).fits


WRONG = {
    "no clip": ({"clips": []}, "takes 1 to"),
    "too long": ({"frames": 17}, "clip 1 is too short: it has 12 frames"),
    "a wrong length": ({"frames": 10}, "8N"),
    "whole model": ({"settings": {"fine_tune_type": "full"}}, "lora, dora"),
    "a file": ({"settings": {"resume_adapter_file": "/etc/passwd"}}, "no such setting"),
    "an option": ({"settings": {"targets": ("--upload-repo", "me/x")}}, "have no layers"),
    "a picture": ({"sample_prompt": "a@@/etc/passwd"}, "can't have @@"),
    "a word": ({"settings": {"rank": "many"}}, "rank"),
    "a rank": ({"settings": {"rank": 10**6}}, "rank must be at most"),
    "never saved": ({"save_every": 0}, "save_every must be at least 1"),
    "no model": ({"model": "../demo"}, "there is no model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_is_refused_and_its_clips_stay(service, request_for, case):
    change, message = WRONG[case]
    before = service.store.all()
    request = request_for(**change)
    with pytest.raises(InvalidInputError) as error:
        service.add_training(request)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert all(path.is_file() for path, _ in request.clips)
    assert service.store.all() == before


def test_clips_must_be_videos_with_some_caption(service, request_for, uploads):
    uploads[1][0].write_bytes(b"\0" * 1000)
    with pytest.raises(InvalidInputError, match="clip 2 can't be read as a video") as error:
        service.add_training(request_for())
    assert str(uploads[1][0].parent) not in str(error.value)
    text = uploads[1][0].with_suffix(".txt")
    text.write_text("not a clip")
    with pytest.raises(InvalidInputError, match="clip 1 isn't a video"):
        service.add_training(request_for(clips=[(text, "a")]))
    with pytest.raises(InvalidInputError, match="no clip has a caption"):
        service.add_training(request_for(clips=[(uploads[0][0], " ")]))


def test_a_full_disk_refuses_a_training(service, request_for, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match="no room for the checkpoints") as error:
        service.add_training(request_for())
    assert str(service.home.folder) not in str(error.value)


@pytest.mark.parametrize("name", ["", "../x", "training_" + "0" * 24, "video_" + "0" * 24])
def test_only_a_finished_training_is_an_adapter(service, name):
    with pytest.raises(InvalidInputError, match="there is no adapter"):
        service.adapter(name)


def test_a_folder_that_is_no_adapter_is_not_listed(service):
    folder = service.home.adapters / ("training_" + "1" * 24)
    folder.mkdir()
    (folder / "about.json").write_text(json.dumps({"title": "x", "model": "demo", "steps": 1}))
    assert folder.name not in [each.id for each in service.adapters()]
