import shutil
import threading

import pytest

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.errors import InvalidInputError
from mlx_cogvideo.web.home import open_home
from mlx_cogvideo.web.jobs import JobStore
from mlx_cogvideo.web.models import find_model
from mlx_cogvideo.web.planning import estimate_video
from mlx_cogvideo.web.runner import Runner
from mlx_cogvideo.web.service import Service, VideoRequest


@pytest.fixture
def home(tmp_path):
    return open_home(tmp_path / "home")


@pytest.fixture
def service(home):
    return Service(home, Runner(JobStore(home)))


def request(model: str = "demo", **settings) -> VideoRequest:
    return VideoRequest(model=model, settings={"prompt": "a circle", **settings})


def test_an_estimate_says_what_the_video_will_be_and_leaves_nothing(home, service):
    (home.videos / "estimate.mp4").write_text("somebody's own")
    found = service.estimate(request(num_inference_steps=6))
    assert (found.frames, found.width, found.height, found.steps) == (17, 96, 96, 6)
    assert found.fits and found.has_previews and found.need == max(found.memory.values())
    assert [path.name for path in home.videos.iterdir()] == ["estimate.mp4"]
    assert not any(home.jobs.iterdir())


def test_a_video_without_a_prompt_is_refused_by_name(service):
    with pytest.raises(InvalidInputError, match="prompt is missing"):
        service.estimate(VideoRequest(model="demo", settings={"seed": 1}))


def test_many_threads_may_ask_at_once(home):
    model, found = find_model(home, "demo"), []

    def ask(number: int) -> None:
        output = home.videos / f"{number}.mp4"
        settings = {"prompt": "a circle", "seed": number}
        found.append(estimate_video(settings, model, output).seed)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3, 4, 5]


def test_a_model_without_colours_for_previews_has_none(home, service):
    shutil.copytree(DEMO_PATH, home.models / "mine")
    (home.models / "mine" / "latent_rgb.json").unlink()
    job = service.add_video(request("mine"))
    assert "preview_every" not in job.options
    assert service.add_video(request()).options["preview_every"]


def test_a_video_that_can_not_be_made_leaves_no_job(home, service):
    with pytest.raises(InvalidInputError):
        service.add_video(request(num_inference_steps=0))
    assert not any(home.jobs.iterdir()) and service.store.all() == []
