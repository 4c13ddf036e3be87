"""The VAE's three modes of computing a frame, on the bundled demo and on bare shapes."""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.nn import eval_schedule
from mlx_cogvideo.nn.autoencoder import (
    TILINGS,
    AutoencoderConfig,
    AutoencoderKLCogVideoX,
    Tiles,
    footprint,
    row_strips,
    tiling_name,
)
from mlx_cogvideo.nn.autoencoder import model as autoencoder_module
from mlx_cogvideo.nn.autoencoder.norms import GroupNorm
from mlx_cogvideo.video import read_frames, write_video

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "demo"))

from captions import Combination
from world import render, to_uint8, world_scene

SMALL = AutoencoderConfig(block_out_channels=(8, 16, 16, 24), layers_per_block=1, norm_num_groups=4)


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Clips of the world that the demo was trained on, uint8 [N, F, H, W, 3]."""
    shown = [
        Combination("red", "circle", "right", "white"),
        Combination("blue", "square", "grows", "black"),
    ]
    return to_uint8(render(world_scene(np.random.default_rng(7), shown)))


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


@pytest.fixture
def many_strips(monkeypatch):
    monkeypatch.setattr(autoencoder_module, "STRIP_ELEMENTS", 20_000)
    monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", 200_000)


def test_exact_clips_of_the_demo_are_the_same_pixels(pipe, clips, many_strips):
    clips = clips[:1]
    latents = pipe.vae.encode(mx.array(clips)).mean
    in_strips = pipe.vae.encode(mx.array(clips), tiling="exact").mean
    # Measured 3e-5. Plain backgrounds have almost no variance, which magnifies rounding: PyTorch's
    # own result differs by 2e-4 from its result in float64.
    assert relative_error(in_strips, latents) < 2e-4
    whole, exact = (
        to_uint8(pipe.vae.decode(latents, tiling=tiling)) for tiling in ("none", "exact")
    )
    assert np.abs(whole.astype(int) - exact).max() <= 1
    assert 10 * np.log10(255**2 / np.square(clips.astype(float) - whole).mean()) > 25


def test_a_clip_from_a_file_is_encoded_chunk_by_chunk(pipe, clips, tmp_path):
    write_video(tmp_path / "clip.mp4", clips[0], 8)
    taken = []

    def frames():
        for frame in read_frames(tmp_path / "clip.mp4"):
            taken.append(mx.get_active_memory())
            yield frame

    whole = mx.array(np.stack(list(read_frames(tmp_path / "clip.mp4"))))[None]
    expected = pipe.vae.encode(whole).mean
    for tiling in ("none", "exact"):
        taken.clear()
        posterior = pipe.encode_video(frames(), 17, tiling=tiling)
        assert mx.allclose(posterior.mean, expected, atol=1e-4)
        # The second chunk is read when the first has been through the encoder.
        assert len(taken) == 17 and taken[8] < taken[9]
    assert "vae" not in pipe._networks


@pytest.mark.parametrize("tiling", ["none", "exact", "tiled"])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_the_first_frames_of_a_longer_clip_are_encoded(pipe, clips, tiling, frames):
    posterior = pipe.encode_video(iter(clips[0]), frames, tiling=tiling)
    expected = pipe.vae.encode(mx.array(clips[:1, :frames]), tiling=tiling).mean
    assert posterior.mean.shape == (1, (frames + 3) // 4, 12, 12, 16)
    assert mx.allclose(posterior.mean, expected, atol=1e-4)


def test_a_clip_from_a_file_is_encoded_in_tiles(pipe, clips):
    tiles = {"tiling": "tiled", "tile_size": (48, 64), "tile_overlap": (1 / 3, 1 / 4)}
    expected = pipe.vae.encode(mx.array(clips[:1]), **tiles).mean
    assert mx.array_equal(pipe.encode_video(clips[0], 17, **tiles).mean, expected)
    small = {**tiles, "tile_size": (96, 96)}
    assert mx.allclose(
        pipe.encode_video(clips[0], 17, **small).mean,
        pipe.vae.encode(mx.array(clips[:1])).mean,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((9, 96, 100, 3), np.uint8), "multiples of 8; got 96 and 100"),
        (np.zeros((5, 96, 96, 3), np.uint8), "the clip has 5 frames and 9 are needed"),
        (np.zeros((0, 96, 96, 3), np.uint8), "the clip has no frames and 9 are needed"),
        (np.zeros((9, 4, 96, 3), np.uint8), "multiples of 8; got 4 and 96"),
        (np.zeros((9, 96, 96, 3), np.float32), r"must be uint8 \[H, W, 3\]; got float32"),
        (np.zeros((9, 96, 96), np.uint8), r"must be uint8 \[H, W, 3\]; got uint8 \[96, 96\]"),
        ([np.zeros((96, s, 3), np.uint8) for s in 8 * [96] + [88]], "must have one size"),
    ],
    ids=["size", "short", "empty", "tiny", "floats", "gray", "sizes"],
)
@pytest.mark.parametrize("tiling", ["auto", "tiled"])
def test_a_clip_that_cant_be_encoded_is_an_error(pipe, frames, message, tiling):
    with pytest.raises(InvalidInputError, match=message):
        pipe.encode_video(frames, 9, tiling=tiling)


def test_no_frames_are_not_to_be_encoded(pipe, clips):
    with pytest.raises(InvalidInputError, match="at least 1; got 0"):
        pipe.encode_video(clips[0], 0)


def test_seamless_is_an_old_name_of_exact():
    assert [tiling_name(name) for name in (*TILINGS, "seamless")] == [*TILINGS, "exact"]
    vae, latents = AutoencoderKLCogVideoX(SMALL), mx.ones((1, 3, 4, 6, 16))
    assert mx.array_equal(vae.decode(latents, "seamless"), vae.decode(latents, "exact"))
    pixels = mx.zeros((1, 9, 32, 48, 3))
    assert mx.array_equal(vae.encode(pixels, "seamless").mean, vae.encode(pixels, "exact").mean)
    for chunks in (vae.decode_chunks(latents, "seams"), vae.encode_chunks([pixels], "seams")):
        with pytest.raises(ValueError, match="tiling must be none, exact, tiled; got 'seams'"):
            next(chunks)


def test_pixels_that_cant_be_encoded_are_an_error(pipe):
    with pytest.raises(ValueError, match="'none' has no tiles"):
        pipe.vae.encode(mx.zeros((1, 1, 96, 96, 3)), tile_size=(32, 32))
    with pytest.raises(ValueError, match="multiples of 8; got 96 and 100"):
        pipe.vae.encode(mx.zeros((1, 1, 96, 100, 3)))
    with pytest.raises(ValueError, match="tiling must be none, exact, tiled; got 'auto'"):
        pipe.vae.encode(mx.zeros((1, 1, 96, 96, 3)), tiling="auto")


@pytest.mark.parametrize("tiling", ["none", "exact", "tiled"])
@pytest.mark.parametrize("frames", [1, 5])
def test_a_frame_and_a_clip_shorter_than_a_chunk_pass(pipe, clips, tiling, frames):
    posterior = pipe.vae.encode(mx.array(clips[:1, :frames]), tiling=tiling)
    assert posterior.mean.shape == (1, (frames + 3) // 4, 12, 12, 16)
    pixels = pipe.vae.decode(posterior.mean[:, :1], tiling=tiling)
    assert pixels.shape == (1, 1, 96, 96, 3)


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        ((32, 44), None, "multiples of 8; got 32 and 44: 32 and 48 are the nearest"),
        ((4, 48), None, "multiples of 8; got 4 and 48: 8 and 48 are the nearest"),
        ((32, 48), (0.25, 0.25), "0.25 of a width of 48 isn't: 2/6 is the nearest"),
        ((32, 48), (1.0, 0.5), "from 0 to below 1 of a tile's height; got 1"),
        ((32, 48), (0.5, -0.5), "from 0 to below 1 of a tile's width; got -0.5"),
        ((32, 48), (float("inf"), 0.5), "from 0 to below 1 of a tile's height; got inf"),
        ((32, 48), (0.5, float("nan")), "from 0 to below 1 of a tile's width; got nan"),
        ((32,), None, "tile_size is a pair, for height and width"),
        (32, None, "tile_size is a pair"),
        ((-32, 48), None, "multiples of 8; got -32 and 48: 8 and 48"),
    ],
)
def test_tiles_that_cant_be_laid_are_an_error(size, overlap, message):
    with pytest.raises(ValueError, match=message):
        Tiles.choose(AutoencoderConfig(), size, overlap)


def test_tiles_without_an_overlap_given_always_have_a_fitting_one():
    for rows in range(1, 40):
        tiles = Tiles.choose(AutoencoderConfig(), (8 * rows, 8 * rows))
        assert all(0 <= overlap < rows for overlap in tiles.overlap)


def test_arrays_too_large_for_mlx_are_refused():
    class Huge:
        shape, size = (1, 11, 768, 1360, 256), 11 * 768 * 1360 * 256

    with pytest.raises(ValueError, match=r'2\*\*31 elements.*tiling="exact" or "tiled"'):
        row_strips.check_size(Huge())


@pytest.mark.parametrize("outlier", [(0, 0, 0), (0, 4, 3), (1, 7, 7)], ids=str)
@pytest.mark.parametrize("level", [0.0, 30.0, -3000.0])
def test_group_statistics_survive_flat_maps_with_an_outlier(outlier, level):
    x = np.full((1, 2, 8, 8, 4), level) + np.arange(4)
    x[0, *outlier] = 1000.0
    norm = GroupNorm(2, 4)
    maps = [mx.array(x.astype(np.float32)[:, :, rows]) for rows in (slice(4), slice(4, 8))]
    scale, shift = (np.array(a, np.float64) for a in norm.affine(maps, row_strips.ConvCache(2)))
    groups = x.reshape(-1, 2, 2).transpose(1, 0, 2).reshape(2, -1)
    deviation = np.sqrt(groups.var(1) + 1e-6).repeat(2)
    assert relative_error(scale.ravel(), 1 / deviation) < 1e-5
    assert relative_error(shift.ravel(), -groups.mean(1).repeat(2) / deviation) < 1e-5


def test_group_statistics_of_wide_maps_dont_overflow_in_16_bits():
    x = 120 + mx.random.normal((1, 1, 8, 720, 4), key=mx.random.key(1))
    norm = GroupNorm(2, 4)
    rounded = x.astype(mx.float16)
    exact = norm.affine([rounded.astype(mx.float32)], row_strips.ConvCache(1))
    for a, b in zip(norm.affine([rounded], row_strips.ConvCache(1)), exact, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("config", [AutoencoderConfig(), SMALL], ids=["official", "small"])
@pytest.mark.parametrize("limit", [None, 1000])
def test_what_convolutions_remember_is_counted_exactly(config, limit):
    vae = AutoencoderKLCogVideoX(config)
    cache = row_strips.ConvCache(4, strip_elements=limit)
    vae.decoder(mx.zeros((1, 3, 4, 6, 16)), cache)
    assert sum(x.size for x in cache._frames.values()) == footprint(config, 4, 6).remembered
    cache = row_strips.ConvCache(4, strip_elements=limit)
    vae.encoder(mx.zeros((1, 9, 32, 48, 3)), cache)
    count = footprint(config, 4, 6, decode=False).remembered
    assert sum(x.size for x in cache._frames.values()) == count


@pytest.mark.parametrize("code", ["encode", "decode"])
def test_strips_hold_less_memory_than_whole_frames(code, monkeypatch):
    vae = AutoencoderKLCogVideoX(SMALL)
    mx.eval(vae.parameters())
    x = mx.zeros((1, 5, 192, 192, 3) if code == "encode" else (1, 2, 24, 24, 16))
    monkeypatch.setattr(autoencoder_module, "STRIP_ELEMENTS", 2**15)
    monkeypatch.setattr(autoencoder_module, "TILE_STRIP_ELEMENTS", 2**17)
    monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", 2**17)
    peaks = []
    for tiling in ({"tiling": "none"}, {"tiling": "exact"}, {"tile_size": (64, 64)}):
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        result = getattr(vae, code)(x, **{"tiling": "tiled", **tiling})
        mx.eval(result if code == "decode" else result.mean)
        peaks.append(mx.get_peak_memory() - before)
    whole, exact, tiled = peaks
    assert exact < whole / 3 and tiled < whole / 3, peaks
