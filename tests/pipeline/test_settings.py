"""The settings of a video: one dataclass, from which everything that lists them is made."""

import inspect
import logging
from dataclasses import FrozenInstanceError, replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError, generate_video
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.pipeline.fields import settings_of
from mlx_cogvideo.pipeline.overrides import override
from mlx_cogvideo.pipeline.settings import VideoSettings

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
    given = np.asarray(pipe(prompt_embeds=np.array(embeds), guidance_scale=1, **size))
    assert (given == np.asarray(pipe("a circle", guidance_scale=1, **size))).all()


@pytest.mark.parametrize("address", ["https://example.com/a.mp4", "file:///a.mp4"])
def test_an_address_is_refused_as_such(pipe, address):
    with pytest.raises(InvalidInputError, match="is an address: download it first"):
        pipe.request("a", video=address)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_frames": True}, "num_frames must be a whole number; got True"),
        ({"seed": np.bool_(True)}, "seed must be a whole number"),
        ({"guidance_scale": "6"}, "guidance_scale must be a number; got '6'"),
        ({"guidance_scale": -3}, "guidance_scale must be a finite number, 0 or more; got -3"),
        ({"sequential_guidance": "no"}, "sequential_guidance must be True or False; got 'no'"),
        ({"dynamic_cfg": 3}, "dynamic_cfg must be True or False or a text; got 3"),
        ({"tile_size": 32}, "tile_size must be a list of whole numbers; got 32"),
        ({"tile_overlap": ("a", "b")}, "tile_overlap must be a list of numbers; got tuple"),
        ({"guidance_range": "01"}, "guidance_range must be a list of whole numbers"),
        ({"height": np.zeros((50, 50))}, "height must be a whole number; got ndarray"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(setting, words):
    with pytest.raises(InvalidInputError, match=words) as error:
        VideoSettings(**setting)
    assert "\n" not in str(error.value)


def test_none_is_the_default_and_lists_of_other_libraries_are_taken():
    settings = VideoSettings(
        negative_prompt=None, tiling=None, tile_size=np.array([32, 48]), extend=None
    )
    assert (settings.negative_prompt, settings.tiling, settings.extend) == ("", "auto", 0)
    assert settings.tile_size == (32, 48)


@pytest.mark.parametrize("dtype", ["float16", "torch.float16", np.float16, np.dtype("float16")])
def test_a_dtype_may_be_a_name_or_that_of_another_library(dtype):
    assert CogVideoXPipeline.from_pretrained("demo", dtype=dtype).dtype == mx.float16


@pytest.mark.parametrize("dtype", ["fp8", "", 16, True, mx.int32, float])
def test_a_dtype_that_a_model_cannot_have_is_refused_before_a_download(dtype):
    with pytest.raises(InvalidInputError, match="dtype must be one of float16, bfloat16, float32"):
        CogVideoXPipeline.from_pretrained("no/such-model", dtype=dtype)


SIZE = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 1, "seed": 1}


@pytest.mark.parametrize("convert", [np.array, lambda x: np.array(x, np.float64), mx.array.tolist])
def test_noise_of_another_library_gives_the_video_of_mlx(pipe, convert):
    noise = mx.random.normal((1, 3, 4, 6, 16), key=mx.random.key(3))
    options = {"guidance_scale": 1, "output_type": "latent", **SIZE}
    expected = pipe("a circle", latents=noise, **options).frames
    assert mx.array_equal(pipe("a circle", latents=convert(noise), **options).frames, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"latents": "noise"}, "latents must be an array of numbers; got str"),
        ({"latents": np.full((1, 3, 4, 6, 16), np.nan)}, "latents must be finite"),
        ({"prompt_embeds": np.zeros((1, 32, 64))}, "prompt_embeds take the place of a prompt"),
        ({"negative_prompt_embeds": np.zeros((1, 5, 64))}, "one text_length; got 5 and 32"),
        ({"callback_on_step_end": 3}, "must be a function of three or four arguments; got 3"),
        ({"on_progress": lambda pipe, *, step: None}, "on_progress must be a function of three"),
        ({"output_type": "float"}, "output_type must be one of np .float32"),
    ],
)
def test_a_wrong_argument_of_a_call_is_refused_before_any_weight_is_read(pipe, arguments, words):
    with pytest.raises(InvalidInputError, match=words):
        pipe("a circle", **SIZE | arguments)
    assert not pipe.loaded


@pytest.mark.parametrize(
    "call",
    [
        lambda pipe: pipe.load_lora("adapter", "0.5"),
        lambda pipe: pipe.load_lora("adapter", None),
        lambda pipe: pipe.load_lora(None),
        lambda pipe: pipe.from_pretrained(None),
        lambda pipe: pipe.from_pretrained(b"demo"),
        lambda pipe: pipe.from_pretrained("demo", revision="main"),
        lambda pipe: pipe.geometry("9"),
        lambda pipe: pipe.encode_video([], "9"),
        lambda pipe: generate_video("a", "demo", output_path=3),
        lambda pipe: generate_video("a", "demo", cfg_scale=2.0, guidance_scale=6.0),
    ],
)
def test_another_call_refuses_a_wrong_type_as_one_of_its_own_errors(pipe, call):
    with pytest.raises(InvalidInputError):
        call(pipe)


@pytest.fixture
def messages(caplog, monkeypatch):
    """Returns a function that gives the messages of the package, even after a command ran."""
    monkeypatch.setattr(logging.getLogger("mlx_cogvideo"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"negative_prompt": "b", "guidance_scale": 1}, "negative_prompt has no effect: guidance"),
        ({"uncond": "zero", "guidance_scale": 0}, "uncond has no effect"),
        ({"dynamic_cfg": "wave", "guidance_scale": 1}, "dynamic_cfg has no effect"),
        ({"sequential_guidance": True, "guidance_scale": 1}, "sequential_guidance has no effect"),
        ({"tiling": "exact"}, "tiling has no effect: no frames are computed"),
        ({"prompt": "a 猫 circle"}, "the prompt has characters that the model doesn't know: 猫"),
    ],
)
def test_what_has_no_effect_is_a_warning(pipe, messages, arguments, words):
    stop = {"callback_on_step_end": lambda *_: False, "output_type": "latent"}
    pipe(**{"prompt": "a circle", **SIZE, **stop, **arguments})
    assert sum(words in message for message in messages()) == 1


def test_settings_that_have_an_effect_are_no_warning(pipe, messages):
    stop = {"callback_on_step_end": lambda *_: False, "output_type": "latent"}
    pipe("a circle", "a square", dynamic_cfg="wave", uncond="empty", **SIZE, **stop)
    assert messages() == []
