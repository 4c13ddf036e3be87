"""The HTTP API: what OpenAI's client and other programs get from it."""

import base64
import io
import json
import re
import threading
import time
from contextlib import closing

import av
import numpy as np
import pytest
from clips import make_clip

pytest.importorskip("gradio", reason="the server needs the extra ui")

from api_server import QUICK, finished, serving, until

from mlx_cogvideo.video import read_record, write_video
from mlx_cogvideo.web.refusals import Refusal
from mlx_cogvideo.web.schema import wanted_from_json

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def png(width: int = 64, height: int = 48) -> bytes:
    """A picture."""
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "rgb24", 1
    encoder.thread_count = 1
    pixels = np.full((height, width, 3), 90, np.uint8)
    (packet,) = encoder.encode(av.VideoFrame.from_ndarray(pixels, "rgb24"))
    return bytes(packet)


def clip(folder, ending: str = "mp4") -> bytes:
    path = folder / f"clip.{ending}"
    write_video(path, make_clip(17, 96, 96), fps=8)
    return path.read_bytes()


def send_form(client, fields: dict, **files):
    """Asks for a video by a multipart form."""
    pairs = [(n, t) for n, value in fields.items() for t in np.atleast_1d(value).tolist()]
    parts = [(name, (None, text)) for name, text in pairs]
    return client.post("/v1/videos", files=[*parts, *files.items()])


def create(client, **fields):
    return client.post("/v1/videos", json={**QUICK, **fields})


def refused(answer, status: int, param: str | None = None) -> str:
    """The message of a refusal."""
    error = answer.json()["error"]
    assert answer.status_code == status and error.keys() == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    return error["message"]


@pytest.fixture
def openai(busy):
    module = pytest.importorskip("openai", reason="OpenAI's client is in the extra ui-test")
    url = f"{busy.base_url}/v1"
    with closing(module.OpenAI(base_url=url, api_key="none", max_retries=0)) as client:
        yield client


def test_openais_client_makes_downloads_lists_and_deletes_a_video(openai, busy, tmp_path):
    settings = {"num_inference_steps": 2, "seed": 7, "tile_size": [48, 48], "compile": True}
    video = openai.videos.create(
        model="demo", prompt="a red circle", size="96x96", seconds="1", extra_body=settings
    )
    assert (video.object, video.size, video.frames) == ("video", "96x96", 9)
    assert video.settings["tile_size"] == [48, 48] and video.settings["compile"] is True
    assert video.seconds == "1.125" and "9 frames" in video.notes[0]
    video = openai.videos.poll(video.id, poll_interval_ms=100)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    openai.videos.download_content(video.id).write_to_file(tmp_path / "video.mp4")
    assert read_record(tmp_path / "video.mp4")["settings"]["seed"] == 7
    picture = openai.videos.download_content(video.id, variant="thumbnail").content
    assert picture.startswith(b"\xff\xd8\xff")
    assert video.id in [each.id for each in openai.videos.list(limit=1)]
    assert openai.videos.delete(video.id).deleted
    assert busy.get(f"/v1/videos/{video.id}").status_code == 404
    assert not list(busy.service.home.videos.iterdir())


def test_openais_client_sends_a_picture_as_a_file_or_a_data_url(openai, busy):
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    as_file = {"input_reference": ("../../x.exe", png())}
    as_url = {"extra_body": {"input_reference": {"image_url": url}}}
    for reference in (as_file, as_url):
        video = openai.videos.create(model="demo-i2v", prompt="it moves", **reference)
        assert video.sources == ["image"]
        assert busy.service.home.of_job(video.id).joinpath("picture.png").read_bytes() == png()
        openai.videos.delete(video.id)
    assert not list(busy.service.home.uploads.iterdir())


def test_openais_client_sees_models(openai):
    names = [model.id for model in openai.models.list()]
    assert names[:2] == ["demo", "demo-i2v"] and "5b" in names
    assert openai.models.retrieve("demo").is_here


def test_a_clip_and_a_moving_gif_are_videos(idle, tmp_path):
    for ending in ("mp4", "gif"):
        file = ("a.png", clip(tmp_path, ending), "image/png")
        answer = send_form(idle, {"model": "demo", "prompt": "x"}, input_reference=file)
        assert answer.json()["sources"] == ["video"]
        stored = idle.service.home.of_job(answer.json()["id"])
        assert [path.name for path in stored.glob("clip.*")] == [f"clip.{ending}"]


def test_without_a_model_the_source_decides(idle):
    assert send_form(idle, {"prompt": "x"}).json()["model"] == "demo"
    answer = send_form(idle, {"prompt": "x"}, input_reference=png()).json()
    assert answer["model"] == "demo-i2v"


def test_json_and_forms_give_the_same_job(idle):
    fields = {"prompt": "é", "guidance_scale": 2.5, "guidance_range": [0, 1], "compile": False}
    by_json = idle.post("/v1/videos", json={**fields, "model": "demo", "seed": 3}).json()
    texts = {
        "model": "demo",
        "prompt": "é",
        "guidance_scale": "2.5",
        "guidance_range[]": ["0", "1"],
        "compile": "false",
        "seed": "3",
        "fps": "",
    }
    by_form = send_form(idle, texts).json()
    assert by_form["settings"] == by_json["settings"]
    assert by_json["settings"]["guidance_range"] == [0, 1]


def test_unknown_fields_and_values_are_named(idle):
    assert "did you mean num_frames?" in refused(create(idle, num_frame=9), 400, "num_frame")
    assert "8N+1" in refused(create(idle, num_frames=10), 400, "num_frames")
    refused(create(idle, size="1x"), 400, "size")
    refused(create(idle, model="demmo"), 400)
    refused(create(idle, scheduler=5), 400, "scheduler")
    refused(create(idle, guidance_range=[1]), 400, "guidance_range")
    refused(create(idle, seconds=1, num_frames=9), 400, "seconds")
    refused(create(idle, adapters=["../x"]), 400)
    refused(create(idle, input_reference={"image_url": "http://example.com/a.png"}), 400)
    refused(idle.post("/v1/videos", json={"model": "demo"}), 400, "prompt")


def test_pages_of_the_list(idle):
    ids = [create(idle).json()["id"] for _ in range(3)]
    page = idle.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in page["data"]] == ids[:0:-1] and page["has_more"]
    assert (page["first_id"], page["last_id"]) == (ids[2], ids[1])
    page = idle.get("/v1/videos", params={"limit": 1, "after": ids[1]}).json()
    assert page["data"][0]["id"] == ids[0]
    page = idle.get("/v1/videos", params={"order": "asc", "after": ids[2]}).json()
    assert page["data"] == [] and not page["has_more"]
    for wrong in ({"limit": 0}, {"limit": 10**30}, {"order": "up"}):
        refused(idle.get("/v1/videos", params=wrong), 400, next(iter(wrong)))
    refused(idle.get("/v1/videos", params={"after": "video_1"}), 404)


def test_waiting_videos_are_moved_stopped_and_resumed(tmp_path):
    with serving(tmp_path) as client:
        first, second = (create(client).json() for _ in range(2))
        assert (first["queue_position"], second["queue_position"]) == (1, 2)
        path = f"/v1/videos/{second['id']}"
        assert client.post(f"{path}/move", json={"position": 1}).json()["queue_position"] == 1
        refused(client.post(f"{path}/move", json={"position": "1"}), 400, "position")
        stopped = client.post(f"{path}/stop").json()
        assert (stopped["state"], stopped["status"]) == ("stopped", "failed")
        assert stopped["error"]["code"] == "stopped"
        refused(client.post(f"{path}/stop"), 409)
        refused(client.get(f"{path}/content"), 409)
        assert client.post(f"{path}/resume").json()["state"] == "queued"
        refused(client.post(f"{path}/resume"), 409)


def test_a_remix_has_the_settings_and_the_picture_of_another_video(idle):
    fields = {"model": "demo-i2v", "prompt": "x", "seed": "5", "num_inference_steps": "3"}
    first = send_form(idle, fields, input_reference=png()).json()
    remix = idle.post(f"/v1/videos/{first['id']}/remix", json={"prompt": "y", "seed": 6}).json()
    assert remix["remixed_from_video_id"] == first["id"]
    assert remix["settings"] == {"prompt": "y", "seed": 6, "num_inference_steps": 3}
    assert remix["sources"] == ["image"]


def test_a_running_video_is_stopped_and_continues(busy):
    video_id = create(busy, num_inference_steps=200).json()["id"]
    path = f"/v1/videos/{video_id}"
    until(lambda: busy.get(path).json()["step"] >= 2)
    assert busy.post(f"{path}/stop").json()["state"] in ("stopping", "stopped")
    stopped = finished(busy, video_id)
    assert stopped["state"] == "stopped" and 2 <= stopped["step"] < 200
    busy.post(f"{path}/resume")
    until(lambda: busy.get(path).json()["step"] > stopped["step"])
    assert busy.delete(path).json()["deleted"]
    until(lambda: busy.get(path).status_code == 404)


def test_events_tell_of_progress_and_the_end(busy):
    video_id = create(busy).json()["id"]
    events = []
    with busy.stream("GET", f"/v1/videos/{video_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                events.append([line.removeprefix("event: ")])
            elif line.startswith("data: "):
                events[-1].append(json.loads(line.removeprefix("data: ")))
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["end"]
    assert events[-1][1]["status"] == "completed" and len(events) > 2
    progress = [video["progress"] for _, video in events]
    assert progress == sorted(progress)
    content = busy.get(f"/v1/videos/{video_id}/content")
    assert f'filename="{video_id}.mp4"' in content.headers["content-disposition"]
    part = busy.get(f"/v1/videos/{video_id}/content", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, content.content[4:8])
    assert len(av.open(io.BytesIO(content.content)).streams.video) == 1


def test_many_listeners_leave_the_server_free(idle):
    video_id = create(idle).json()["id"]
    threads, open_streams, end = [], [], threading.Event()

    def listen():
        with idle.stream("GET", f"/v1/videos/{video_id}/events") as answer:
            next(answer.iter_lines())
            open_streams.append(answer)
            end.wait()

    for _ in range(60):
        threads.append(threading.Thread(target=listen))
        threads[-1].start()
    try:
        until(lambda: len(open_streams) == 60)
        begin = time.monotonic()
        assert idle.get(f"/v1/videos/{video_id}").status_code == 200
        assert time.monotonic() - begin < 5
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_the_description_names_every_setting_and_loads_nothing(idle):
    page = idle.get("/docs").text
    assert "num_inference_steps" in page and "input_reference" in page
    assert not re.search(r"<script|<link|<img|src=|https?://", page)
    openapi = idle.get("/openapi.json").json()
    bodies = openapi["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert bodies.keys() == {"application/json", "multipart/form-data"}
    assert "/v1/videos/{video_id}/events" in openapi["paths"]
    assert idle.get("/").url.path == "/" and idle.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("value", [22, [0, 1, 5, 9]])
def test_a_setting_may_be_a_list_or_its_length(value):
    wanted = {"prompt": "a", "cache": "latents", "computed_steps": value}
    settings = wanted_from_json(json.dumps(wanted).encode()).settings
    assert settings["computed_steps"] == (value if isinstance(value, int) else tuple(value))
    with pytest.raises(Refusal, match="computed_steps must be"):
        wanted_from_json(json.dumps(wanted | {"computed_steps": "few"}).encode())
