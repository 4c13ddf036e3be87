"""The small decoder equals a PyTorch transcription of TAECVX, and what a run does with it."""

import hashlib

import mlx.core as mx
import numpy as np
import pytest
import torch
from commands import ctrl_c_in_step, errors, generate, run, warnings
from safetensors.torch import load_file, save_file
from support import relative_error
from tiny_reference import make_tiny_vae, published, save_tiny_vae
from torch_reference import TOLERANCE

from mlx_cogvideo import CheckpointError, CogVideoXPipeline, InvalidInputError
from mlx_cogvideo.checkpoints import tiny_vae
from mlx_cogvideo.checkpoints.tiny_vae import (
    check_tiny_vae,
    find_tiny_vae,
    load_tiny_decoder,
    need_tiny_vae,
)
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.pipeline.estimates import tiny_memory
from mlx_cogvideo.runs.preview import Preview
from mlx_cogvideo.runs.saved_run import SavedRun
from mlx_cogvideo.video import read_record, read_video


@pytest.fixture(scope="module")
def reference():
    return make_tiny_vae()


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    return save_tiny_vae(tmp_path_factory.mktemp("tiny") / "mine.safetensors", reference)


def make_latents(frames: int, height: int = 4, width: int = 6) -> torch.Tensor:
    """Latents ``[F, C, h, w]``, some of which are beyond the limit of 3."""
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(frames, 16, height, width, generator=generator) * 1.5


def as_mx(latents: torch.Tensor) -> mx.array:
    return mx.array(latents.permute(0, 2, 3, 1).numpy())[None]


def decoded(decoder, latents: torch.Tensor) -> mx.array:
    return mx.concatenate(list(decoder.decode_chunks(as_mx(latents))), axis=1)[0]


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7])
def test_decoding_equals_the_transcription(reference, weights, frames):
    latents = make_latents(frames)
    with torch.no_grad():
        expected = reference(latents).permute(0, 2, 3, 1).numpy()
    made = decoded(load_tiny_decoder(weights, 16, mx.float32), latents)
    assert len(made) == (4 * (frames - 1) + 1 if frames % 2 else 4 * frames)
    assert expected.std() > 0.1, "it depends on the latents"
    assert relative_error(made, expected) < TOLERANCE


def test_stills_are_the_last_frames_of_a_decoder_that_makes_no_others(reference, weights):
    latents = make_latents(3)
    with torch.no_grad():
        expected = reference(latents, stills=True).permute(0, 2, 3, 1).numpy()
    made = load_tiny_decoder(weights, 16, mx.float32).decode_stills(as_mx(latents))[0]
    assert relative_error(made, expected) < TOLERANCE


def test_a_file_of_pytorch_gives_the_same_weights(reference, weights, tmp_path):
    latents = make_latents(2)
    pickled = save_tiny_vae(tmp_path / "taecvx.pth", reference)
    first, second = (load_tiny_decoder(file, 16, mx.float32) for file in (weights, pickled))
    assert (decoded(first, latents) == decoded(second, latents)).all()


def test_memory_does_not_grow_with_the_clip_and_is_as_estimated(weights):
    decoder, peaks = load_tiny_decoder(weights, 16, mx.float32), []
    before = mx.get_active_memory()
    for frames in (1, 3):
        latents = as_mx(make_latents(frames, 8, 12))
        mx.reset_peak_memory()
        for chunk in decoder.decode_chunks(latents):
            del chunk
        peaks.append(mx.get_peak_memory())
    assert peaks[1] < 1.1 * peaks[0]
    if mx.default_device().type == mx.DeviceType.cpu:
        pipe = CogVideoXPipeline.from_pretrained("demo")
        without_weights = tiny_memory(pipe, 8, 12) - tiny_memory(pipe, 0, 0)
        assert 0.8 < without_weights / (peaks[1] - before) < 1.3


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"decoder.9.conv.0.weight": None}, "lacks decoder.9.conv.0.weight"),
        ({"decoder.1.weight": torch.zeros(256, 12, 3, 3)}, "has wrong decoder.1.weight"),
        ({"decoder.30.weight": torch.zeros(3)}, "has unexpected decoder.30.weight"),
        ({"decoder.22.bias": torch.zeros(3, dtype=torch.int32)}, "has wrong decoder.22.bias"),
    ],
)
def test_another_network_is_refused_by_its_tensors(reference, tmp_path, change, problem):
    tensors = {n: t for n, t in (published(reference) | change).items() if t is not None}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=problem):
        check_tiny_vae(tmp_path / "a.safetensors", 16)


# Where the published file is.


@pytest.fixture
def official(monkeypatch, tmp_path) -> CogVideoXPipeline:
    """The demo as if it were an official model, in an empty folder, and empty caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "mlx_cogvideo").mkdir()
    pipe = CogVideoXPipeline.from_pretrained("demo")
    monkeypatch.setattr(pipe, "variant", VARIANTS[1])
    return pipe


def test_gits_digest_is_that_of_git(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    assert tiny_vae._git_digest(tmp_path / "a") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_published_file_is_found_and_another_of_its_name_refused(
    official, weights, tmp_path, monkeypatch
):
    assert find_tiny_vae(official) is None
    with pytest.raises(InvalidInputError, match="download https://github"):
        need_tiny_vae(official)
    file = tmp_path / "mlx_cogvideo" / "taecvx.safetensors"
    file.write_bytes(weights.read_bytes())
    with pytest.raises(CheckpointError, match="isn't the published taecvx"):
        find_tiny_vae(official)
    content = file.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setitem(tiny_vae.PUBLISHED, "taecvx.safetensors", digest)
    assert find_tiny_vae(official) == need_tiny_vae(official) == file
    monkeypatch.setattr(official, "variant", None)
    assert find_tiny_vae(official) is None, "the demo has another VAE"
    with pytest.raises(InvalidInputError, match="official models' VAE"):
        need_tiny_vae(official)


def test_previews_are_drawn_by_it_where_it_is(official, reference, weights):
    latents = make_latents(3, 12, 12)
    scaled = as_mx(latents) * official.configs["vae"].scaling_factor
    frames = Preview(official, str(weights)).frames(scaled)
    with torch.no_grad():
        expected = reference(latents, stills=True).permute(0, 2, 3, 1).numpy() * 127.5 + 127.5
    assert frames.shape == (3, 96, 96, 3) and frames.dtype == np.uint8
    assert np.abs(frames - expected).max() < 0.51
    assert Preview(official).frames(scaled).shape == (3, 132, 132, 3)


# Runs.


@pytest.fixture
def folder(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").symlink_to(weights)
    return tmp_path


TINY = ["--vae", "tiny", "--tiny-vae", "mine.safetensors"]


def test_a_run_decodes_with_it_and_a_replay_repeats_it(folder, reference, capsys):
    assert generate("video", *TINY, "--preview-every", 1) == 0
    assert "decoding by the tiny decoder" in capsys.readouterr().err
    assert generate("latents.safetensors") == 0
    latents = torch.from_numpy(load_file("latents.safetensors")["latents"].numpy())[0]
    scale = CogVideoXPipeline.from_pretrained("demo").configs["vae"].scaling_factor
    with torch.no_grad():
        expected = reference((latents / scale).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    files = sorted((folder / "video").iterdir())
    frames = np.stack([read_video(file)[0][0] for file in files])
    assert np.abs(frames - (expected * 127.5 + 127.5)).max() < 0.51
    settings = read_record("video")["settings"]
    assert (settings["vae"], settings["tiling"]) == ("tiny", "none")
    digest = hashlib.sha256((folder / "mine.safetensors").read_bytes()).hexdigest()
    assert settings["tiny_vae_sha256"] == digest
    capsys.readouterr()
    assert run("--replay", "video", "--output", "again") == 0
    assert warnings(capsys.readouterr().err) == []
    again = [read_video(file)[0][0] for file in sorted((folder / "again").iterdir())]
    assert (np.stack(again) == frames).all()


def test_a_run_may_go_on_with_either_decoder(folder):
    with ctrl_c_in_step(1):
        assert generate("video.mp4") == 130
    saved = (folder / "video.mp4.resume").read_bytes()
    assert run("--resume", "video.mp4", *TINY) == 0
    assert read_record("video.mp4")["settings"]["vae"] == "tiny"
    assert generate("tiny.mp4", *TINY) == 0
    assert (read_video("tiny.mp4")[0] == read_video("video.mp4")[0]).all()
    (folder / "a.mp4.resume").write_bytes(saved)
    assert run("--resume", "a.mp4.resume", *TINY, "--output", "a.mp4", "--dry-run") == 0
    tiny = SavedRun.load(folder / "a.mp4.resume")
    tiny.record["settings"] |= {"vae": "tiny", "tiny_vae": str(folder / "mine.safetensors")}
    tiny.save(folder / "a.mp4.resume")
    assert run("--resume", "a.mp4.resume", "--vae", "full", "--output", "a.mp4") == 0
    settings = read_record("a.mp4")["settings"]
    assert settings["vae"] == "full" and "tiny_vae" not in settings
    assert generate("full.mp4") == 0
    assert (read_video("a.mp4")[0] == read_video("full.mp4")[0]).all()


@pytest.mark.parametrize(
    "options, line",
    [
        (["--vae", "tiny"], "official models' VAE"),
        (["--vae", "tiny", "--tiny-vae", "nothing"], "tiny_vae must be a file"),
        (["--tiny-vae", "mine.safetensors"], "tiny_vae needs vae tiny"),
        (["--vae", "small"], "must be one of full, tiny"),
    ],
)
def test_what_is_wrong_is_one_line_before_the_run(folder, capsys, options, line):
    assert generate("video.mp4", *options) == 2
    assert line in errors(capsys.readouterr().err)[-1]
    assert not (folder / "video.mp4").exists()


def test_tiles_have_no_effect_on_it(folder, capsys):
    assert generate("video.mp4", *TINY, "--tiling", "tiled", "--dry-run") == 0
    messages = capsys.readouterr().err
    (line,) = warnings(messages)
    assert "tiling has no effect: the tiny decoder computes frames whole" in line
