"""Models that are downloaded and converted as jobs, from a hub on this machine."""

import shutil

import pytest
from hub_server import HubServer
from huggingface_hub import constants
from services import ended, running_service, wait

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.web.downloads import DownloadMeter
from mlx_cogvideo.web.jobs import DONE, RUNNING, STOPPED
from mlx_cogvideo.web.models import find_model, list_models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The empty cache of the hub's client, in this process and in workers."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A hub whose every repository is the demo, and whose large files stop in the middle."""
    with HubServer(DEMO_PATH).serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def service(tmp_path, cache):
    with running_service(tmp_path / "home") as service:
        yield service


def test_a_download_is_seen_and_stopped_and_goes_on(service, hub, cache, tmp_path):
    assert not find_model(service.home, "2b").is_here
    job = service.add_download("2b", 4)
    progress = lambda: service.runner.progress(job.id)  # noqa: E731
    small = sum(f.stat().st_size for f in hub.files().values() if f.stat().st_size < hub.large)
    wait(service, lambda: progress().stage == "download" and progress().step > small // 2)
    assert progress().unit == "bytes" and progress().step < progress().total
    assert 0 < progress().fraction < 0.9
    with pytest.raises(InvalidInputError, match="2b-q4 is being downloaded already"):
        service.add_download("2b", 4)
    service.runner.stop(job.id)
    assert ended(service, job.id).state == STOPPED
    assert not (service.home.models / "2b-q4").exists()

    hub.gate.set()
    complete = [*hub.sent]
    service.runner.resume(job.id)
    job = ended(service, job.id)
    assert job.state == DONE, job.error
    # What was complete isn't downloaded once more.
    assert complete.count("config.json") == hub.sent.count("config.json") > 0
    assert "spiece.model" in complete and hub.sent.count("spiece.model") == 1

    model = find_model(service.home, "2b-q4")
    assert (model.title, model.is_here) == ("2b-q4, 4 bits", True)
    assert model.bytes < find_model(service.home, "2b").bytes
    assert "2b-q4" in [each.name for each in list_models(service.home)]
    with pytest.raises(InvalidInputError, match="2b-q4 is on this machine already"):
        service.add_download("2b", 4)
    # The server has ended before it noted that the model was made.
    service.store.change(job.id, state=RUNNING)
    with running_service(service.home.folder) as later:
        assert ended(later, job.id).state == DONE


def test_a_model_can_be_had_as_it_is_published(service, hub):
    hub.gate.set()
    job = ended(service, service.add_download("5b", None).id)
    assert job.state == DONE, job.error
    assert find_model(service.home, "5b").is_here
    assert [path.name for path in service.home.models.iterdir()] == []
    with pytest.raises(InvalidInputError, match="5b is on this machine already"):
        service.add_download("5b", None)


def test_a_hub_that_cannot_be_reached_fails_in_one_line(service, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    job = ended(service, service.add_download("2b", None).id)
    assert job.state == "failed" and "the hub can't be reached" in job.error
    assert "\n" not in job.error


def test_a_download_says_what_it_needs_and_no_full_disk_begins_it(service, monkeypatch):
    plan = service.plan_download("5b", 4)
    assert (plan.download // 2**30, plan.result // 2**30) == (19, 6)
    assert service.plan_download("5b", None).result == 0
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=22 * 2**30))
    assert service.plan_download("5b", None).download == plan.download
    with pytest.raises(OutputError) as error:
        service.add_download("5b", 4)
    assert str(error.value) == (
        "the disk has 22.0 GiB free, and 5b-q4 needs 19.6 GiB to download and 6.9 GiB for the copy "
        "in 4 bits: make room first"
    )
    assert service.store.all() == [] and not any(service.home.jobs.iterdir())


@pytest.mark.parametrize(
    ("name", "bits", "message"),
    [("demo", None, "is here"), ("5b", 3, "4 or 8 bits"), ("../x", 4, "there is no model")],
)
def test_what_cannot_be_downloaded_is_refused(service, name, bits, message):
    with pytest.raises(InvalidInputError, match=message):
        service.add_download(name, bits)


def test_what_killed_downloads_have_left_does_not_count(cache):
    blobs = cache / "models--THUDM--CogVideoX-2b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "a.0123abcd.incomplete").write_bytes(b"x" * 50_000)
    (blobs / "done").write_bytes(b"x" * 300)
    meter = DownloadMeter({"model": "2b"})
    (blobs / "b.incomplete").write_bytes(b"x" * 40_000)
    (blobs / "more").write_bytes(b"x" * 2000)
    _, progress = meter.watch([{"event": "download", "bytes": 100_000}])
    assert (progress["stage"], progress["step"]) == ("download", 42_000)
    assert [*meter.watch([{"event": "progress"}])] == [{"event": "progress"}]
