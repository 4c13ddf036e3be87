"""Step caches: steps that reuse what the blocks added in an earlier one."""

from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from commands import ctrl_c_in_step, errors, generate, run

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints.variants import ALIASES
from mlx_cogvideo.diffusion.step_cache import (
    CACHES,
    IDENTITY,
    POLYNOMIALS,
    StepCache,
    teacache_steps,
)
from mlx_cogvideo.nn.transformer import (
    CogVideoXTransformer3DModel,
    FeedForward,
    TransformerConfig,
)
from mlx_cogvideo.video import read_record, read_video

PROMPT = "a red circle moves right on a white background"
SIZE = {"num_frames": 9, "height": 48, "width": 48, "num_inference_steps": 8, "seed": 1}


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained("demo")


@pytest.fixture
def blocks(monkeypatch) -> list[int]:
    """Returns a list that grows with each call of a block, which has one feed-forward."""
    calls, call = [], FeedForward.__call__
    monkeypatch.setattr(
        FeedForward,
        "__call__",
        lambda self, *args, **options: calls.append(1) or call(self, *args, **options),
    )
    return calls


def latents(pipe, **more) -> mx.array:
    return pipe(PROMPT, output_type="latent", **{**SIZE, **more}).frames


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_a_threshold_of_zero_computes_every_step(pipe, blocks, cache, scheduler):
    with_cache = latents(pipe, cache=cache, cache_threshold=0, scheduler=scheduler)
    assert len(blocks) == 8 * 5
    plain = latents(pipe, scheduler=scheduler)
    assert mx.abs(with_cache - plain).max().item() < 1e-5 * mx.abs(plain).max().item()


@pytest.mark.parametrize(("cache", "count"), [("teacache", 2 * 5), ("first-block", 4 * 5 + 4)])
def test_the_first_and_the_last_step_are_always_computed(pipe, blocks, cache, count):
    """First-block computes the second one as well, and one after four that it skipped."""
    made = latents(pipe, cache=cache, cache_threshold=1e9)
    assert len(blocks) == count
    assert mx.isfinite(made).all()


def test_first_block_skips_four_steps_in_a_row_at_most(pipe):
    cache = StepCache(None, 1e9, last=99)
    x = mx.random.normal((1, 3, 6, 6, 16))
    text, times = mx.random.normal((1, 32, 64)), mx.array([700])
    for step in range(13):
        cache.velocity(pipe.transformer, x, text, times, step)
    assert cache.skipped == [2, 3, 4, 5, 7, 8, 9, 10, 12]


def test_a_skipped_step_adds_what_the_blocks_added_before(pipe):
    transformer = pipe.transformer
    cache = StepCache([True, False, True], 0, last=2)
    x = [mx.random.normal((2, 3, 6, 6, 16), key=mx.random.key(i)) for i in range(2)]
    text, times = mx.random.normal((2, 32, 64)), mx.array([700, 700])
    first = cache.velocity(transformer, x[0], text, times, 0)
    assert mx.allclose(first, transformer(x[0], text, times), atol=1e-5)
    second = cache.velocity(transformer, x[1], text, times - 50, 1)
    start, context = transformer.embed(x[0], text, times)
    added = transformer.run_blocks(start, context) - start
    start, context = transformer.embed(x[1], text, times - 50)
    expected = transformer.project(start + added, context.temb, x[1].shape)
    assert mx.allclose(second, expected, atol=1e-5)
    assert cache.skipped == [1]


@pytest.mark.parametrize("steps", [[True, True, False], None], ids=["teacache", "first block"])
def test_two_passes_skip_what_one_batch_skips(pipe, steps):
    x = mx.random.normal((2, 3, 6, 6, 16), key=mx.random.key(0))
    text, times = mx.random.normal((2, 32, 64), key=mx.random.key(1)), mx.array([700, 700])
    made = []
    for passes in (1, 2):
        cache = StepCache(steps, 0.05, last=9)
        made.append([cache.velocity(pipe.transformer, x, text, times, i, passes) for i in (1, 2)])
        assert cache.skipped == [2]
    for batch, apart in zip(*made, strict=True):
        assert mx.allclose(batch, apart, atol=1e-5)


def test_a_change_in_one_half_of_the_batch_is_enough(pipe):
    transformer = pipe.transformer
    x = mx.random.normal((2, 3, 6, 6, 16), key=mx.random.key(0))
    text, times = mx.random.normal((2, 32, 64), key=mx.random.key(1)), mx.array([700, 700])
    for row in range(2):
        cache = StepCache(None, 0.05, last=9)
        cache.velocity(transformer, x, text, times, 1)
        cache.velocity(transformer, x, text, times, 2)
        assert cache.skipped == [2], "nothing has changed"
        other = mx.where((mx.arange(2) == row)[:, None, None], -text, text)
        cache.velocity(transformer, x, other, times, 3)
        assert cache.skipped == [2]


def test_teacache_includes_all_embeddings_added_to_the_time():
    """1.5-5B-I2V adds the embedding of ofs: beside a large one the same changes are small."""
    config = TransformerConfig(2, 16, num_layers=1, time_embed_dim=32, ofs_embed_dim=32)
    transformer = CogVideoXTransformer3DModel(config)
    counts = []
    for size in (0.0, 100.0):
        transformer.ofs_embedding.linear_2.bias = mx.full((32,), size)
        steps = teacache_steps(transformer, range(999, 0, -20), 0.2, IDENTITY)
        counts.append(sum(steps))
    assert counts[0] > counts[1] == 2


def test_teacache_decides_before_the_run_which_steps_it_skips(pipe):
    timesteps = list(range(999, 0, -20))
    steps = teacache_steps(pipe.transformer, timesteps, 0.2, IDENTITY)
    assert len(steps) == len(timesteps) and steps[0] and steps[-1] and not all(steps)
    # By hand: changes add up to the threshold, and start from zero after a computed step.
    config = pipe.configs["transformer"]
    half = config.dim // 2
    rates = np.exp(-np.log(10000) * np.arange(half) / half)
    phases = np.array(timesteps)[:, None] * rates
    embedded = pipe.transformer.time_embedding(
        mx.array(np.concatenate([np.cos(phases), np.sin(phases)], 1), mx.float32)
    )
    embedded, total, expected = np.array(embedded), 0.0, [True]
    for before, after in pairwise(embedded):
        total += np.abs(after - before).mean() / np.abs(before).mean()
        expected.append(bool(total >= 0.2))
        total = 0.0 if expected[-1] else total
    expected[-1] = True
    assert steps == expected


def test_every_official_model_has_a_polynomial():
    assert POLYNOMIALS.keys() == ALIASES.keys()
    assert all(len(coefficients) == 5 for coefficients in POLYNOMIALS.values())


def test_a_step_with_another_batch_size_is_computed(pipe, blocks):
    latents(pipe, cache="teacache", cache_threshold=1e9, guidance_range=(2, 5))
    assert len(blocks) == 4 * 5  # the first and the last step, and where guidance starts and ends


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "video.mp4"


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_run_with_a_cache_resumes_bit_for_bit(output, cache, stop):
    threshold = {"teacache": 0.5, "first-block": 0.4}[cache]
    command = ["--cache", cache, "--cache-threshold", threshold, "--steps", 8, "--save-every", 1]
    assert generate(output, *command) == 0
    record = read_record(output)
    assert record["settings"]["cache"] == cache
    (window,) = record["cache"]
    assert 0 < len(window["skipped_steps"]) < 7 and window["steps"] == 8
    with ctrl_c_in_step(stop):
        assert generate("again.mp4", *command) == 130
    assert run("--resume", "again.mp4") == 0
    assert (read_video(output)[0] == read_video("again.mp4")[0]).all()
    assert read_record("again.mp4")["cache"] == record["cache"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache-threshold", "0.1"], "cache_threshold needs a cache"),
        (["--cache", "teacache", "--cache-threshold", "-1"], "cache_threshold must be 0 or more"),
    ],
)
def test_a_wrong_threshold_is_one_line(output, capsys, options, message):
    assert generate(output, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert message in error
