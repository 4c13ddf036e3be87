"""What a script for diffusers asks of a pipeline: outputs, several videos, generators, adapters."""

import logging
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from adapters import make_adapter
from clips import make_clip
from commands import run
from PIL import Image

from mlx_cogvideo import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXVideoToVideoPipeline,
    InvalidInputError,
    generate_video,
)
from mlx_cogvideo.utils import export_to_video, load_image, load_video
from mlx_cogvideo.video import read_record, read_video, write_video

PROMPT = "a red circle"
TINY = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 2, "guidance_scale": 1}


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained("demo")


@pytest.fixture(scope="module")
def output():
    return CogVideoXPipeline.from_pretrained("demo")(PROMPT, seed=1, **TINY)


def test_an_output_has_floats_and_is_an_array_of_uint8(output):
    (video,) = output.frames
    assert (video.shape, video.dtype) == ((9, 32, 48, 3), np.float32)
    assert 0 <= video.min() < video.max() <= 1
    pixels = np.asarray(output)
    assert pixels.dtype == np.uint8 and (pixels == np.round(video * 255)).all()
    assert len(output) == 9 and all((a == b).all() for a, b in zip(output, pixels, strict=True))


def test_each_output_type_has_the_same_pixels(pipe, output):
    def made(kind):
        return pipe(PROMPT, seed=1, output_type=kind, **TINY)

    (pictures,) = made("pil").frames
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    for other in (pictures, made("uint8").frames[0]):
        assert (np.stack([np.asarray(frame) for frame in other]) == np.asarray(output)).all()
    (frames,) = pipe(PROMPT, seed=1, return_dict=False, **TINY)
    assert (frames[0] == output.frames[0]).all()


def test_pictures_without_pillow_are_refused_at_once(pipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidInputError, match=r"needs Pillow: install it \(pip install pillow\)"):
        pipe(PROMPT, output_type="pil", **TINY)
    assert not pipe.loaded


def test_a_saved_output_can_be_replayed_from_its_record(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output.save("a.mp4")
    record = read_record("a.mp4")
    assert record == output.record
    assert record["model"]["name"] == "demo" and record["settings"]["seed"] == 1
    assert set(record["timings"]) == {"encode", "denoise", "decode"}
    assert run("--replay", "a.mp4", "--output", "b.mp4") == 0
    assert (read_video("a.mp4")[0] == read_video("b.mp4")[0]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"latents": mx.ones((1, 3, 4, 6, 16))}, "latents"),
        ({"callback_on_step_end": lambda *_: None}, "callback_on_step_end"),
    ],
    ids=["latents", "callback"],
)
def test_a_record_that_does_not_hold_everything_is_not_replayed(
    pipe, tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    pipe(PROMPT, **arguments, **TINY).save("a.mp4")
    assert run("--replay", "a.mp4", "--output", "b.mp4") == 2
    assert f"made with more than its record holds: {words}" in capsys.readouterr().err


def test_another_schedule_than_the_models_is_not_replayed(pipe, tmp_path, capsys):
    pipe.scheduler = CogVideoXDDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace"
    )
    pipe(PROMPT, **TINY).save(tmp_path / "a.mp4")
    assert run("--replay", tmp_path / "a.mp4", "--output", tmp_path / "b.mp4") == 2
    assert "the scheduler's configuration" in capsys.readouterr().err


def test_everything_that_shows_frames_is_exported(output, tmp_path):
    pictures = [Image.fromarray(frame) for frame in output]
    for given in (output, output.frames[0], np.asarray(output), pictures):
        assert export_to_video(given, tmp_path / "a.mp4", fps=5) == str(tmp_path / "a.mp4")
        frames, fps = read_video(tmp_path / "a.mp4")
        assert (frames.shape, fps) == ((9, 32, 48, 3), 5)
    assert read_video(export_to_video(output))[1] == 8
    with pytest.raises(InvalidInputError, match="from 0 to 1 as floats; got -1 to 1"):
        export_to_video(np.linspace(-1, 1, 9 * 4 * 4 * 3).reshape(9, 4, 4, 3), tmp_path / "b.mp4")


def test_several_prompts_give_the_videos_of_single_calls(pipe):
    prompts = [PROMPT, "a blue square"]
    many = pipe(prompts, num_videos_per_prompt=2, generator=5, output_type="uint8", **TINY)
    single = pipe("a blue square", seed=8, output_type="uint8", **TINY)
    assert (many.frames[3] == single.frames[0]).all()
    assert not (many.frames[2] == many.frames[3]).all()
    assert [record["settings"]["seed"] for record in many.records] == [5, 6, 7, 8]
    with pytest.raises(InvalidInputError, match="has 4 videos"):
        np.asarray(many)


def test_latents_of_several_videos_are_one_array_that_can_be_given_back(pipe):
    noise = mx.random.normal((2, 3, 4, 6, 16), key=mx.random.key(0))
    both = pipe([PROMPT, "a"], latents=noise, output_type="latent", **TINY).frames
    second = pipe("a", latents=noise[1:], output_type="latent", **TINY).frames
    assert both.shape == noise.shape and mx.array_equal(both[1:], second)


def test_a_generator_is_a_seed(pipe, output, caplog):
    for generator in (1, mx.random.key(1), torch.Generator().manual_seed(1), [1]):
        made = pipe(PROMPT, generator=generator, **TINY)
        assert (made.frames[0] == output.frames[0]).all()
    assert caplog.text.count("the noise is MLX's, not PyTorch's") == 1


def test_a_callback_of_four_arguments_changes_the_latents(pipe):
    seen = []

    def halve(given, step, timestep, tensors):
        seen.append((given is pipe, step, timestep))
        return {"latents": tensors["latents"] / 2}

    arguments = {"seed": 1, "output_type": "latent", **TINY}
    changed = pipe(PROMPT, callback_on_step_end=halve, **arguments).frames
    assert seen == [(True, 0, 999), (True, 1, 499)]
    by_hand = []

    def note(step, timestep, latents):
        by_hand.append(latents)

    pipe(PROMPT, callback_on_step_end=note, **arguments)
    # The last step's halving is applied to what the changed first step led to.
    assert not mx.allclose(changed, by_hand[-1] / 2, atol=1e-3)
    only_last = pipe(
        PROMPT,
        callback_on_step_end=lambda p, step, t, given: (
            {"latents": given["latents"] / 2} if step else given
        ),
        **arguments,
    ).frames
    assert mx.array_equal(only_last, by_hand[-1] / 2)


def test_a_callback_stops_a_run_as_in_diffusers(pipe):
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True
        return tensors

    assert len(pipe(PROMPT, callback_on_step_end=stop, **TINY)) == 9
    assert steps == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": 0.5}, "eta must be 0"),
        ({"timesteps": [999, 499]}, "timesteps can't be given: use num_inference_steps"),
        ({"attention_kwargs": {"scale": 0.5}}, "attention_kwargs: use set_adapters"),
        ({"max_sequence_length": 226}, "max_sequence_length is 32 here"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "can only have latents"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "can only have latents"),
        ({"use_dynamic_cfg": True, "dynamic_cfg": "wave"}, "give one of them"),
        ({"generator": 1, "seed": 1}, "generator is seed: give one of them"),
        ({"generator": "1"}, "generator must be an integer, a key of mx.random.key"),
        ({"generator": [1, 2], "num_videos_per_prompt": 3}, "generator must have 3 entries"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be 1 or more"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": ["a", 3]}, "prompt must be a text; got 3"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, "negative_prompt must have 2"),
        ({"prompt": ["a", "b"], "latents": np.zeros((1, 3, 4, 6, 16))}, "latents must have 2"),
        ({"latents": np.zeros((1, 3, 16, 4, 6))}, r"as permute\(0, 1, 3, 4, 2\) does"),
        ({"output_type": "pt"}, "output_type must be one of np"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_said_before_any_weight_is_read(pipe, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        pipe(**{"prompt": PROMPT, **TINY, **arguments})
    assert not pipe.loaded


def test_lines_for_cuda_do_nothing_and_say_so(caplog):
    pipe = CogVideoXPipeline.from_pretrained("demo", torch_dtype=torch.float16).to("cuda")
    pipe.enable_model_cpu_offload()
    pipe.enable_sequential_cpu_offload()
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    pipe.set_progress_bar_config(disable=True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 7
    assert "torch_dtype is ignored: computing in float32" in caplog.text
    assert caplog.text.count("has nothing to do here") == 6


def test_a_scheduler_that_is_assigned_is_used_with_the_seed_of_the_call(pipe):
    arguments = {"output_type": "latent", **TINY, "num_inference_steps": 4}
    expected = pipe(PROMPT, seed=1, scheduler="dpm", **arguments).frames
    assert isinstance(pipe.scheduler, CogVideoXDDIMScheduler)
    pipe.scheduler = CogVideoXDPMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing"
    )
    assert mx.array_equal(pipe(PROMPT, seed=1, **arguments).frames, expected)
    assert not mx.array_equal(pipe(PROMPT, seed=2, **arguments).frames, expected)
    with pytest.raises(InvalidInputError, match="no field spacing"):
        CogVideoXDPMScheduler.from_config(pipe.scheduler.config, spacing="trailing")
    with pytest.raises(InvalidInputError, match=r"of mlx_cogvideo; got builtins\.str"):
        pipe.scheduler = "dpm"


def test_adapters_are_chosen_by_name_and_fused_ones_stay(pipe, tmp_path):
    def latents():
        return pipe(PROMPT, seed=1, output_type="latent", **TINY).frames

    plain = latents()
    make_adapter(tmp_path / "one")
    pipe.load_lora_weights(
        tmp_path / "one", weight_name="pytorch_lora_weights.safetensors", adapter_name="a"
    )
    whole = latents()
    pipe.set_adapters(["a"], [0.5])
    half = latents()
    assert not mx.array_equal(whole, plain) and not mx.array_equal(half, whole)
    assert pipe.get_active_adapters() == ["a"]
    pipe.fuse_lora(lora_scale=2.0)
    pipe.unload_lora_weights()
    assert mx.array_equal(latents(), whole) and pipe.get_active_adapters() == []
    pipe.unfuse_lora()
    assert mx.array_equal(latents(), plain)
    with pytest.raises(InvalidInputError, match="no adapter 'b'; loaded: none"):
        pipe.set_adapters("b")


def test_an_adapter_has_one_name_and_names_are_texts(pipe, tmp_path):
    make_adapter(tmp_path / "one")
    pipe.load_lora_weights(tmp_path / "one", adapter_name=["a"])
    assert pipe.get_active_adapters() == ["a"]
    for names in ([], ["b", "c"]):
        with pytest.raises(InvalidInputError, match="adapter_name must be one name"):
            pipe.load_lora_weights(tmp_path / "one", adapter_name=names)
    with pytest.raises(InvalidInputError, match="adapter_names must be a text or a list of texts"):
        pipe.set_adapters(5)


def test_pipelines_of_a_task_say_what_they_need(pipe):
    with pytest.raises(InvalidInputError, match="makes videos of text: open it with CogVideoXPip"):
        CogVideoXImageToVideoPipeline.from_pretrained("demo")
    with pytest.raises(InvalidInputError, match="this is an image-to-video model: give it an ima"):
        CogVideoXImageToVideoPipeline.from_pretrained("demo-i2v")(PROMPT)
    with pytest.raises(InvalidInputError, match="give the video to start from"):
        CogVideoXVideoToVideoPipeline.from_pretrained("demo")(PROMPT, **TINY)


def test_pictures_and_clips_are_loaded_in_their_own_size(tmp_path):
    clip = make_clip(9, 32, 48)
    Image.fromarray(clip[0]).save(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4", clip, fps=12)
    write_video(tmp_path / "a", clip, fps=12)
    assert (load_image(tmp_path / "a.png") == clip[0]).all()
    assert (load_video(tmp_path / "a") == clip).all()
    assert (load_video(tmp_path / "a.mp4") == read_video(tmp_path / "a.mp4")[0]).all()
    for load in (load_image, load_video):
        with pytest.raises(InvalidInputError, match="is an address: download it first"):
            load("https://example.com/a.mp4")


@pytest.mark.parametrize("form", ["floats", "pictures", "output"])
def test_a_video_may_be_given_in_every_form_that_a_call_returns(pipe, output, form):
    pixels = np.asarray(output)
    given = {
        "floats": output.frames[0],
        "pictures": [Image.fromarray(frame) for frame in pixels],
        "output": output,
    }[form]
    starts = [
        pipe.condition(pipe.request(PROMPT, video=v, seed=1, **TINY)) for v in (given, pixels)
    ]
    assert mx.array_equal(starts[0].start, starts[1].start)


def test_generate_video_takes_the_settings_of_a_run(tmp_path, monkeypatch):
    make_adapter(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    arguments = {"seed": 1, "dtype": "float32", "compile": False, **TINY}
    plain = generate_video(PROMPT, "demo", **arguments)
    made = generate_video(
        PROMPT, "demo", lora=[("adapter", 0.5)], fps=5, output_path="a.mp4", **arguments
    )
    assert not (plain == made).all()
    settings = read_record("a.mp4")["settings"]
    assert (settings["fps"], settings["compile"], settings["dtype"]) == (5, False, "float32")
    assert [adapter["scale"] for adapter in settings["lora"]] == [0.5]
    assert read_video("a.mp4")[1] == 5


@pytest.mark.parametrize("lora", [["a"], [Path("a")], [("a",)], "a", 5], ids=str)
def test_adapters_without_a_scale_are_refused(lora):
    with pytest.raises(InvalidInputError, match="lora must be a list of adapters and scales"):
        generate_video(PROMPT, "demo", lora=lora)
