"""``-q BITS`` of generate and lora: the numbers of a converted folder, without the folder."""

from pathlib import Path

import numpy as np
import pytest
from adapters import make_adapter
from commands import ctrl_c_in_step, errors, generate, run, warnings
from safetensors.numpy import load_file
from trainings import lora, same

from mlx_cogvideo import generate_video
from mlx_cogvideo.cli import announce
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.video import read_record, read_video


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The demo in 4 bits."""
    folder = tmp_path_factory.mktemp("converted") / "q4"
    assert convert(["--model", "demo", "-q", "4", "--mlx-path", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frames(file) -> np.ndarray:
    return read_video(file)[0]


def latents(name: str, *options) -> int:
    """Makes the latents of a small video."""
    return generate(f"{name}.safetensors", "--steps", 1, *options)


def numbers(name: str) -> np.ndarray:
    return load_file(f"{name}.safetensors")["latents"]


def lines(capsys, title: str) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(title)]


def test_the_video_is_that_of_a_converted_folder_and_a_replay_makes_it_again(converted, capsys):
    assert generate("converted", "--model", converted) == 0
    assert generate("quantized", "-q", 4) == 0
    assert np.array_equal(frames("quantized/0001.png"), frames("converted/0001.png"))
    assert np.array_equal(frames("quantized/0009.png"), frames("converted/0009.png"))
    assert "quantize" not in read_record("converted")["settings"]
    assert read_record("quantized")["settings"]["quantize"] == 4
    capsys.readouterr()
    assert run("--replay", "quantized", "--output", "again") == 0
    assert warnings(capsys.readouterr().err) == []
    assert np.array_equal(frames("again/0009.png"), frames("quantized/0009.png"))
    # With a model of its own, a replay takes that model as it is.
    assert run("--replay", "quantized", "--model", converted, "--output", "b", "--dry-run") == 0
    assert not [w for w in warnings(capsys.readouterr().err) if "quantize" in w]


def test_an_adapter_acts_on_the_quantized_weights(converted, tmp_path):
    adapter = make_adapter(tmp_path / "adapter")
    assert latents("converted", "--model", converted, "--lora", adapter) == 0
    assert latents("quantized", "--quantize", 4, "--lora", adapter) == 0
    assert np.array_equal(numbers("quantized"), numbers("converted"))


def test_a_call_from_python_quantizes_too(converted):
    size = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 1, "seed": 1}
    video = generate_video("a circle", "demo", quantize=4, output_path="a.mp4", **size)
    assert np.array_equal(video, generate_video("a circle", converted, **size))
    assert read_record("a.mp4")["settings"]["quantize"] == 4


@pytest.mark.parametrize(
    "options", [["-q"], ["-q", "--fps", 8], ["--quantize"], ["-q", "video.mp4"]], ids=str
)
@pytest.mark.parametrize("program", ["generate", "lora"])
def test_without_a_number_quiet_is_meant(options, program, clips, capsys):
    code = generate("video.mp4", *options) if program == "generate" else lora(clips, "a", *options)
    assert code == 2
    (line,) = errors(capsys.readouterr().err)
    assert "number of bits" in line and "such as -q 4" in line and "give --quiet" in line


@pytest.mark.parametrize("program", ["generate", "lora"])
def test_bits_that_there_are_not_are_refused(program, clips, capsys):
    code = generate("video.mp4", "-q", 7) if program == "generate" else lora(clips, "a", "-q", 7)
    assert code == 2
    assert errors(capsys.readouterr().err) == ["error: quantize must be 2, 3, 4, 5, 6 or 8; got 7"]


def test_a_dry_run_counts_the_packed_weights(converted, capsys):
    assert generate("video.mp4", "--dry-run", "--model", converted) == 0
    (expected,) = lines(capsys, "memory")
    assert generate("video.mp4", "--dry-run", "-q", 4) == 0
    said = capsys.readouterr().err.splitlines()
    assert expected.partition(";")[0] in [line.partition(";")[0] for line in said]
    assert "model    demo, float32, quantized to 4 bits" in said


def test_a_configuration_file_may_quantize(folder, capsys):
    (folder / "options.toml").write_text("quantize = 8\n")
    assert generate("video.mp4", "--dry-run", "--config", "options.toml") == 0
    assert lines(capsys, "model") == ["model    demo, float32, quantized to 8 bits"]
    assert generate("video.mp4", "--dry-run", "--config", "options.toml", "-q", 4) == 0
    assert lines(capsys, "model") == ["model    demo, float32, quantized to 4 bits"]


def test_what_takes_long_names_the_command_that_does_it_once(monkeypatch, clips, capsys):
    assert generate("video.mp4", "--dry-run", "-q", 4) == 0
    assert lines(capsys, "weights") == []
    monkeypatch.setattr(announce, "LONG_TO_QUANTIZE", 10**6)
    monkeypatch.setattr("sys.argv", ["mlx-cogvideo"])
    words = "quantized each time they are loaded; mlx-cogvideo convert --model demo -q 4 does it"
    assert generate("video.mp4", "--dry-run", "-q", 4) == 0
    assert lines(capsys, "weights") == [f"weights  {words} once"]
    assert lora(clips, "adapter", "--dry-run", "-q", 4) == 0
    assert lines(capsys, "weights") == [f"weights  {words} once"]
    assert generate("video.mp4", "--dry-run") == 0
    assert lines(capsys, "weights") == []


def test_a_run_is_resumed_with_the_bits_that_it_was_started_with(capsys):
    assert latents("whole", "-q", 4, "--steps", 2) == 0
    with ctrl_c_in_step(1):
        assert latents("video", "-q", 4, "--steps", 2) == 130
    capsys.readouterr()
    for options, now in ([], None), (["-q", 8], 8):
        assert latents("video", "--steps", 2, "--resume", *options) == 2
        (line,) = errors(capsys.readouterr().err)
        assert f"quantize was 4 and is now {now}" in line
    assert run("--resume", "video.safetensors") == 0
    assert np.array_equal(numbers("video"), numbers("whole"))


def test_a_training_learns_on_the_quantized_weights(converted, clips, folder, capsys):
    assert lora(clips, folder / "converted", "--iters", 1, "--model", converted) == 0
    captions = set((clips / ".mlx_cogvideo").iterdir())
    assert lora(clips, folder / "quantized", "--iters", 1, "-q", 4) == 0
    assert same(folder / "converted", folder / "quantized")
    quantized = set((clips / ".mlx_cogvideo").iterdir()) - captions
    more = ["--iters", 2, "--resume"]
    assert lora(clips, folder / "quantized", *more) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "the model's weights differ" in line
    # The VAE isn't quantized: the clips' latents are found again, and only the texts are new.
    texts = ("", "take a", "take b", "take c")
    assert len(quantized) == len(texts) + 3
    # The training that was refused has encoded nothing.
    assert set((clips / ".mlx_cogvideo").iterdir()) == captions | quantized
    assert lora(clips, folder / "quantized", *more, "-q", 4) == 0
