"""The story of a video: one generator of events that every consumer iterates over."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from clips import make_clip
from support import watch_networks

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.nn.autoencoder import AutoencoderKLCogVideoX
from mlx_cogvideo.nn.t5 import T5EncoderModel
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel
from mlx_cogvideo.pipeline.events import RunState

SMALL = {"num_frames": 17, "height": 32, "width": 48, "num_inference_steps": 3, "seed": 1}


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


def stages(events) -> list[str]:
    """The stages of events in order, each once."""
    return list(dict.fromkeys(event.stage for event in events))


def video(events) -> np.ndarray:
    return np.concatenate([event.frames for event in events if event.frames is not None])


def test_text_to_video_and_video_to_video_are_one_story(pipe):
    events = list(pipe.events(pipe.request("a circle", **SMALL)))
    assert stages(events) == ["encode", "denoise", "decode"]
    clip = make_clip(17, 32, 48)
    events = list(pipe.events(pipe.request("a circle", video=clip, strength=0.7, **SMALL)))
    assert stages(events) == ["encode", "source", "denoise", "decode"]
    assert [event.done for event in events if event.stage == "denoise"] == [0, 1, 2]


def test_events_give_the_frames_of_a_call(pipe):
    for extend in (0, 1):
        settings = pipe.request("a circle", extend=extend, **SMALL)
        called = pipe("a circle", extend=extend, output_type="uint8", **SMALL)
        assert np.array_equal(video(pipe.events(settings)), called.frames[0])


def test_each_stage_frees_its_network_before_the_next_begins(pipe, monkeypatch):
    in_memory = watch_networks(monkeypatch)
    during = {
        "encode": set(),
        "denoise": {CogVideoXTransformer3DModel},
        "decode": {AutoencoderKLCogVideoX},
    }
    for event in pipe.events(pipe.request("a circle", **SMALL)):
        assert T5EncoderModel not in in_memory()
        assert in_memory() <= during[event.stage]
    assert in_memory() == set()


def test_a_story_goes_on_from_the_state_of_any_of_its_events(pipe):
    settings = pipe.request("a circle", extend=1, **SMALL)
    events = list(pipe.events(settings))
    expected = video(events)
    for event in events:
        if event.stage != "decode":
            again = list(pipe.events(settings, event.run))
            assert np.array_equal(video(again), expected), event.stage


def test_what_has_been_computed_is_not_computed_again(pipe):
    settings = pipe.request("a circle", **SMALL)
    *_, last = pipe.events(settings, output_type="latent")
    embeds_only = RunState(embeds=last.run.embeds)
    assert stages(pipe.events(settings, embeds_only)) == ["denoise", "decode"]
    decoded = list(pipe.events(settings, last.run))
    assert all(event.stage != "denoise" or event.done == 3 for event in decoded)
    assert np.array_equal(video(decoded), np.asarray(pipe("a circle", **SMALL)))


def test_a_run_with_a_step_cache_continues_exactly_from_any_step(pipe):
    more = {"num_inference_steps": 6, "cache": "teacache", "cache_threshold": 0.4}
    settings = pipe.request("a circle", **{**SMALL, **more})
    *events, last = pipe.events(settings, output_type="latent")
    assert last.run.denoising.skipped
    for event in events:
        *_, again = pipe.events(settings, event.run, output_type="latent")
        assert mx.array_equal(again.run.latents, last.run.latents)


@pytest.mark.parametrize("output_type", ["latent", "pil"])
def test_an_output_that_a_video_does_not_have_is_refused_at_once(pipe, output_type):
    with pytest.raises(InvalidInputError):
        pipe.events(pipe.request("a circle", extend=1, overlap=1, **SMALL), output_type=output_type)


def test_latents_alone_are_never_decoded(pipe):
    *_, last = events = list(pipe.events(pipe.request("a", **SMALL), output_type="latent"))
    assert stages(events) == ["encode", "denoise"]
    assert mx.array_equal(last.run.latents, pipe("a", output_type="latent", **SMALL).frames)


def test_a_story_that_ends_early_decodes_the_steps_so_far(pipe):
    settings = pipe.request("a circle", **SMALL)
    events = list(pipe.events(settings, ends_early=lambda: True))
    assert [event.done for event in events if event.stage == "denoise"] == [0, 1]
    assert len(video(events)) == 17


def test_noise_may_be_given(pipe):
    settings = pipe.request("a circle", **SMALL)
    noise = mx.random.normal(settings.geometry.latent_shape, key=mx.random.key(9))
    given = video(pipe.events(settings, noise=noise))
    assert np.array_equal(given, np.asarray(pipe("a circle", latents=noise, **SMALL)))
    other = replace(settings, seed=2)
    assert np.array_equal(video(pipe.events(other, noise=noise)), given)
