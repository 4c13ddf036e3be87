"""Videos that start from a picture or a video: how files are read, and what is refused."""

import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from clips import make_clip
from commands import SMALL, ctrl_c_in_step, errors, generate, run, warnings
from PIL import Image

from mlx_cogvideo import CogVideoXPipeline, GenerationError, InvalidInputError, generate_video
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.pipeline import estimates as memory
from mlx_cogvideo.pipeline.sources import picture_size
from mlx_cogvideo.pipeline.windows import Joiner, window_settings
from mlx_cogvideo.runs.saved_run import SavedRun
from mlx_cogvideo.video import (
    read_image,
    read_record,
    read_video,
    write_video,
)

PROMPT = "a red circle moves right on a white background"
TINY = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 4, "seed": 1}


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "video.mp4"


@pytest.fixture
def clip(tmp_path) -> Path:
    write_video(tmp_path / "clip.mp4", make_clip(9, 32, 48), 8)
    return tmp_path / "clip.mp4"


def picture() -> np.ndarray:
    """Returns red on the left, blue on the right and a green corner: each turn of it differs."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30], pixels[:, 30:], pixels[:12, :12] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    return pixels


def close(pixels: np.ndarray, expected: np.ndarray) -> bool:
    return np.abs(pixels.astype(int) - expected.astype(int)).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "gif", "jpg"])
def test_pictures_of_many_formats_are_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path, **({"quality": 98} if suffix in ("jpg", "webp") else {}))
    assert close(read_image(path, 40, 60), picture())


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "I;16"])
def test_pictures_of_other_colour_models_are_read(tmp_path, mode):
    gray = np.repeat(picture().max(-1, keepdims=True), 3, axis=-1)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(gray[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(gray if mode == "L" else picture()).convert(mode).save(path)
    assert close(read_image(path, 40, 60), gray if mode in ("L", "I;16") else picture())


def test_transparent_pixels_become_white(tmp_path):
    alpha = np.full((40, 60, 1), 255, np.uint8)
    alpha[:, 30:] = 0
    Image.fromarray(np.concatenate([picture(), alpha], axis=-1)).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 40, 60)
    assert close(read[:, :30], picture()[:, :30])
    assert (read[:, 32:] == 255).all()


def test_a_picture_is_cropped_padded_or_stretched_to_the_size(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    crop, pad, stretch = (
        read_image(tmp_path / "a.png", 40, 40, fit) for fit in ("crop", "pad", "stretch")
    )
    assert close(crop, picture()[:, 10:50])
    assert (pad[:6] == 0).all() and (pad[-6:] == 0).all() and (pad[8:32].max(-1) > 200).all()
    assert (stretch[20, 5] > [200, -1, -1]).all() and (stretch[20, 35] > [-1, -1, 200]).all()


def disc() -> np.ndarray:
    """Returns an orange disc on gray, left of the middle."""
    y, x = np.mgrid[:96, :96]
    inside = np.hypot(x - 34, y - 50) < 18
    return np.where(inside[..., None], (250, 130, 20), (128, 128, 128)).astype(np.uint8)


def test_the_i2v_demo_starts_with_the_picture_and_moves_it_as_prompted():
    prompt = "an orange circle moves {} on a gray background"
    arguments = {"image": disc(), "num_inference_steps": 10, "guidance_scale": 2, "seed": 3}
    pipe = CogVideoXPipeline.from_pretrained("demo-i2v")
    for direction, axis, sign in (("right", 1, 1), ("up", 0, -1)):
        video = np.asarray(pipe(prompt.format(direction), **arguments))
        error = np.square(video[0] / 255 - disc() / 255).mean()
        assert -10 * np.log10(error) > 25
        first, last = (np.argwhere(frame[..., 2] < 75).mean(axis=0) for frame in video[[0, -1]])
        moved = (last - first) * sign
        assert moved[axis] > 20 and abs(moved[1 - axis]) < 4
        assert (video[-1][tuple(last.astype(int))] - (250.0, 130, 20)).max() < 40


def test_an_image_to_video_model_needs_an_image_and_takes_no_video(output, clip, capsys):
    for options, message in (
        ([], "give it an image"),
        (["--video", clip], "can't start from a video"),
        (["--image", "missing.png"], "missing.png doesn't exist"),
        (["--image", "empty.png"], "empty.png can't be read"),
    ):
        Path("empty.png").touch()
        assert generate(output, "--model", "demo-i2v", *options) == 2
        (error,) = errors(capsys.readouterr().err)
        assert message in error


def test_strength_decides_how_much_of_a_video_stays():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    clip = make_clip(17, 96, 96)
    size = {"seed": 1, "num_inference_steps": 4, "output_type": "latent", "guidance_scale": 1}
    own = pipe.encode_video(clip, 17).mean * pipe.configs["vae"].scaling_factor
    distances = [
        mx.abs(pipe(PROMPT, video=clip, strength=strength, **size).frames - own).mean().item()
        for strength in (0.25, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]
    full = pipe(PROMPT, video=clip, strength=1.0, **size).frames
    same_as_text = mx.allclose(full, pipe(PROMPT, **size).frames, atol=1e-4)
    assert same_as_text, "at zero SNR nothing of the clip is left"


def test_a_seed_repeats_the_noise_on_a_video():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    request = pipe.request(PROMPT, video=make_clip(9, 32, 48), **TINY)
    first, again = pipe.condition(request), pipe.condition(request)
    assert mx.array_equal(first.start, again.start)
    other = pipe.request(PROMPT, video=make_clip(9, 32, 48), **{**TINY, "seed": 2})
    assert not mx.array_equal(first.start, pipe.condition(other).start)


def test_steps_without_guidance_skip_the_unconditional_pass(monkeypatch):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    batches = []
    with pipe.keeping("transformer"):
        call = type(pipe.transformer).__call__
        monkeypatch.setattr(
            type(pipe.transformer),
            "__call__",
            lambda self, x, *rest, **more: batches.append(len(x)) or call(self, x, *rest, **more),
        )
        pipe(PROMPT, guidance_range=(1, 3), output_type="latent", **TINY)
    assert batches == [1, 2, 2, 1]


def test_uncond_zero_is_zeros_and_encodes_no_second_text(monkeypatch):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    texts = []
    encode = pipe.encode_prompt
    monkeypatch.setattr(pipe, "encode_prompt", lambda text, **_: texts.append(text) or encode(text))
    (embeds,) = pipe.encode([pipe.request(PROMPT, uncond="zero", **TINY)])
    assert texts == [PROMPT]
    assert embeds.shape[0] == 2 and (embeds[0] == 0).all() and mx.abs(embeds[1]).max() > 0
    (plain,) = pipe.encode([pipe.request(PROMPT, uncond="zero", guidance_scale=1, **TINY)])
    assert plain.shape[0] == 1


def test_a_video_to_video_record_can_be_replayed(output, clip):
    assert generate(output, "--video", clip.name, "--strength", 0.5) == 0
    settings = read_record(output)["settings"]
    assert settings["video"] == str(clip) and settings["strength"] == 0.5
    assert len(settings["video_sha256"]) == 64
    assert run("--replay", output, "--output", "again.mp4", "--quiet") == 0
    first, again = (read_video(path)[0] for path in (output, "again.mp4"))
    assert (first == again).all()


def test_a_replay_warns_that_the_source_video_has_changed(output, clip, capsys):
    assert generate(output, "--video", clip) == 0
    write_video(clip, make_clip(9, 48, 32), 8, overwrite=True)
    assert run("--replay", output, "--output", "again.mp4", "--dry-run") == 0
    assert f"the video {clip} has changed" in capsys.readouterr().err


def test_a_video_to_video_run_resumes_bit_for_bit(output, clip, monkeypatch):
    whole = ["--video", clip, "--strength", 0.8, "--steps", 10, "--save-every", 1]
    assert generate(output, *whole) == 0
    with ctrl_c_in_step(1):
        assert generate("again.mp4", *whole) == 130
    saved = SavedRun.load(Path("again.mp4.resume"))
    assert (saved.steps_done, saved.steps_in_all) == (1, 8)
    assert saved.run.conditioning.start.shape == (1, 3, 4, 6, 16)
    monkeypatch.setattr(
        CogVideoXPipeline, "encode_video", lambda *_, **__: pytest.fail("encoded twice")
    )
    assert run("--resume", "again.mp4") == 0
    assert (read_video(output)[0] == read_video("again.mp4")[0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "picture.png"], "needs an image-to-video model"),
        (["--video", "missing.mp4"], "missing.mp4 doesn't exist"),
        (["--video", "empty.mp4"], "empty.mp4 can't be read"),
        (["--video", "text.mp4"], "text.mp4 can't be read"),
        (["--video", "short.mp4"], "5 frames"),
        (["--video", "clip.mp4", "--strength", "0"], "strength must be above 0"),
        (["--video", "clip.mp4", "--strength", "0.1"], "2 steps"),
        (["--guidance-range", "1", "5"], "guidance_range"),
        (["--strength", "0.3"], "strength needs"),
        (["--video-start", "1"], "video_start needs a video that is a file"),
        (["--video", "clip.mp4", "--video-start", "-1"], "video_start must be at least 0"),
        (["--video", "clip.mp4", "--video-start", "nan"], "video_start must be at least 0"),
        (["--video", "clip.mp4", "--video-end", "0"], "video_end must be a number above 0"),
        (["--video", "clip.mp4", "--video-start", "1", "--video-end", "1"], "after video_start"),
        (["--video", "clip.mp4", "--video-start", "1.2"], "clip.mp4, which lasts 1.12 s"),
        (["--video", "clip.mp4", "--video-end", "2"], "clip.mp4, which lasts 1.12 s"),
        (["--video", "clip.mp4", "--video-start", "0.5"], "5 frames at 8 a second in that part"),
        (["--video", "pipe.mp4"], "pipe.mp4 can't be read: it is not a file"),
        (["--video", "https://a.b/c.mp4"], "https://a.b/c.mp4 is an address: download it first"),
        (["--video", "file:///c.mp4"], "file:///c.mp4 is an address: download it first"),
        (["--image-fit", "pad"], "image_fit needs"),
        (["--overlap", "1"], "overlap needs extend"),
        (["--guidance", "1", "--guidance-range", "0", "1"], "needs a guidance_scale above 1"),
        (["--extend", "1", "--overlap", "1", "--output", "x.safetensors"], "latents"),
        (["--uncond", "zero", "--negative-prompt", "x"], "negative prompt"),
    ],
)
def test_a_wrong_source_is_one_line(output, clip, capsys, options, message):
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("no video at all\n" * 50)
    write_video("short.mp4", make_clip(5, 32, 48), 8)
    shutil.copy(clip, "picture.png")
    os.mkfifo("pipe.mp4")
    assert generate(output, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert message in error
    assert not output.exists()


@pytest.fixture
def long(tmp_path) -> Path:
    write_video(tmp_path / "long.mp4", make_clip(33, 32, 48), 8)
    return tmp_path / "long.mp4"


def test_a_part_of_a_video_is_taken_by_its_times(long):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    request = pipe.request(PROMPT, video=long, video_start=1, video_end=2.5, **TINY)
    request.source.check(request.geometry, 8)
    part = request.source.read_video(request.geometry, 8)
    assert (part == read_video(long)[0][8:17]).all()
    with pytest.raises(InvalidInputError, match="video_start needs a video that is a file"):
        pipe.request(PROMPT, video=part, video_start=1, **TINY)


def test_a_part_of_a_video_is_recorded_and_replayed(output, long, capsys):
    part = ["--video-start", 1, "--video-end", 2.5, "--steps", 1, "--strength", 1]
    assert generate(output, "--video", long, *part) == 0
    settings = read_record(output)["settings"]
    assert (settings["video_start"], settings["video_end"]) == (1, 2.5)
    for options, announced in (
        ([], "long.mp4, from 1 s to 2.5 s"),
        (["--video-end", 3], "long.mp4, from 1 s to 3 s"),
        (["--video", long], "long.mp4\n"),
    ):
        assert run("--replay", output, "--output", "b.mp4", "--dry-run", *options) == 0
        assert announced in capsys.readouterr().err


def test_a_run_resumes_with_the_same_part_of_its_video_only(output, long, capsys):
    whole = ["--video", long, "--steps", 4]
    with ctrl_c_in_step(2):
        assert generate(output, *whole, "--video-start", 1) == 130
    assert generate(output, *whole, "--resume", "--dry-run") == 2
    assert "video_start was 1.0 and is now None" in capsys.readouterr().err
    assert generate(output, *whole, "--video-start", 1, "--resume", "--dry-run") == 0


def test_pixels_of_another_size_are_fitted_as_a_file_is(tmp_path):
    pipe, clip = CogVideoXPipeline.from_pretrained("demo"), make_clip(9, 64, 48)
    write_video(tmp_path / "frames", clip, fps=8)
    starts = [
        pipe.condition(pipe.request(PROMPT, video=video, image_fit=fit, **TINY)).start
        for video in (clip, tmp_path / "frames")
        for fit in ("crop", "pad")
    ]
    assert mx.array_equal(starts[0], starts[2]) and mx.array_equal(starts[1], starts[3])
    assert not mx.allclose(starts[0], starts[1])


def test_pixels_of_too_few_frames_are_refused():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    with pytest.raises(InvalidInputError, match="video has 9 frames, and 17 are wanted: ask for 9"):
        pipe.request(PROMPT, video=make_clip(9, 32, 48), **{**TINY, "num_frames": 17})


def test_an_extended_video_consists_of_overlapping_windows():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    size = {**TINY, "num_frames": 17, "num_inference_steps": 2}
    short = np.asarray(pipe(PROMPT, **size))
    long = np.asarray(pipe(PROMPT, extend=2, overlap=9, **size))
    assert long.shape == (17 + 2 * 8, 32, 48, 3)
    assert (long[:8] == short[:8]).all(), "frames that are not blended stay the same"
    assert (np.asarray(pipe(PROMPT, extend=2, overlap=9, **size)) == long).all()
    assert pipe.request(PROMPT, extend=3, overlap=1, **size).total_frames == 17 + 3 * 16


def test_a_window_keeps_the_frames_that_it_starts_with():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    size = {"seed": 1, "num_frames": 17, "num_inference_steps": 4, "guidance_scale": 1}
    request = pipe.request(PROMPT, extend=1, **size)
    tail = np.asarray(pipe(PROMPT, **size))[-9:]
    window = window_settings(request, 1, tail)
    conditioning = pipe.condition(window)
    prefix = conditioning.prefix
    assert prefix.shape == (1, 3, 12, 12, 16)
    (embeds,) = pipe.encode([window])
    states = list(pipe.denoise(window, embeds, conditioning=conditioning))
    assert mx.array_equal(states[-1].latents[:, :3], prefix)
    assert not mx.allclose(states[-2].latents[:, :3], prefix, atol=0.1), "noisy until then"
    # A run that resumes after any step ends in the same latents.
    (*_, last) = pipe.denoise(window, embeds, states[1], conditioning=conditioning)
    assert mx.array_equal(last.latents, states[-1].latents)


def test_windows_are_blended_over_their_overlap():
    joiner = Joiner(9)
    first = [np.full((9, 2, 2, 3), 100, np.uint8), np.full((8, 2, 2, 3), 100, np.uint8)]
    second = [np.full((9, 2, 2, 3), 200, np.uint8), np.full((8, 2, 2, 3), 200, np.uint8)]
    frames = [joiner.add(chunk, last=False) for chunk in first]
    joiner.end_window()
    frames += [joiner.add(chunk, last=True) for chunk in second]
    levels = np.concatenate([chunk for chunk in frames if chunk is not None])[:, 0, 0, 0].tolist()
    assert levels == [100] * 8 + [110, 120, 130, 140, 150, 160, 170, 180, 190] + [200] * 8


def test_an_extended_run_is_the_same_after_an_interruption(output, capsys):
    command = ["--frames", 17, "--extend", 2, "--overlap", 9, "--steps", 2, "--save-every", 1]
    assert generate(output, *command) == 0
    assert read_video(output)[0].shape[0] == 33
    with ctrl_c_in_step(3):  # the first step of the second window
        assert generate("again.mp4", *command) == 130
    assert "1 windows and 1 of 2 steps" in capsys.readouterr().err
    assert SavedRun.load(Path("again.mp4.resume")).progress == "1 of 3 windows and 1 of 2 steps"
    files = sorted(path.name for path in output.parent.iterdir())
    assert files == ["again.mp4.resume", "video.mp4"]
    assert run("--resume", "again.mp4") == 0
    assert (read_video(output)[0] == read_video("again.mp4")[0]).all()
    record = read_record("again.mp4")
    assert (record["settings"]["extend"], record["settings"]["overlap"]) == (2, 9)
    assert run("--replay", "again.mp4", "--output", "third.mp4", "--quiet") == 0
    assert (read_video(output)[0] == read_video("third.mp4")[0]).all()


def test_the_overlap_is_encoded_in_the_tiling_mode_of_the_decoder(output, capsys):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    assert pipe.request(PROMPT, extend=1, tiling="tiled").source.tiling == "tiled"
    request = pipe.request(PROMPT, extend=1, source_tiling="tiled")
    assert request.to_dict()["source_tiling"] == "tiled"
    assert "source" in memory.estimate_memory(pipe, request)
    assert "source" not in memory.estimate_memory(pipe, pipe.request(PROMPT))
    many = ["--seed", 1, 2, "--frames", 17, "--extend", 1, "--output", "{seed}.mp4"]
    assert generate(output, *many, "--memory-limit", 0.2, "--tiling", "tiled") == 0
    assert read_record("1.mp4")["settings"]["source_tiling"] == "tiled"
    assert generate(output, *many) == 0
    assert "0 made, 2 made before" in capsys.readouterr().err


def test_a_callback_that_stops_a_run_ends_its_windows_too():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    arguments = {**TINY, "extend": 2, "overlap": 1, "output_type": "np"}
    steps = []
    (video,) = pipe(
        PROMPT, callback_on_step_end=lambda step, *_: steps.append(step), **arguments
    ).frames
    assert video.shape[0] == 25 and video.dtype == np.float32
    assert steps == [0, 1, 2, 3] * 3
    steps.clear()
    (video,) = pipe(
        PROMPT, callback_on_step_end=lambda step, *_: steps.append(step) or False, **arguments
    ).frames
    assert len(video) == 9
    assert steps == [0]


def test_an_option_of_a_replay_also_replaces_the_settings_that_depend_on_it(output):
    whole = ["--frames", 17, "--extend", 1, "--overlap", 1, "--cache", "teacache"]
    assert generate(output, *whole, "--guidance-range", 0, 1) == 0
    again = ["--replay", output, "--overwrite", "--quiet", "--output"]
    assert run(*again, "a.mp4", "--extend", 0, "--cache", "first-block") == 0
    settings = read_record("a.mp4")["settings"]
    assert (settings.get("overlap"), settings["cache_threshold"]) == (None, 0.1)
    assert run(*again, "b.mp4", "--cache", "none", "--guidance", 1) == 0
    settings = read_record("b.mp4")["settings"]
    assert "cache" not in settings and settings["guidance_range"] is None


def test_a_replay_with_a_model_of_another_kind_is_one_line(output, capsys):
    assert generate(output) == 0
    command = ["--replay", output, "--model", "demo-i2v", "--seed", 1, 2, "--output", "{seed}.mp4"]
    assert run(*command) == 2
    (error,) = errors(capsys.readouterr().err)
    assert "an image" in error


def test_a_file_that_cant_be_opened_is_one_line(output, capsys):
    assert generate(output, "--image", "/proc/self/mem", "--model", "demo-i2v") == 2
    (error,) = errors(capsys.readouterr().err)
    assert "/proc/self/mem can't be read" in error


def test_models_of_many_sizes_follow_the_shape_of_the_picture():
    one_five = next(v for v in VARIANTS if v.alias == "1.5-5b-i2v")
    assert one_five.size_like((720, 1280)) == (768, 1360)
    assert one_five.size_like((1280, 720)) == (1360, 768)
    assert one_five.size_like((1000, 1000)) == (768, 768)
    assert one_five.size_like((600, 800)) == (768, 1024)
    assert one_five.size_like((100, 900)) == (768, 1360)
    text = next(v for v in VARIANTS if v.alias == "1.5-5b")
    assert text.size_like((1280, 720)) == (768, 1360)
    one = next(v for v in VARIANTS if v.alias == "5b-i2v")
    assert one.size_like((1280, 720)) == (480, 720)
    assert picture_size(np.zeros((20, 30, 3))) == (20, 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--extend", "-1"], "extend must be at least 0"),
        (["--extend", "1", "--overlap", "8"], "overlap must be 8N+1"),
        (["--extend", "1", "--overlap", "9"], "9 frames"),
        (["--extend", "1", "--frames", "1"], "one frame"),
        (
            [
                *("--extend", "1", "--overlap", "1", "--video", "clip.mp4"),
                *("--guidance-range", "0", "1"),
            ],
            "guidance_range",
        ),
    ],
)
def test_wrong_options_of_extending_are_one_line(output, clip, capsys, options, message):
    assert generate(output, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert message in error


@pytest.fixture
def stopped(output, clip) -> Path:
    """Interrupts a video-to-video run after its first step."""
    with ctrl_c_in_step(1):
        assert generate(output, "--video", clip, "--steps", 4) == 130
    return output


def test_a_run_resumes_without_its_source_file(stopped, clip):
    clip.unlink()
    assert run("--resume", stopped) == 0
    assert stopped.exists()


def test_a_run_resumes_with_a_source_file_that_has_moved(stopped, clip):
    clip.rename("moved.mp4")
    assert run("--resume", stopped, "--video", "moved.mp4") == 0


def test_a_run_does_not_resume_with_another_source_file(stopped, clip, capsys):
    write_video(clip, make_clip(9, 48, 32), 8, overwrite=True)
    assert run("--resume", stopped, "--video", clip) == 2
    assert "video_sha256 was" in capsys.readouterr().err


def test_a_run_resumes_after_its_encoded_source_file_has_changed(stopped, clip):
    saved = SavedRun.load(stopped.with_name(f"{stopped.name}.resume")).record["settings"]
    write_video(clip, make_clip(9, 48, 32), 8, overwrite=True)
    assert run("--resume", stopped) == 0
    assert read_record(stopped)["settings"]["video_sha256"] == saved["video_sha256"]


def test_another_tiling_mode_for_decoding_does_not_change_the_source(stopped):
    assert run("--resume", stopped, "--tile-size", 16, 16) == 0
    settings = read_record(stopped)["settings"]
    assert (settings["tiling"], settings["source_tiling"]) == ("tiled", "exact")
    assert run("--replay", stopped, "--output", "again.mp4") == 0
    assert (read_video(stopped)[0] == read_video("again.mp4")[0]).all()


def test_a_video_to_video_output_does_not_count_as_a_finished_text_to_video(output, clip, capsys):
    Path("prompts.txt").write_text(PROMPT + "\n")
    batch = ["--prompt-file", "prompts.txt", "--seed", 1, "-o", "o-{index}.mp4", *SMALL]
    assert run(*batch, "--video", clip) == 0
    assert run(*batch) == 1
    assert "video was" in capsys.readouterr().err


def test_an_extended_video_to_video_run_resumes_in_its_second_window(output, clip):
    write_video("long.mp4", make_clip(17, 32, 48), 8)
    command = ["--video", "long.mp4", "--strength", 0.5, "--steps", 4, "--frames", 17]
    command += ["--extend", 1, "--save-every", 1]
    assert generate(output, *command) == 0
    # The first window takes half of the four steps, and the second one all of them.
    with ctrl_c_in_step(2 + 3):
        assert generate("again.mp4", *command) == 130
    assert SavedRun.load(Path("again.mp4.resume")).progress == "1 of 2 windows and 3 of 4 steps"
    assert run("--resume", "again.mp4") == 0
    assert (read_video(output)[0] == read_video("again.mp4")[0]).all()


def test_pixels_may_be_numpy_arrays_mlx_arrays_or_lists_of_frames():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    clip = make_clip(12, 32, 48)
    requests = [pipe.request(PROMPT, video=v, **TINY) for v in (clip, mx.array(clip), list(clip))]
    starts = [pipe.condition(request).start for request in requests]
    assert mx.array_equal(starts[0], starts[1]) and mx.array_equal(starts[0], starts[2])
    assert requests[0] == requests[1] and hash(requests[0]) == hash(requests[1])
    with pytest.raises(
        InvalidInputError, match=r"video must be a file, or pixels .*uint8 or floats"
    ):
        pipe.request(PROMPT, video=5, **TINY)


def test_denoising_needs_the_conditioning_of_its_source():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    request = pipe.request(PROMPT, video=make_clip(9, 32, 48), **TINY)
    (embeds,) = pipe.encode([request])
    with pytest.raises(InvalidInputError, match="condition it"):
        next(pipe.denoise(request, embeds))


def test_generate_video_takes_a_video(tmp_path, capsys):
    made = generate_video(
        PROMPT,
        "demo",
        9,
        32,
        48,
        num_inference_steps=4,
        seed=1,
        video=make_clip(9, 32, 48),
        strength=0.5,
        output_path=tmp_path / "a.mp4",
    )
    assert made.shape == (9, 32, 48, 3)
    assert read_record(tmp_path / "a.mp4")["settings"]["video"] == "an array"
    assert run("--replay", tmp_path / "a.mp4", "--output", tmp_path / "b.mp4") == 2
    (error,) = errors(capsys.readouterr().err)
    assert "pixels" in error, "the record doesn't hold the array"


def test_a_prompt_without_its_image_is_named_by_its_line(output, capsys):
    Path("prompts.txt").write_text(f"{PROMPT}@@\n")
    assert run("--prompt-file", "prompts.txt", *SMALL) == 2
    assert "line 1 of prompts.txt" in capsys.readouterr().err


# From the table of models in the README of github.com/zai-org/CogVideo.
@pytest.mark.parametrize(
    ("alias", "sizes", "others", "frames", "other_frames"),
    [
        ("2b", ["720x480"], ["480x720", "720x720"], [9, 41, 49], [50, 57]),
        ("5b", ["720x480"], ["480x720"], [9, 41, 49], [57]),
        ("5b-i2v", ["720x480"], ["480x720"], [9, 41, 49], [57]),
        ("1.5-5b", ["1360x768"], ["768x1360", "768x768", "1024x768"], [17, 81, 161], [73, 177]),
        (
            "1.5-5b-i2v",
            ["1360x768", "768x1360", "768x768", "1024x768"],
            ["720x480", "1376x768", "1360x752"],
            [17, 81, 161],
            [73, 177],
        ),
    ],
)
def test_the_sizes_and_frames_that_models_were_trained_on(
    alias, sizes, others, frames, other_frames
):
    variant = next(variant for variant in VARIANTS if variant.alias == alias)

    def trained(size):
        width, height = map(int, size.split("x"))
        return variant.was_trained_on(height, width)

    assert all(map(trained, sizes)) and not any(map(trained, others))
    assert all(map(variant.was_trained_on_frames, frames))
    assert not any(map(variant.was_trained_on_frames, other_frames))


def test_a_text_model_of_one_size_warns_of_portrait_and_of_frames(output, monkeypatch, capsys):
    variant = next(variant for variant in VARIANTS if variant.alias == "1.5-5b")
    monkeypatch.setattr(
        "mlx_cogvideo.checkpoints.model_configurations.match_variant", lambda config: variant
    )
    portrait = ["--height", 1360, "--width", 768, "--frames", 73]
    assert generate(output, "--dry-run", *portrait) == 0
    lines = [line for line in warnings(capsys.readouterr().err) if "trained on" in line]
    assert "was trained on 1360x768: 768x1360 comes out worse" in lines[0]
    assert "was trained on 16N+1 frames, up to 161: 73 come out worse" in lines[1]
    own = ["--height", 768, "--width", 1360, "--frames", 81]
    assert generate(output, "--dry-run", *own) == 0
    assert not any("trained on" in line for line in warnings(capsys.readouterr().err))
    assert generate(output, "--dry-run", "--frames", 75) == 2
    assert "use 65 or 81" in capsys.readouterr().err


def test_a_size_that_a_model_was_not_trained_on_is_warned_of(output, monkeypatch, capsys):
    variant = next(variant for variant in VARIANTS if variant.alias == "1.5-5b-i2v")
    monkeypatch.setattr(
        "mlx_cogvideo.checkpoints.model_configurations.match_variant", lambda config: variant
    )
    assert generate(output, "--dry-run", "--frames", 17) == 0
    (warning,) = warnings(capsys.readouterr().err)
    assert "768" in warning and "1360" in warning and "48x32" in warning
    assert generate(output, "--dry-run", "--frames", 17, "--height", 1360, "--width", 768) == 0
    assert not any("trained on" in line for line in warnings(capsys.readouterr().err))


def test_a_run_resumes_between_two_windows_without_its_source_file(output, monkeypatch):
    write_video("long.mp4", make_clip(17, 32, 48), 8)
    command = ["--video", "long.mp4", "--steps", 4, "--frames", 17, "--extend", 1]
    condition = CogVideoXPipeline.condition

    def failing(pipe, window, **options):
        if window.source.prefix is not None:
            raise GenerationError("no memory")
        return condition(pipe, window, **options)

    with monkeypatch.context() as patch:
        patch.setattr(CogVideoXPipeline, "condition", failing)
        assert generate(output, *command) == 1
    Path("long.mp4").unlink()
    assert run("--resume", output) == 0
    assert len(read_video(output)[0]) == 25
