"""Presets: how much of the work a run does, by lists that a tuning has found or the usual ones."""

import json

import pytest

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import BUNDLED
from mlx_cogvideo.diffusion.schedulers import SCHEDULERS
from mlx_cogvideo.errors import CheckpointError, InvalidInputError
from mlx_cogvideo.pipeline.overrides import override
from mlx_cogvideo.pipeline.presets import keep_tuned_lists, presets_file, tuned_lists
from mlx_cogvideo.pipeline.recording import make_record

LISTS = {"balanced": (0, 1, 3, 5), "fast": (0, 1, 6)}


@pytest.fixture(scope="module")
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained("demo")


def sampler(pipe, steps: int = 8, name: str = "ddim", **changes):
    made = SCHEDULERS[name].from_config(pipe.scheduler_config, **changes)
    made.set_timesteps(steps)
    return made


def resolved(pipe, preset, **settings):
    made = pipe.request("a circle", preset=preset, **{"num_inference_steps": 8, **settings})
    return made.cache, made.computed_steps


def test_without_a_tuning_presets_have_the_usual_lists(pipe):
    assert resolved(pipe, None) == resolved(pipe, "exact") == (None, None)
    for steps, counts in ((50, (22, 17)), (8, (4, 3)), (2, (2, 2))):
        for preset, count in zip(LISTS, counts, strict=True):
            many = {"num_inference_steps": steps}
            usual = resolved(pipe, None, cache="latents", computed_steps=count, **many)
            assert resolved(pipe, preset, **many) == usual
            assert len(usual[1]) == count
    assert resolved(pipe, "fast", num_inference_steps=1) == ("latents", (0,))


def test_a_tuning_is_for_its_model_sampler_and_steps(pipe):
    keep_tuned_lists(pipe, sampler(pipe), LISTS)
    for preset, steps in LISTS.items():
        assert resolved(pipe, preset) == ("latents", steps)
        assert resolved(pipe, preset, scheduler="dpm") != ("latents", steps)
        assert resolved(pipe, preset, num_inference_steps=9)[1] != steps
    assert resolved(pipe, "exact") == (None, None)
    assert tuned_lists(pipe, sampler(pipe, snr_shift_scale=3.0)) == {}
    assert tuned_lists(CogVideoXPipeline.from_pretrained("demo-i2v"), sampler(pipe)) == {}


def test_a_copy_in_another_folder_or_in_4_bits_has_the_lists_of_the_model(pipe, tmp_path):
    keep_tuned_lists(pipe, sampler(pipe), LISTS)
    copy = tmp_path / "copy"
    copy.symlink_to(BUNDLED["demo"])
    for other in (
        CogVideoXPipeline.from_pretrained(copy, dtype="bfloat16"),
        CogVideoXPipeline.from_pretrained("demo", quantize=4),
    ):
        assert tuned_lists(other, sampler(pipe)) == LISTS


def test_a_later_tuning_replaces_its_own_lists_and_no_others(pipe):
    keep_tuned_lists(pipe, sampler(pipe), LISTS)
    keep_tuned_lists(pipe, sampler(pipe, name="dpm"), {"fast": (0, 1, 7)})
    keep_tuned_lists(pipe, sampler(pipe, 9), {"fast": (0, 1, 8)})
    keep_tuned_lists(pipe, sampler(pipe), {"fast": (0, 1, 4)})
    assert tuned_lists(pipe, sampler(pipe)) == {"fast": (0, 1, 4)}
    assert tuned_lists(pipe, sampler(pipe, name="dpm")) == {"fast": (0, 1, 7)}
    assert tuned_lists(pipe, sampler(pipe, 9)) == {"fast": (0, 1, 8)}
    assert (
        resolved(pipe, "balanced")[1] == resolved(pipe, None, cache="latents", computed_steps=4)[1]
    )


@pytest.mark.parametrize(
    "contents",
    [
        "no JSON",
        "[]",
        '{"format": 2, "models": {}}',
        '{"format": 1, "models": []}',
        '{"format": 1, "models": {KEY: 3}}',
        '{"format": 1, "models": {KEY: {SAMPLING: [1, 2]}}}',
        '{"format": 1, "models": {KEY: {SAMPLING: {"fast": 3}}}}',
        '{"format": 1, "models": {KEY: {SAMPLING: {"fast": [0, 1, 9]}}}}',
        '{"format": 1, "models": {KEY: {SAMPLING: {"fast": [0, 2, 1]}}}}',
        '{"format": 1, "models": {KEY: {SAMPLING: {"fast": []}}}}',
        '{"format": 1, "models": {KEY: {SAMPLING: {"fast": ["0", "1"]}}}}',
        '{"format": 1, "models": {KEY: {SAMPLING: {"fast": [0, 1, 2.5]}}}}',
        '{"format": 1, "models": {KEY: {SAMPLING: {"fast": [false, true]}}}}',
    ],
)
def test_a_damaged_file_is_named_in_one_line(pipe, contents):
    keep_tuned_lists(pipe, sampler(pipe), LISTS)
    ((key, samplings),) = json.loads(presets_file().read_text())["models"].items()
    (sampling,) = samplings
    contents = contents.replace("KEY", json.dumps(key)).replace("SAMPLING", json.dumps(sampling))
    presets_file().write_text(contents)
    with pytest.raises(CheckpointError) as failure:
        resolved(pipe, "fast")
    assert str(presets_file()) in str(failure.value) and "\n" not in str(failure.value)
    assert resolved(pipe, None) == (None, None)  # whoever asks for no preset doesn't notice


@pytest.mark.parametrize(
    "beside", [{"cache": "teacache"}, {"cache_threshold": 0.1}, {"computed_steps": 3}]
)
def test_a_preset_and_what_it_decides_cannot_both_be_given(pipe, beside):
    for preset in ("exact", "fast"):
        with pytest.raises(InvalidInputError, match=f"preset and {next(iter(beside))} say"):
            resolved(pipe, preset, **beside)
    with pytest.raises(InvalidInputError, match="preset must be one of exact, balanced, fast"):
        resolved(pipe, "quick")


def test_a_given_preset_replaces_what_a_record_has_and_the_reverse():
    recorded = {"prompt": "a", "cache": "teacache", "cache_threshold": 0.1, "computed_steps": None}
    assert override(recorded, {"preset": "fast"}) == {"prompt": "a", "preset": "fast"}
    assert override(recorded, {"cache": "latents"}) == {"prompt": "a", "cache": "latents"}


def test_a_record_names_the_preset_beside_its_steps(pipe):
    for preset in ("exact", "balanced", "fast"):
        request = pipe.request("a circle", preset=preset, num_inference_steps=20)
        record = make_record(pipe, request, {}, fps=8)
        assert record["preset"] == preset and "preset" not in record["settings"]
        assert record["settings"].get("computed_steps") == _as_list(request.computed_steps)
    assert "preset" not in make_record(pipe, pipe.request("a circle"), {}, fps=8)


def _as_list(steps):
    return None if steps is None else list(steps)


def test_few_computed_steps_are_warned_of(pipe, caplog):
    size = {"num_frames": 9, "height": 32, "width": 48}
    pipe("a circle", preset="fast", num_inference_steps=10, output_type="latent", **size)
    assert "only 3 of 10 steps are computed" in caplog.text
    caplog.clear()
    pipe("a circle", preset="fast", num_inference_steps=20, output_type="latent", **size)
    assert "steps are computed" not in caplog.text


def test_the_work_counts_the_steps_with_guidance(pipe):
    def passes(**settings) -> int:
        request = pipe.request("a circle", num_inference_steps=20, **settings)
        return request.passes_of_all_windows

    assert passes() == 40 and passes(guidance_scale=1) == 20
    assert passes(guidance_range=(2, 12)) == 30
    steps = {"computed_steps": (0, 1, 5, 11, 15)}
    assert passes(cache="latents", **steps) == 10
    assert passes(cache="latents", guidance_range=(2, 12), **steps) == 7
    assert passes(cache="guidance", guidance_range=(2, 12), **steps) == 22
    assert passes(cache="latents", guidance_scale=1, **steps) == 5
