"""``generate.py`` from the outside: what it writes, says and returns."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.cli.generate import main
from mlx_cogvideo.video import read_video

ROOT = Path(__file__).parents[1]
PROMPT = "a red circle moves right on a white background"
SMALL = ["--frames", "9", "--height", "32", "--width", "48", "--steps", "2", "--seed", "1"]


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "video.mp4"


def generate(output, *arguments) -> int:
    """Runs the command in this process; argparse's own exits become their codes."""
    try:
        return main(["--prompt", PROMPT, "--output", str(output), *SMALL, *map(str, arguments)])
    except SystemExit as stop:
        return stop.code


def errors(captured: str) -> list[str]:
    return [line for line in captured.splitlines() if line.startswith("error: ")]


def test_the_script_writes_the_video_and_names_it_on_stdout(output):
    command = [sys.executable, ROOT / "generate.py", "--prompt", PROMPT, "--output", output]
    done = subprocess.run(
        [*command, *SMALL], capture_output=True, text=True, cwd=output.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}\n"
    frames, fps = read_video(output)
    assert frames.shape == (9, 32, 48, 3)
    assert fps == 8
    assert "bundled demo" in done.stderr
    for stage in ("encode", "denoise", "decode"):
        assert done.stderr.count(f"{stage}:   0%") == 1, "one bar a stage, so that it can foretell"
        assert f"{stage}: 100%" in done.stderr


def test_fps_and_the_long_names_of_diffusers_are_understood(output):
    arguments = ["--num_inference_steps", 1, "--guidance_scale", 1, "--num_frames", 1, "--fps", 16]
    assert generate(output, *arguments) == 0
    frames, fps = read_video(output)
    assert len(frames) == 1
    assert fps == 16


def test_a_folder_called_mlx_model_is_the_default(output, monkeypatch, capsys):
    shutil.copytree(DEMO_PATH, output.parent / "mlx_model")
    monkeypatch.chdir(output.parent)
    assert generate(output) == 0
    assert "bundled demo" not in capsys.readouterr().err


def test_the_same_seed_makes_the_same_frames(output, monkeypatch):
    """The frames, not the file: once in some hundred times x264 packs the same ones otherwise."""
    made = []
    monkeypatch.setattr(
        "mlx_cogvideo.cli.generate.write_video", lambda path, frames, *_, **__: made.append(frames)
    )
    for seed in (1, 1, 2):
        assert generate(output, "--seed", seed) == 0
    assert (made[0] == made[1]).all()
    assert abs(made[0].astype(float) - made[2]).mean() > 5


def test_no_compile_switches_compilation_off(output, monkeypatch):
    called = []
    monkeypatch.setattr(mx, "disable_compile", lambda: called.append(True))
    assert generate(output, "--no-compile") == 0
    assert called


def test_a_long_prompt_warns_and_makes_the_video(output, capsys):
    assert generate(output, "--prompt", PROMPT + " slowly" * 60) == 0
    assert "warning: the prompt is cut at 32 tokens" in capsys.readouterr().err
    assert output.is_file()


def damaged(tmp_path, change) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_PATH, folder)
    change(folder)
    return folder


def shard_without_its_second_file(folder) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    index = '{"weight_map": {"proj_out.bias": "first.safetensors", "b": "second.safetensors"}}'
    path.with_name(f"{path.name}.index.json").write_text(index)
    path.rename(path.with_name("first.safetensors"))


def truncate(folder) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def reshape(folder) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = dict(mx.load(str(path)))
    mx.eval(tensors)
    path.unlink()
    mx.save_safetensors(str(path), {**tensors, "proj_out.bias": mx.zeros(3)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shard_without_its_second_file, "lacks second.safetensors"),
        (truncate, "is cut off"),
        (reshape, "proj_out.bias [3] instead of [64]"),
        (
            lambda folder: shutil.rmtree(folder / "text_encoder"),
            "text_encoder/config.json is missing",
        ),
        (lambda folder: (folder / "tokenizer/spiece.model").unlink(), "spiece.model"),
    ],
    ids=["missing shard", "truncated", "mis-shaped", "no vae", "no tokenizer"],
)
def test_a_damaged_model_is_one_line_and_nothing_written(tmp_path, output, capsys, change, message):
    assert generate(output, "--model", damaged(tmp_path, change)) == 1
    (line,) = errors(capsys.readouterr().err)
    assert message in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--frames", "48"], 2, "use 41 or 49"),
        (["--height", "100", "--width", "100"], 2, "multiple of 16"),
        (["--model", "no/such/folder"], 1, "no model 'no/such/folder'"),
        (["--model", "nonsense"], 1, "no model 'nonsense'"),
        (["--steps", "0"], 2, "num_inference_steps"),
        (["--steps", "many"], 2, "invalid int value"),
        (["--fps", "0"], 2, "must be above 0"),
        (["--scheduler", "euler"], 2, "invalid choice"),
        (["--output", "nowhere/video.mp4"], 1, "nowhere doesn't exist"),
        (["--output", "video.avi"], 1, "only .mp4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_nothing_written(
    tmp_path, output, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    assert generate(output, *arguments) == code
    captured = capsys.readouterr()
    (line,) = errors(captured.err)
    assert message in line
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_overwriting_is_asked_for(output, capsys):
    output.write_text("mine")
    assert generate(output) == 1
    assert "exists" in errors(capsys.readouterr().err)[0]
    assert output.read_text() == "mine"
    assert generate(output, "--overwrite") == 0
    assert len(read_video(output)[0]) == 9


def test_a_missing_prompt_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert errors(capsys.readouterr().err) == [
        "error: the following arguments are required: --prompt (--help lists the options)"
    ]


def test_an_interruption_leaves_nothing_and_exits_with_130(output, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_cogvideo.pipeline.CogVideoXPipeline._denoise", interrupt)
    assert generate(output) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not output.exists()
