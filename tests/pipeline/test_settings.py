"""The settings of a video: one dataclass, from which everything that lists them is made."""

import inspect
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError, generate_video
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.pipeline.fields import settings_of
from mlx_cogvideo.pipeline.settings import VideoSettings, override

NAMES = settings_of(VideoSettings)


@pytest.fixture(scope="module")
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


def test_settings_are_frozen_and_keyword_only():
    with pytest.raises(TypeError):
        VideoSettings("a prompt")
    with pytest.raises(FrozenInstanceError):
        VideoSettings(prompt="a prompt").prompt = "another"


@pytest.mark.parametrize(
    "call", [CogVideoXPipeline.__call__, CogVideoXPipeline.request, generate_video]
)
def test_a_python_call_takes_and_documents_every_setting(call):
    parameters = inspect.signature(call).parameters
    for name in NAMES:
        field = VideoSettings.__dataclass_fields__[name]
        assert parameters[name].default == field.default
        assert f"{name}: " in call.__doc__


def test_prompts_may_be_given_by_position_and_nothing_else(pipe):
    settings = pipe.request("a circle", "a square", seed=1)
    assert (settings.prompt, settings.negative_prompt) == ("a circle", "a square")
    with pytest.raises(TypeError):
        pipe.request("a circle", "a square", 9)
    with pytest.raises(TypeError, match="num_inference_step"):
        pipe("a circle", num_inference_step=3)


def test_one_call_takes_its_arguments_by_position_and_returns_frames():
    signature = inspect.signature(generate_video)
    names = "prompt model num_frames height width num_inference_steps cfg_scale seed output_path"
    names += " tiling image video strength"
    assert [*signature.bind(*names.split()).arguments] == names.split()
    assert signature.return_annotation is np.ndarray
    with pytest.raises(TypeError):
        generate_video("a", "demo", prompt="b")
    with pytest.raises(InvalidInputError, match="give one of them"):
        generate_video("a", "demo", cfg_scale=2.0, guidance_scale=3.0)


def test_a_wrong_argument_names_the_call(pipe):
    with pytest.raises(TypeError, match=r"CogVideoXPipeline\.request\(\).*zoom"):
        pipe.request("a", zoom=2)


def test_resolved_settings_leave_nothing_open_and_resolve_to_themselves(pipe):
    settings = pipe.request("a circle", extend=1, tile_size=(48, 48), cache="teacache")
    for name in ("num_frames", "height", "overlap", "seed", "cache_threshold", "source_tiling"):
        assert getattr(settings, name) is not None
    again = pipe.request(**settings.to_dict())
    assert again == settings


def test_every_setting_survives_a_record(pipe):
    settings = pipe.request("a circle", extend=1, tile_overlap=(0.5, 0.5), cache="first-block")
    values = settings.to_dict()
    assert values.keys() == {name for name in NAMES if name in values}
    restored = VideoSettings.from_dict(values)
    for name in NAMES:
        assert getattr(restored, name) == getattr(settings, name)


def test_pixels_are_recorded_as_such():
    values = VideoSettings(video=np.zeros((9, 8, 8, 3), np.uint8)).to_dict()
    assert values["video"] == "an array" and "image" not in values


def test_a_setting_that_is_unknown_is_named():
    with pytest.raises(InvalidInputError, match="zoom"):
        VideoSettings.from_dict({"prompt": "a", "zoom": 2})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"seed": -1}, "seed must be from 0 to"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"strength": 0}, "strength must be above 0"),
        ({"extend": -1}, "extend must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(setting, words):
    with pytest.raises(InvalidInputError, match=words):
        VideoSettings(**setting)


def test_old_names_of_values_are_understood(pipe):
    assert VideoSettings(tiling="seamless", source_tiling="seamless").tiling == "exact"
    assert pipe.request("a", tiling="seamless").to_dict()["tiling"] == "exact"
    assert VideoSettings(cache="none").cache is None


def test_a_new_value_resets_what_belonged_to_the_old_one():
    recorded = {"cache": "teacache", "cache_threshold": 0.5, "tile_size": [32, 32], "lora": []}
    assert override(recorded, {"cache": "first-block"}) == {
        "cache": "first-block",
        "tile_size": [32, 32],
        "lora": [],
    }
    assert "tile_size" not in override(recorded, {"tiling": "none"})
    assert override({}, {"tile_size": (32, 32)})["tiling"] == "tiled"
    for scale in (-1.0, 0.0, 1.0):
        assert "guidance_range" not in override(
            {"guidance_range": [0, 2]}, {"guidance_scale": scale}
        )
    assert "guidance_range" in override({"guidance_range": [0, 2]}, {"guidance_scale": 1.5})


def test_settings_that_belong_to_others_name_settings_that_exist():
    for about in NAMES.values():
        assert about.belongs_to is None or about.belongs_to in NAMES


def test_resolved_settings_of_another_seed_are_other_settings(pipe):
    settings = pipe.request("a", seed=1)
    assert replace(settings, seed=2) != settings


def test_numbers_of_other_libraries_and_whole_floats_are_taken(pipe):
    settings = pipe.request("a", num_frames=9.0, seed=np.int64(3), guidance_scale=np.float32(2))
    assert (settings.num_frames, settings.seed, settings.guidance_scale) == (9, 3, 2.0)
    assert all(
        type(v) in (int, float, bool, str, list, type(None)) for v in settings.to_dict().values()
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"prompt": ["a", "b"]}, "prompt must be a text; got list"),
        ({"extend": 1.5}, "extend must be a whole number"),
        ({"height": "480"}, "height must be a whole number"),
        ({"guidance_scale": "six"}, "guidance_scale must be a number"),
        ({"seed": float("inf")}, "seed must be a whole number"),
    ],
)
def test_a_wrong_type_is_refused_by_name(setting, words):
    with pytest.raises(InvalidInputError, match=words):
        VideoSettings(**setting)


@pytest.mark.parametrize("shape", [(2, 32, 24), (32, 24), (1, 32, 7)])
def test_embeddings_of_a_wrong_shape_are_refused_before_any_weight_is_read(pipe, shape):
    with pytest.raises(InvalidInputError, match="prompt_embeds must have shape"):
        pipe(prompt_embeds=np.zeros(shape, np.float32), guidance_scale=1)


def test_embeddings_of_numpy_are_taken(pipe):
    size = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 1, "seed": 1}
    embeds = pipe.encode_prompt("a circle")
    given = pipe(prompt_embeds=np.array(embeds), guidance_scale=1, **size)
    assert (given == pipe("a circle", guidance_scale=1, **size)).all()


@pytest.mark.parametrize("address", ["https://example.com/a.mp4", "file:///a.mp4"])
def test_an_address_is_refused_as_such(pipe, address):
    with pytest.raises(InvalidInputError, match="is an address: download it first"):
        pipe.request("a", video=address)
