"""A model's folder recommends settings; whatever the user gives goes before them."""

import json
import shutil
from dataclasses import fields

import pytest
from commands import PROMPT, errors, generate, run
from config_mutations import linked_demo

from mlx_cogvideo import CheckpointError, CogVideoXPipeline, generate_video
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.checkpoints.model_configurations import ModelConfigurations
from mlx_cogvideo.checkpoints.recommended import KEY, RecommendedSettings
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.options import default_words
from mlx_cogvideo.diffusion.guidance import GUIDANCE_SCHEDULES
from mlx_cogvideo.diffusion.schedulers import SCHEDULERS
from mlx_cogvideo.pipeline.resolver import DEFAULTS
from mlx_cogvideo.runs.settings import RunSettings
from mlx_cogvideo.video import read_record

ALL = {"num_inference_steps": 7, "guidance_scale": 3, "dynamic_cfg": "cosine", "scheduler": "dpm"}


def recommend(folder, values=None) -> None:
    """Has a model folder recommend settings; None is one that says nothing of them."""
    file = folder / "model_index.json"
    index = {name: value for name, value in json.loads(file.read_text()).items() if name != KEY}
    file.write_text(json.dumps(index if values is None else {**index, KEY: values}))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A copy of the demo that recommends all that a folder can."""
    monkeypatch.chdir(tmp_path)
    folder = linked_demo(tmp_path / "model")
    recommend(folder, ALL)
    return folder


def sampling(capsys, *arguments) -> tuple[str, str]:
    """Runs a dry run; returns what it says of the sampling and of the model's defaults."""
    capsys.readouterr()
    assert run(*arguments, "--output", "new.mp4", "--seed", 1, "--dry-run") == 0
    lines = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().err.splitlines() if " " in line
    )
    return lines["sampling"].removesuffix(", seed 1"), lines.get("defaults", "")


def test_what_a_folder_recommends_is_what_is_not_given(model, capsys):
    this = ["--model", model, "--prompt", PROMPT]
    assert sampling(capsys, *this) == (
        "7 steps of dpm, guidance 3 (cosine)",
        "the model recommends --steps 7, --guidance 3, --guidance-schedule cosine, --scheduler dpm",
    )
    given = ["--guidance", 2, "--guidance-schedule", "constant", "--scheduler", "ddim"]
    assert sampling(capsys, *this, *given) == (
        "7 steps of ddim, guidance 2",
        "the model recommends --steps 7",
    )
    model.with_name("a.json").write_text('{"steps": 5, "guidance": 4}')
    found = sampling(capsys, *this, "--config", "a.json", "--steps", 4)
    assert found[0] == "4 steps of dpm, guidance 4 (cosine)"
    recommend(model)
    assert sampling(capsys, *this) == ("50 steps of ddim, guidance 6", "")


def test_a_replay_keeps_what_is_recorded(model, capsys):
    assert generate("a.safetensors", "--guidance", 6, "--scheduler", "ddim") == 0
    again = ["--replay", "a.safetensors", "--model", model]
    assert sampling(capsys, *again) == ("2 steps of ddim, guidance 6", "")
    assert sampling(capsys, *again, "--steps", 3) == ("3 steps of ddim, guidance 6", "")


def test_python_takes_them_too(model):
    recommend(model, {**ALL, "num_inference_steps": 1})
    pipe = CogVideoXPipeline.from_pretrained(model)
    settings, other = pipe.request(PROMPT), pipe.request(PROMPT, guidance_scale=6)
    assert (settings.guidance_scale, settings.recommended) == (3, tuple(ALL))
    assert other.guidance_scale == 6 and "guidance_scale" not in other.recommended
    generate_video(PROMPT, model, 9, 32, 48, seed=1, output_path="a.mp4")
    recorded = read_record("a.mp4")["settings"]
    expected = {**ALL, "num_inference_steps": 1}
    assert {name: recorded[name] for name in ALL} == expected


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.alias for variant in VARIANTS])
def test_a_folder_goes_before_the_variant(variant):
    contents = {"transformer": variant.architecture, "vae": {}, "text_encoder": {}}
    official = {"scheduler": variant.scheduler, "dynamic_cfg": variant.dynamic_cfg}
    assert ModelConfigurations(contents).recommended == official
    own = {"scheduler": "ddim", "guidance_scale": 4}
    assert ModelConfigurations({**contents, "recommended": own}).recommended == official | own


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be from 1 to 1000; got 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number; got 2.5"),
        ({"guidance_scale": "high"}, 'guidance_scale must be a number; got "high"'),
        ({"guidance_scale": float("nan")}, "guidance_scale must be from 0 to 1000; got NaN"),
        ({"dynamic_cfg": "sine"}, "dynamic_cfg must be null or "),
        ({"scheduler": ["ddim"]}, "scheduler must be a text"),
        ({"image": "/etc/hosts"}, "image isn't one of num_inference_steps, guidance_scale, "),
        ([6], f"{KEY} must be an object of settings; got [6]"),
    ],
    ids=str,
)
def test_a_wrong_recommendation_is_one_line_that_names_the_file(model, capsys, values, problem):
    recommend(model, values)
    with pytest.raises(CheckpointError):
        CogVideoXPipeline.from_pretrained(model)
    assert generate("a.mp4", "--model", model) == 1
    assert convert(["--model", str(model), "-q", "4", "--mlx-path", "packed"]) == 1
    for error in errors(capsys.readouterr().err):
        assert error.startswith(f"error: {model / 'model_index.json'}: {KEY}: {problem}")


def test_a_converted_folder_recommends_the_same(model):
    assert convert(["--model", str(model), "--dtype", "float16", "--mlx-path", "same"]) == 0
    assert convert(["--model", "demo-i2v", "-q", "4", "--mlx-path", "packed"]) == 0
    for name, expected in (("same", model), ("packed", DEMO_PATH.with_name("demo_i2v"))):
        ours, theirs = (CogVideoXPipeline.from_pretrained(each) for each in (name, expected))
        assert ours.recommended == theirs.recommended != {}


def test_a_part_of_a_model_takes_what_its_base_recommends(model, tmp_path):
    shutil.copytree(model / "transformer", "mine/transformer")
    mine = tmp_path / "mine"
    assert CogVideoXPipeline.from_pretrained(mine, base=model).recommended == ALL
    (mine / "model_index.json").write_text("{}")
    assert CogVideoXPipeline.from_pretrained(mine, base=model).recommended == {}


def test_the_settings_and_their_values_are_those_of_a_run():
    assert [field.name for field in fields(RecommendedSettings)] == list(DEFAULTS)
    for scheduler in SCHEDULERS:
        RecommendedSettings(scheduler=scheduler)
    for schedule in GUIDANCE_SCHEDULES:
        RecommendedSettings(dynamic_cfg=schedule)
    for name in ("num_inference_steps", "guidance_scale", "dynamic_cfg"):
        words = f"{DEFAULTS[name]:g}" if name != "dynamic_cfg" else DEFAULTS[name]
        assert default_words(RunSettings, name) == f"{words}, or the model's recommendation"
