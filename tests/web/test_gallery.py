"""The gallery: what it lists, and what its videos can be made with again."""

import os
import shutil
import subprocess
import sys

import av
import pytest
from clips import make_clip
from services import ended, running_service

from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.video import read_record, read_video, write_video
from mlx_cogvideo.video.picture_writer import write_picture
from mlx_cogvideo.web import gallery as module
from mlx_cogvideo.web.gallery import Gallery, UnknownVideoError
from mlx_cogvideo.web.home import open_home
from mlx_cogvideo.web.jobs import DONE, JobStore
from mlx_cogvideo.web.service import VideoRequest

POPEN = subprocess.Popen
SMALL = {"num_inference_steps": 1, "num_frames": 9, "height": 32, "width": 48}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("home")) as service:
        yield service


@pytest.fixture
def gallery(tmp_path):
    return Gallery(JobStore(open_home(tmp_path / "home")))


def record(**settings) -> dict:
    settings = {"prompt": "a <b>cat</b>", "seed": 5, "num_frames": 9} | settings
    return {"mlx_cogvideo": "0.2.0", "model": {"name": "demo"}, "settings": settings}


def write(gallery, name: str, about: dict | None = None, when: float = 1e9):
    path = gallery.home.videos / name
    write_video(path, make_clip(9), 8, record=about)
    os.utime(path, (when, when))
    return path


def test_videos_are_listed_newest_first_and_a_page_at_a_time(gallery):
    for number in range(5):
        write(gallery, f"v{number}.mp4", record(seed=number), 1e9 + number)
    assert [video.name for video in gallery.page(0, 2)] == ["v4", "v3"]
    assert [video.name for video in gallery.page(2, 2)] == ["v0"]
    assert gallery.page(9) == [] and gallery.count() == 5
    assert [video.settings["seed"] for video in gallery.page()] == [4, 3, 2, 1, 0]


def test_a_page_reads_only_its_own_records_and_those_once(gallery, monkeypatch):
    for number in range(3):
        write(gallery, f"v{number}.mp4", record(), 1e9 + number)
    read = []
    monkeypatch.setattr(module, "read_record", lambda p: read.append(p.name) or read_record(p))
    gallery.page(0, 2)
    gallery.page(0, 2)
    assert read == ["v2.mp4", "v1.mp4"]
    write(gallery, "new.mp4", record(seed=8), 2e9)
    (gallery.home.videos / "new.mp4").replace(gallery.home.videos / "v2.mp4")
    assert gallery.page(0, 1)[0].settings["seed"] == 8


def test_only_finished_videos_are_listed(gallery, tmp_path):
    videos = gallery.home.videos
    write(gallery, "a.mp4", record())
    write(gallery, "b.gif", record())
    write(gallery, ".hidden.mp4")
    write(gallery, "c.mp4.preview.gif")
    (videos / "c.mp4.resume").write_bytes(b"")
    (videos / "notes.txt").write_text("x")
    (videos / "folder.mp4").mkdir()
    outside = tmp_path / "outside.mp4"
    write_video(outside, make_clip(9), 8)
    (videos / "link.mp4").symlink_to(outside)
    assert sorted(video.name for video in gallery.page()) == ["a", "b.gif"]


def test_files_without_a_record_say_why(gallery):
    write(gallery, "plain.mp4")
    (gallery.home.videos / "damaged.mp4").write_bytes(b"x" * 100)
    write(gallery, "odd.mp4", {"mlx_cogvideo": "9", "settings": [], "model": 1})
    write(gallery, "new.mp4", record(holograms=2))
    problems = {video.name: video.problem for video in gallery.page()}
    assert "no record" in problems["plain"] and "damaged" in problems["damaged"]
    assert "damaged" in problems["odd"] and "holograms" in problems["new"]
    assert not any(str(gallery.home.folder) in problem for problem in problems.values())
    for name in problems:
        with pytest.raises(InvalidInputError, match="it isn't known how"):
            gallery.remake(name)
    assert gallery.thumbnail("damaged") is None


@pytest.mark.parametrize("name", ["../jobs", "", ".", "a/../a", "a.mp4", "nobody", "a\0"])
def test_a_name_is_one_of_the_list(gallery, name):
    write(gallery, "a.mp4", record())
    with pytest.raises(UnknownVideoError):
        gallery.get(name)


def test_a_thumbnail_is_small_and_changes_with_its_video(gallery):
    path = gallery.home.videos / "wide.mp4"
    write_video(path, make_clip(9, 120, 640), 8)
    first = gallery.thumbnail("wide")
    with av.open(str(first)) as picture:
        assert picture.streams.video[0].width == 320 and picture.streams.video[0].height == 60
    assert gallery.thumbnail("wide") == first
    write_video(path, make_clip(17, 48, 64), 8, overwrite=True)
    assert gallery.thumbnail("wide") != first
    assert gallery.home.thumbnails.stat().st_mode & 0o77 == 0


def test_a_video_is_made_again_as_it_was_and_with_another_seed_and_longer(service):
    gallery = Gallery(service.store)
    settings = SMALL | {"prompt": "a red circle", "seed": 3}
    video = ended(service, service.add_video(VideoRequest(model="demo", settings=settings)).id)
    remake = gallery.remake(video.id)
    assert remake.missing == () and remake.request.model == "demo"
    with gallery.to_queue(remake) as request:
        same = ended(service, service.add_video(request).id)
    assert same.state == DONE, same.error
    first, second = (read_video(gallery.get(each.id).path)[0] for each in (video, same))
    assert (first == second).all()
    other = gallery.remake(video.id, new_seed=True).request.settings
    assert other["seed"] != 3 and {**other, "seed": 3} == remake.request.settings

    longer = gallery.remake(video.id, longer=True).request
    assert longer.settings["extend"] == 1
    with pytest.raises(InvalidInputError, match="give an overlap of 1"):
        service.add_video(longer)
    longer = VideoRequest(model="demo", settings={**longer.settings, "overlap": 1})
    longer = ended(service, service.add_video(longer).id)
    pixels, _ = read_video(gallery.get(longer.id).path)
    assert len(pixels) == 17 and (pixels[:8] == first[:8]).all()
    assert gallery.remake(longer.id, longer=True).request.settings["extend"] == 2


def test_the_picture_of_a_video_is_its_jobs_while_it_is_the_same(service, tmp_path):
    gallery = Gallery(service.store)
    picture = tmp_path / "cat.png"
    write_picture(picture, make_clip(1, 96, 96)[0])
    settings = {"prompt": "a cat", "num_inference_steps": 1, "num_frames": 9}
    request = VideoRequest(model="demo-i2v", settings=settings, image=picture)
    job = ended(service, service.add_video(request).id)
    assert job.state == DONE, job.error
    remake = gallery.remake(job.id, new_seed=True)
    kept = service.home.of_job(job.id) / "picture.png"
    assert (remake.request.image, remake.missing) == (kept, ())
    with gallery.to_queue(remake) as request:
        assert request.image != kept and request.image.read_bytes() == kept.read_bytes()
        again = service.add_video(request)
    assert kept.is_file() and (service.home.of_job(again.id) / "picture.png").is_file()
    service.runner.remove(again.id)
    assert [path for path in service.home.folder.iterdir() if path.name.startswith(".copy")] == []

    kept.write_bytes(kept.read_bytes() + b"x")
    assert gallery.remake(job.id).missing == ("the picture that it was made of has changed",)
    service.runner.remove(job.id)
    remake = gallery.remake(job.id)
    assert remake.missing == ("the picture that it was made of isn't here any more",)
    assert remake.request.image is None
    with pytest.raises(InvalidInputError, match="can't be made again: the picture"):
        gallery.to_queue(remake).__enter__()


def test_what_is_not_here_any_more_is_named(gallery):
    adapter = {"source": "../../adapters/training_" + "0" * 24, "scale": 1.0, "sha256": "0"}
    about = record(lora=[adapter], image="picture.png", image_sha256="0")
    about["model"]["name"] = "/home/somebody/models/mine"
    write(gallery, "a.mp4", about)
    assert gallery.remake("a").missing == (
        "the model mine isn't here any more",
        "an adapter that it was made with isn't here any more",
        "the picture that it was made of isn't here any more",
    )
    about = record()
    about["model"]["name"] = "THUDM/CogVideoX-5b"
    write(gallery, "b.mp4", about)
    assert gallery.remake("b").request.model == "5b"
    assert gallery.remake("b").missing == ("the model 5b isn't on this machine",)


def test_a_video_goes_to_the_trash_and_is_never_deleted(gallery, monkeypatch):
    pytest.importorskip("send2trash")
    path = write(gallery, "a.mp4", record())
    small, moved = gallery.thumbnail("a"), []
    monkeypatch.setattr("send2trash.send2trash", lambda path: moved.append(path))
    gallery.trash("a")
    assert moved == [path] and path.exists() and not small.exists()

    def refuse(_):
        raise OSError("no trash here")

    monkeypatch.setattr("send2trash.send2trash", refuse)
    with pytest.raises(OutputError, match="can't move the video to its trash"):
        gallery.trash("a")
    assert path.exists()
    with pytest.raises(UnknownVideoError):
        gallery.trash("../jobs")


@pytest.fixture
def with_screen(monkeypatch):
    """A desktop that isn't a Mac's."""
    monkeypatch.setattr(module, "ON_A_MAC", False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def test_a_file_is_shown_by_its_name(gallery, monkeypatch, with_screen):
    path, started = write(gallery, "a.mp4", record()), []

    def start(command: list[str], **options) -> subprocess.Popen:
        started.append(command)
        return POPEN([sys.executable, "-c", ""], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    for mac in (True, False):
        monkeypatch.setattr(module, "ON_A_MAC", mac)
        gallery.reveal("a")
    assert started == [["open", "-R", str(path)], ["xdg-open", str(path.parent)]]


def test_a_file_that_cannot_be_shown_is_reported(gallery, monkeypatch, with_screen):
    write(gallery, "a.mp4", record())
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: POPEN(fails, **options))
    with pytest.raises(OutputError, match="can't show the file"):
        gallery.reveal("a")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not module.can_reveal()
    with pytest.raises(OutputError, match="no program that shows files"):
        gallery.reveal("a")


def test_a_gallery_of_a_thousand_files_answers_at_once(gallery):
    path = write(gallery, "v0.mp4", record())
    for number in range(1, 1000):
        shutil.copyfile(path, path.with_name(f"v{number}.mp4"))
    assert len(gallery.page(40)) == 24 and len(gallery._read) == 24
