"""The page, without a browser: its forms, what it says, and what it serves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio")

from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from mlx_cogvideo.device import size  # noqa: E402
from mlx_cogvideo.errors import InvalidInputError  # noqa: E402
from mlx_cogvideo.runs.settings import RUN_SETTINGS, RunSettings  # noqa: E402
from mlx_cogvideo.web.home import open_home  # noqa: E402
from mlx_cogvideo.web.jobs import DONE, QUEUED, RUNNING, STOPPED, Job, JobStore  # noqa: E402
from mlx_cogvideo.web.models import find_model, list_models  # noqa: E402
from mlx_cogvideo.web.page import add_page, fitting, forms, making, models, queue_panel, training  # noqa: E402
from mlx_cogvideo.web.page.fields import DEPENDENT, Field, visible_fields  # noqa: E402
from mlx_cogvideo.web.page.forms import TABS, Form  # noqa: E402
from mlx_cogvideo.web.page.made import preview_url, sources_of  # noqa: E402
from mlx_cogvideo.web.page.training_parts import frame  # noqa: E402
from mlx_cogvideo.web.page.words import (  # noqa: E402
    HELP,
    LABELS,
    escape,
    file_name,
    help_of,
    place_in_words,
    problem,
    size_in_words,
)
from mlx_cogvideo.web.planning import Estimate  # noqa: E402
from mlx_cogvideo.web.runner import Runner  # noqa: E402
from mlx_cogvideo.web.service import Service, VideoRequest  # noqa: E402

ELSEWHERE = {
    "text": {
        "image": "the tab for pictures",
        "image_fit": "it has neither picture nor clip",
        "image_latent_scale": "it has no picture",
        "video": "the tab for clips",
        "video_start": "it has no clip",
        "video_end": "it has no clip",
        "strength": "it has no clip",
    },
    "image": {
        "video": "the tab for clips",
        "video_start": "it has no clip",
        "video_end": "it has no clip",
        "strength": "it has no clip",
    },
    "video": {
        "image": "the tab for pictures",
        "image_latent_scale": "it has no picture",
        "extend": "a video made of a clip can't be extended",
        "overlap": "a video made of a clip can't be extended",
    },
}
"""The settings that a tab has no field for, and why."""
SETTINGS = {
    "prompt": "a red circle",
    "negative_prompt": "blur",
    "num_frames": 9,
    "width": 64,
    "height": 80,
    "num_inference_steps": 3,
    "seed": 2**63 - 1,
    "guidance_scale": 4.5,
    "dynamic_cfg": "cosine",
    "guidance_range": (0, 2),
    "cache": "teacache",
    "cache_threshold": 0.3,
    "sequential_guidance": True,
    "tiling": "tiled",
    "tile_size": (48, 64),
    "tile_overlap": (0.2, 0.25),
    "quantize": 8,
    "compile": False,
    "fps": 12.5,
    "interpolate": 2,
}
ESTIMATE = Estimate(
    seed=1,
    frames=17,
    width=96,
    height=96,
    fps=8,
    steps=10,
    memory={"decode": 17000},
    available=12000,
    largest=12000,
    seconds=None,
    warnings=(),
    has_previews=True,
)
MARKUP = "<img src=x onerror=alert(1)> {{value}} ${alert(2)} \"q\" 'a'"


@pytest.fixture(scope="module")
def known_models(tmp_path_factory) -> list:
    return list_models(open_home(tmp_path_factory.mktemp("models")))


@pytest.fixture
def service(tmp_path: Path, known_models: list, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service whose jobs are never begun."""
    monkeypatch.setattr(forms, "list_models", lambda home: known_models)
    home = open_home(tmp_path / "home")
    return Service(home, Runner(JobStore(home)))


def form_of(service: Service, tab: str = "text") -> Form:
    with gr.Blocks():
        form = Form(service, tab)
        form.add_folds()
    return form


def values_of(form: Form, updates: list) -> list:
    """What the fields hold after the updates."""
    pairs = zip(form.inputs, updates, strict=False)
    return [update.get("value", component.value) for component, update in pairs]


def filled(form: Form, **about) -> list:
    return values_of(form, form.fill(about))


def add(service: Service, prompt: str = "a red circle") -> Job:
    job_id, _ = service.store.new_folder("video")
    output, about = f"videos/{job_id}.mp4", {"model": "demo", "settings": {"prompt": prompt}}
    return service.runner.add(Job(id=job_id, options={}, about=about, output=output))


@pytest.mark.parametrize("tab", TABS)
def test_a_form_has_a_field_for_each_setting_once_or_says_where_it_is(service, tab):
    form = form_of(service, tab)
    names = list(form.components)
    assert len(names) == len(set(names)) == len({c._id for c in form.inputs})
    settings = set(names) - {"model", "adapters", "weights"}
    assert settings.isdisjoint(ELSEWHERE[tab])
    assert settings | ELSEWHERE[tab].keys() | {"lora", "tiny_vae"} == RUN_SETTINGS.keys()
    ids = [component.elem_id for component in form.inputs]
    assert ids == [f"{tab}-{name}" for name in names]


def test_every_setting_has_a_label_and_help_without_options_of_a_command():
    assert LABELS.keys() == {*RUN_SETTINGS} - {"tiny_vae"}  # a file of the machine
    assert HELP.keys() <= LABELS.keys()
    for name in LABELS:
        assert "--" not in help_of(name) and help_of(name)


@pytest.mark.parametrize("name", [n for n in RUN_SETTINGS if n not in ("image", "video", "lora")])
def test_an_untouched_field_leaves_its_setting_at_the_default(name):
    field = Field(name)
    default = RunSettings.__dataclass_fields__[name].default
    assert field.read(field.show(default)) == (None if default in (None, "") else default)


def test_a_setting_that_is_a_list_or_its_length_is_read_and_shown_as_either():
    field = Field("computed_steps")
    for value, shown in ((22, "22"), ((0, 1, 5), "0, 1, 5")):
        assert field.show(value) == shown and field.read(shown) == value


def test_what_fills_a_form_is_collected_from_it(service):
    form = form_of(service)
    request = form.collect(filled(form, model="demo", settings=SETTINGS))
    assert request == VideoRequest(
        model="demo", settings=SETTINGS | {"uncond": "empty", "extend": 0, "vae": "full"}
    )
    assert RunSettings(**request.settings).seed == 2**63 - 1


def test_settings_as_a_record_has_them_fill_a_form(service):
    form = form_of(service)
    recorded = json.loads(json.dumps(SETTINGS)) | {"dynamic_cfg": True, "unheard_of": 1}
    settings = form.collect(filled(form, settings=recorded)).settings
    assert settings["tile_size"] == (48, 64)
    assert settings["dynamic_cfg"] == "wave"


def test_a_form_is_emptied_of_what_was_in_it_before(service):
    form = form_of(service)
    request = form.collect(filled(form, model="demo", settings={"prompt": "a blue square"}))
    assert request.settings.keys() == {
        *("prompt", "extend", "uncond", "vae", "tiling", "compile", "interpolate")
    }


def test_a_field_that_is_not_shown_does_not_count(service):
    form = form_of(service)
    values = dict(zip(form.components, filled(form, settings=SETTINGS), strict=True))
    values["tiling"] = "none"
    settings = form.collect(list(values.values())).settings
    assert settings["tiling"] == "none"
    assert "tile_size" not in settings and "tile_overlap" not in settings


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", "wide", "width must be a number; got 'wide'"),
        ("tile_size", "1 2 3", "tile_size must be two numbers; got '1 2 3'"),
        ("model", None, "choose a model"),
    ],
)
def test_what_cannot_be_read_is_refused(service, field, value, message):
    form = form_of(service)
    values = dict(zip(form.components, filled(form, settings=SETTINGS), strict=True))
    with pytest.raises(InvalidInputError, match=message):
        form.collect(list((values | {field: value}).values()))


def test_weights_of_adapters_are_one_where_none_are_given(service):
    form = form_of(service)
    ids = ["training_1", "training_2"]
    both = form.collect(filled(form, adapters=[[ids[0], 0.5], [ids[1], 2]]))
    assert both.adapters == ((ids[0], 0.5), (ids[1], 2.0))
    values = dict(zip(form.components, filled(form), strict=True)) | {"adapters": ids}
    assert form.collect(list(values.values())).adapters == ((ids[0], 1.0), (ids[1], 1.0))
    with pytest.raises(InvalidInputError, match="2 adapters need 2 weights"):
        form.collect(list((values | {"weights": "1"}).values()))


def test_the_model_and_other_settings_decide_what_is_shown(service):
    demo, pictures = (find_model(service.home, name) for name in ("demo", "5b-i2v"))
    newer = find_model(service.home, "1.5-5b-i2v")
    assert "image_latent_scale" in visible_fields("image", newer, {})
    assert "image_latent_scale" not in visible_fields("image", pictures, {})
    assert {"width", "height"} <= visible_fields("text", demo, {})
    assert {"width", "height"}.isdisjoint(visible_fields("image", pictures, {}))
    for owner, value, names in (
        ("extend", 1, {"overlap", "source_tiling"}),
        ("cache", "teacache", {"cache_threshold"}),
        ("cache", "latents", {"computed_steps"}),
        ("tiling", "tiled", {"tile_size", "tile_overlap"}),
    ):
        assert names.isdisjoint(visible_fields("text", demo, {}))
        assert names <= visible_fields("text", demo, {owner: value})
    decided = {"cache", "cache_threshold", "computed_steps"}
    assert decided.isdisjoint(visible_fields("text", demo, {"preset": "fast", "cache": "latents"}))


@pytest.mark.parametrize("tab", TABS)
def test_only_dependent_fields_are_ever_hidden_or_differ_by_model(service, tab):
    models = [find_model(service.home, name) for name in ("demo", "2b", "5b-i2v", "1.5-5b-i2v")]
    owners = [{}, {"extend": 1}, {"preset": "fast"}, {"cache": "teacache"}, {"tiling": "tiled"}]
    shown = [visible_fields(tab, model, values) for model in models for values in owners]
    assert set.union(*shown) - set.intersection(*shown) <= set(DEPENDENT)
    assert {name for name in RUN_SETTINGS if Field(name).for_model(models[0])} <= set(DEPENDENT)


def test_a_change_of_an_owner_shows_its_settings(service):
    form = form_of(service)
    assert form.owners == ["extend", "preset", "cache", "tiling"]
    updates = dict(zip(form.dependent, form.adapt("demo", "0", "", "", "tiled"), strict=True))
    assert updates["tile_size"]["visible"] and not updates["overlap"]["visible"]


@pytest.mark.parametrize(("tab", "names"), [("text", ["demo"]), ("image", ["demo-i2v"])])
def test_only_models_that_suit_the_tab_and_are_here_are_offered(service, tab, names):
    form = form_of(service, tab)
    assert [name for _, name in form.components["model"].choices] == names
    assert form.components["model"].value == names[0]


def test_filling_selects_the_tab_and_copies_the_picture(service, tmp_path):
    with gr.Blocks() as blocks, gr.Tabs() as tabs:
        made = making.add_making_tabs(service, blocks, tabs)
    picture = tmp_path / "mine.png"
    picture.write_bytes(Path(made.forms["image"]._drawn()).read_bytes())
    updates = made.fill({"sources": ["image"], "settings": {"seed": 3}}, {"image": picture})
    assert len(updates) == len(made.outputs)
    assert updates[0].selected == "image"
    (copy,) = (Path(u["value"]) for u in updates[1:] if str(u).count(".png"))
    assert copy.read_bytes() == picture.read_bytes()
    assert copy.parent == service.home.folder / "uploads" and "mine" not in copy.name


def test_the_button_queues_a_video_with_a_copy_of_the_picture(service, tmp_path):
    form = form_of(service, "image")
    values = filled(form, settings={"prompt": "a triangle"})
    assert "Add a picture first" in making._make(form, tuple(values))
    values[list(form.components).index("image")] = form._drawn()
    assert "begins now" in making._make(form, tuple(values))
    (job,) = service.store.all()
    assert sources_of(service, job).keys() == {"image"}
    assert Path(values[0]).is_file()
    assert len(list((service.home.folder / "uploads").iterdir())) == 1


def test_a_new_job_begins_only_if_no_other_one_runs_or_waits(service):
    first = add(service)
    assert place_in_words(service.runner, first) == "begins now"
    assert place_in_words(service.runner, add(service)) == "is number 2 in the queue"
    service.store.change(first.id, state=RUNNING)
    second, third = service.store.queued()[0], add(service)
    assert place_in_words(service.runner, second) == "is next in the queue"
    assert place_in_words(service.runner, third) == "is number 2 in the queue"


def test_errors_name_fields_and_no_folder_of_this_machine(service):
    home = service.home.folder
    text = problem(f"{home}/videos/a.mp4 and /Users/jo/b c: give --frames or num_frames", home)
    assert text == "a.mp4 and b c: give “Length (frames)” or “Length (frames)”"


def test_markup_in_a_prompt_is_only_text(service):
    assert not set(escape(MARKUP)) & set("<>{}$\"'")
    form, job = form_of(service), add(service, MARKUP)
    service.store.change(job.id, state=DONE, ended=1.0)
    add(service, MARKUP)
    stopped = add(service, MARKUP)
    service.runner.stop(stopped.id)
    parts = queue_panel._drawn(service)
    for name in ("finished", "queue", "over", "spoken"):
        assert escape(MARKUP) in parts[name]
        assert "<img" not in parts[name] and "{{" not in parts[name]
    assert "<img" not in making._make(form, tuple(filled(form, settings={"width": MARKUP})))


@pytest.mark.parametrize(
    ("prompt", "seed", "name"),
    [
        ("A red circle, moving.", 7, "a-red-circle-moving-7.mp4"),
        ("../../etc/passwd\\ <b>", 0, "etc-passwd-b-0.mp4"),
        ("ein roter Kreis für Zoë", None, "ein-roter-kreis-für-zoë.mp4"),
        ("...", 1, "video-1.mp4"),
        ("a " * 100, 1, "a-" * 30 + "1.mp4"),
    ],
)
def test_a_saved_video_is_named_by_its_prompt_and_seed(prompt, seed, name):
    assert file_name(prompt, seed, ".mp4") == name


def test_buttons_stop_move_resume_and_remove_jobs(service):
    first, second = add(service, "one"), add(service, "two")
    assert queue_panel.carry_out(service, "up", second.id) == ""
    assert [job.id for job in service.store.queued()] == [second.id, first.id]
    queue_panel.carry_out(service, "down", second.id)
    assert [job.id for job in service.store.queued()] == [first.id, second.id]
    queue_panel.carry_out(service, "stop", first.id)
    assert service.store.get(first.id).state == STOPPED
    queue_panel.carry_out(service, "resume", first.id)
    assert service.store.get(first.id).state == QUEUED
    queue_panel.carry_out(service, "remove", first.id)
    assert "removed already" in queue_panel.carry_out(service, "remove", first.id)
    assert queue_panel.carry_out(service, "format", second.id) == ""
    assert [job.id for job in service.store.all()] == [second.id]


def test_only_parts_that_have_changed_are_sent(service):
    shown, *first = queue_panel._changes({}, queue_panel._drawn(service))
    assert all(isinstance(part, str) for part in first)
    _, *second = queue_panel._changes(shown, queue_panel._drawn(service))
    assert not any(isinstance(part, str) for part in second)
    add(service)
    _, *third = queue_panel._changes(shown, queue_panel._drawn(service))
    changed = [
        n for n, p in zip(("spoken", *queue_panel.PARTS), third, strict=True) if p != gr.skip()
    ]
    assert changed == ["queue"]


def test_what_does_not_fit_is_said_with_the_nearest_that_does(service, monkeypatch):
    form = form_of(service)

    def of_a_small_machine(request: VideoRequest) -> Estimate:
        frames = request.settings.get("num_frames", 17)
        return replace(ESTIMATE, frames=frames, memory={"decode": frames * 1000})

    monkeypatch.setattr(service, "estimate", of_a_small_machine)
    text, changes = making._estimate(form, tuple(filled(form)))
    assert changes == {"num_frames": 9}
    assert "more memory than this machine has" in text and "“Length (frames)” 9" in text
    monkeypatch.setattr(service, "estimate", lambda request: replace(ESTIMATE, largest=1))
    text, changes = making._estimate(form, tuple(filled(form)))
    assert changes is None and "choose a smaller model" in text


def test_the_steps_that_are_taken_of_a_clip_are_said():
    assert size_in_words(ESTIMATE).endswith("; 10 steps")
    of_clip = replace(ESTIMATE, steps=6, schedule=8, strength=0.8)
    assert size_in_words(of_clip).endswith("; 6 of 8 steps (strength 0.8)")


def test_a_training_leaves_to_the_model_what_is_empty_or_refuses_what_is_no_number():
    values = ["", [], "", "demo", 10, "", "96", " ", 4, "0.001", 0, 100, "", 250, 25]
    request = training._request(values, clips=())
    assert (request.frames, request.width, request.height) == (None, 96, None)
    with pytest.raises(InvalidInputError, match=r"“Length .frames.” must be a whole number"):
        training._request([*values[:5], "long", *values[6:]], clips=())


def test_a_button_says_how_large_the_copy_will_be(service):
    model = find_model(service.home, "2b")
    plan = service.plan_download("2b", 4)
    html = models._row(service, model, set(), {})
    assert f">4 bits ({size(plan.result)})</button>" in html
    assert ">as published</button>" in html


def test_a_curve_is_to_fall_once_it_has_enough_points_and_has_a_legend_of_several_kinds():
    few, many = ([(n, 1.0, "in training") for n in range(count)] for count in (19, 20))
    assert training._plot(frame(few))["label"] == "Loss after each step, smoothed"
    assert training._plot(frame(many))["label"] == "Loss after each step, smoothed: it should fall"
    assert training._plot(frame(many))["colors_in_legend"] == []
    both = training._plot(frame([*few, (1, 1.0, "at fixed noise")]))
    assert both["colors_in_legend"] == ["in training", "at fixed noise"]


def test_proposals_come_nearer_first_and_end(service):
    model = find_model(service.home, "2b")
    found = list(fitting._candidates(model, VideoRequest(model="2b", settings={})))
    assert found[:3] == [{"quantize": 8}, {"quantize": 4}, {"num_frames": 33}]
    assert found[-1] == {"quantize": 4, "num_frames": 9, "width": 176, "height": 112}
    assert len(found) <= fitting._MOST_TRIES
    fixed = find_model(service.home, "5b-i2v")
    found = list(fitting._candidates(fixed, VideoRequest(model="5b-i2v", settings={})))
    assert not any("width" in changes for changes in found)


def test_the_page_serves_made_videos_by_id_and_nothing_else(service, tmp_path):
    job = add(service)
    (service.home.folder / job.output).write_bytes(b"0123456789")
    (tmp_path / "secret.txt").write_text("secret")
    with TestClient(add_page(FastAPI(), service)) as client:
        assert client.get(f"/made/{job.id}/video").status_code == 404
        service.store.change(job.id, state=DONE)
        part = client.get(f"/made/{job.id}/video", headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"234")
        assert client.get("/made/video_x/video").status_code == 404
        assert client.get(f"/made/{job.id}/preview").status_code == 404
        for path in (tmp_path / "secret.txt", service.home.folder / job.output):
            assert client.get(f"/gradio_api/file={path}").status_code == 403
        for url in ("http://127.0.0.1:9/", "https://example.com/a", "%68ttp://example.com/"):
            refused = client.get(f"/gradio_api/file={url}")
            assert refused.status_code == 403
            assert "another server" in refused.json()["error"]["message"]
        upload = client.post("/gradio_api/upload", files={"files": ("my cat.png", b"a cat")})
        (path,) = upload.json()
        assert path.startswith("/uploads/") and str(tmp_path) not in upload.text
        assert client.get(f"/gradio_api/file={path}").content == b"a cat"
        assert client.get("/gradio_api/file=/uploads/../secret.txt").status_code != 200
        outside = (tmp_path / "secret.txt", service.home.uploads / "../jobs", "x", "../secret.txt")
        for path in (*outside, "http://8.8.8.8/gradio_api/file=x", "https://example.com/a", 1, []):
            described = {"path": str(path) if isinstance(path, Path) else path, "is_stream": True}
            for value in (described, [described], {"video": described}):
                for route in ("queue/join", "run/made_1", "call/made_1"):
                    answer = client.post(f"/gradio_api/{route}", json={"data": [value]})
                    assert answer.status_code == 403, (path, route)
        page = client.get("/")
        assert page.status_code == 200
        config = client.get("/config").json()
        assert str(tmp_path) not in page.text + json.dumps(config)
        assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}


def test_a_preview_has_an_address_while_its_video_is_not_there(service):
    job = add(service)
    assert preview_url(service, job) is None
    events = service.home.of_job(job.id) / "events.jsonl"
    file = service.home.videos / f"{job.id}.mp4.preview.gif"
    file.write_bytes(b"GIF89a")
    events.write_text(json.dumps({"event": "preview", "path": f"../../videos/{file.name}"}) + "\n")
    service.runner._progress.clear()
    assert preview_url(service, job).startswith(f"made/{job.id}/preview?at=")
    events.write_text(json.dumps({"event": "preview", "path": "/etc/passwd"}) + "\n")
    service.runner._progress.clear()
    assert preview_url(service, job) is None


def test_a_file_is_taken_as_it_was_uploaded():
    assert Field("image").read({"path": "a.heic", "url": None}) == "a.heic"
    assert Field("video").read("a.mp4") == "a.mp4"
