"""``generate.py`` as a command: what it writes, prints and returns."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from commands import PROMPT, SCRIPT, SMALL, during_steps, errors, generate, run, warnings
from huggingface_hub.errors import LocalEntryNotFoundError

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.device import Machine
from mlx_cogvideo.errors import GenerationError
from mlx_cogvideo.video import read_record, read_video


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "video.mp4"


def test_the_script_writes_the_video_and_names_it_on_stdout(output):
    command = [sys.executable, SCRIPT, "--prompt", PROMPT, "--output", output]
    done = subprocess.run(
        [*command, *SMALL, "--seed", "1"],
        capture_output=True,
        text=True,
        cwd=output.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}\n"
    frames, fps = read_video(output)
    assert frames.shape == (9, 32, 48, 3)
    assert fps == 8
    assert "bundled demo" in done.stderr
    for stage in ("encode", "denoise", "decode"):
        assert done.stderr.count(f"{stage}:   0%") == 1, "one bar a stage, for its time estimate"
        assert f"{stage}: 100%" in done.stderr


def test_fps_and_the_option_names_of_diffusers_are_accepted(output):
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


def test_the_same_seed_makes_the_same_frames(output):
    videos = []
    for name, seed in (("first.mp4", 1), ("again.mp4", 1), ("other.mp4", 2)):
        path = output.with_name(name)
        assert generate(path, "--seed", seed) == 0
        videos.append(read_video(path)[0])
    assert (videos[0] == videos[1]).all()
    assert abs(videos[0].astype(float) - videos[2]).mean() > 5


def test_no_compile_disables_compilation(output, monkeypatch):
    called = []
    monkeypatch.setattr(mx, "disable_compile", lambda: called.append(True))
    assert generate(output, "--no-compile") == 0
    assert called


def test_a_long_prompt_is_cut_with_a_warning(output, capsys):
    assert generate(output, "--prompt", PROMPT + " slowly" * 60) == 0
    assert "32 tokens" in warnings(capsys.readouterr().err)[0]
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
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "it lacks text_encoder: "),
        (lambda folder: (folder / "tokenizer/spiece.model").unlink(), "spiece.model"),
    ],
    ids=["missing shard", "truncated", "mis-shaped", "no text encoder", "no tokenizer"],
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
        (["--frames", str(2**40 + 1)], 2, "more than an array can hold"),
        (["--height", "100", "--width", "100"], 2, "multiple of 16"),
        (["--model", "no/such/folder"], 1, "no model 'no/such/folder'"),
        (["--model", "nonsense"], 1, "no model 'nonsense'"),
        (["--steps", "0"], 2, "num_inference_steps"),
        (["--steps", "many"], 2, "invalid int value"),
        (["--fps", "0"], 2, "must be above 0"),
        (["--fps", "1e9"], 2, "fps must be a positive number, from 0.02 to 1000"),
        (["--fps", "1e-9"], 2, "fps must be a positive number, from 0.02 to 1000"),
        (["--fps", "nan"], 2, "fps must be above 0"),
        (["--fps", "60", "--output", "a.gif"], 2, "a gif can have 50 frames a second at most"),
        (["--scheduler", "euler"], 2, "must be one of ddim, dpm, dpm++; got 'euler' ("),
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


def test_only_overwrite_replaces_an_existing_output(output, capsys):
    output.write_text("mine")
    assert generate(output) == 1
    assert "exists" in errors(capsys.readouterr().err)[0]
    assert output.read_text() == "mine"
    assert generate(output, "--overwrite") == 0
    assert len(read_video(output)[0]) == 9


def test_a_missing_prompt_is_wrong_usage(capsys):
    assert run() == 2
    (line,) = errors(capsys.readouterr().err)
    assert "--prompt, --prompt-file, --replay or --resume" in line


def test_the_plan_is_printed_before_the_start(output, capsys):
    assert generate(output, "--fps", 12, "--guidance-schedule", "wave", "--scheduler", "dpm") == 0
    messages = capsys.readouterr().err
    for line in (
        "model    demo, float32",
        "video    9 frames of 48x32, 12 a second",
        f"output   {output}",
        "sampling 2 steps of dpm, guidance 2 (wave), seed 1",
    ):
        assert f"{line}\n" in messages
    memory = r"memory   about encode \d+ MiB, denoise \d+ MiB, decode \d+ MiB; \d"
    assert re.search(memory, messages)


def test_a_run_that_may_not_fit_into_memory_is_a_warning(output, monkeypatch, capsys):
    machine = Machine("cpu", "", 10 * 2**20)
    monkeypatch.setattr(
        "mlx_cogvideo.checkpoints.model_configurations.this_machine", lambda: machine
    )
    assert generate(output, "--tiling", "exact", "--dry-run") == 0
    messages = warnings(capsys.readouterr().err)
    assert any("decode" in line and "--tiling tiled" in line for line in messages)


@pytest.mark.parametrize("limit", ["3e10", "1e300"])
def test_a_memory_limit_may_exceed_all_memory(output, limit):
    assert generate(output, "--memory-limit", limit) == 0


def test_after_two_steps_the_remaining_time_is_estimated(output, capsys, monkeypatch):
    seconds = SimpleNamespace(monotonic=count().__next__)  # one for each report of progress
    monkeypatch.setattr("mlx_cogvideo.cli.time_left.time", seconds)
    assert generate(output, "--steps", 4) == 0
    message = r"about (.*) of denoising left, until \d\d:\d\d\n"
    assert re.findall(message, capsys.readouterr().err) == ["2 s"]


def test_a_dry_run_stops_before_anything_is_read_or_written(output, monkeypatch, capsys):
    monkeypatch.setattr(mx, "load", lambda *_, **__: pytest.fail("weights were read"))
    assert generate(output, "--dry-run") == 0
    captured = capsys.readouterr()
    assert "sampling 2 steps" in captured.err
    assert captured.out == ""
    assert list(output.parent.iterdir()) == []


def test_a_dry_run_downloads_nothing(output, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", str(output.parent))
    local = []

    def from_cache(*_, **options):
        local.append(options["local_files_only"])
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", from_cache)
    assert generate(output, "--dry-run", "--model", "me/my-model") == 1
    assert local == [True]
    assert "--dry-run" in errors(capsys.readouterr().err)[0]


def test_quiet_prints_only_warnings(output, capsys):
    assert generate(output, "--quiet", "--prompt", PROMPT + " slowly" * 60) == 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("warning: ") and "32 tokens" in line
    assert captured.out == f"{output}\n"


def test_json_is_one_line_with_the_record(output, capsys):
    assert generate(output, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    results = json.loads(line)
    (made,) = results["made"]
    assert made == {"output": str(output), "record": read_record(output)}
    assert results["made_before"] == results["failed"] == []


def test_json_includes_failures(output, capsys, monkeypatch):
    def fail(*_, **__):
        raise GenerationError("no video came of it")
        yield

    monkeypatch.setattr("mlx_cogvideo.pipeline.pipeline.CogVideoXPipeline.denoise", fail)
    assert generate(output, "--json") == 1
    captured = capsys.readouterr()
    (failed,) = json.loads(captured.out)["failed"]
    assert failed["error"].startswith("no video came of it")
    assert errors(captured.err) == [f"error: {failed['error']}"]


@pytest.mark.parametrize("name", ["clip.gif", "frames", "latents.safetensors"])
def test_the_ending_of_the_output_decides_what_is_written(tmp_path, name):
    path = tmp_path / name
    assert generate(path) == 0
    assert read_record(path)["settings"]["prompt"] == PROMPT
    if name == "clip.gif":
        assert read_video(path)[0].shape == (9, 32, 48, 3)
    elif name == "frames":
        assert [file.name for file in sorted(path.iterdir())] == [
            f"000{i}.png" for i in range(1, 10)
        ]
    else:
        assert mx.load(str(path))["latents"].shape == (1, 3, 4, 6, 16)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message", "recorded"),
    [
        ([], "decoding whole frames", {"tiling": "none"}),
        (["--tiling", "seamless"], "in strips", {"tiling": "exact"}),
        (["--tiling", "tiled"], "one tile", {"tiling": "tiled"}),
        (
            ["--tile-size", 16, 32, "--tile-overlap", "1/2", 0.25],
            "tiles 16 high and 32 wide",
            {"tiling": "tiled", "tile_size": [16, 32], "tile_overlap": [0.5, 0.25]},
        ),
    ],
    ids=["auto", "seamless", "one tile", "tiles"],
)
def test_the_tiling_mode_is_printed_and_recorded(output, capsys, options, message, recorded):
    assert generate(output, *options) == 0
    assert message in capsys.readouterr().err
    settings = read_record(output)["settings"]
    assert {name: settings[name] for name in recorded} == recorded
    replayed = output.with_name("again.mp4")
    assert run("--replay", output, "--output", replayed) == 0
    assert (read_video(output)[0] == read_video(replayed)[0]).all()
    # Another mode on the command line replaces the recorded one and its tiles.
    for other in ("none", "tiled"):
        again = run("--replay", output, "--output", replayed, "--tiling", other, "--overwrite")
        assert again == 0
        settings = read_record(replayed)["settings"]
        assert (settings["tiling"], settings["tile_size"]) == (other, None)


def test_with_little_memory_a_video_is_decoded_in_tiles(output, capsys, monkeypatch):
    machine = Machine("cpu", "", 2**20)
    monkeypatch.setattr(
        "mlx_cogvideo.checkpoints.model_configurations.this_machine", lambda: machine
    )
    assert generate(output, "--height", 96, "--width", 96, "--dry-run") == 0
    assert "tiles 48 high and 48 wide" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile-size", 20, 32], "multiples of 8; got 20 and 32"),
        (["--tile-size", 16, 32, "--tile-overlap", 1, 0.5], "from 0 to below 1"),
        (["--tile-size", 16, 32, "--tile-overlap", 0.5, 0.3], "the nearest"),
        (["--tile-size", 16, 32, "--tile-overlap", "1/0", 0.5], "a number or a fraction"),
        (["--tiling", "none", "--tile-size", 16, 32], "no tiles"),
        (["--tiling", "rows"], "--tiling: must be one of auto, none, exact, tiled; got 'rows'"),
        (["--height", 4096, "--width", 4096, "--tiling", "none"], "2**31"),
    ],
    ids=["size", "overlap", "fraction", "no fraction", "none", "word", "large"],
)
def test_wrong_tiling_options_are_refused(output, capsys, options, message):
    assert generate(output, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert message in error
    assert not output.exists()


def old_python() -> str | None:
    """Returns an interpreter of Python 3.8 to 3.10 if this machine has one."""
    known = [shutil.which(f"python3.{minor}") for minor in (9, 10, 8)]
    known += [shutil.which("/usr/bin/python3")]
    for python in filter(None, known):
        is_old = [python, "-c", "import sys; print(sys.version_info < (3, 11))"]
        if subprocess.run(is_old, capture_output=True, text=True).stdout.strip() == "True":
            return python
    return None


def test_an_old_python_is_one_line():
    python = old_python()
    if python is None:
        # The same code, in an interpreter that pretends to be older.
        code = "import sys, runpy; sys.version_info = (3, 9, 6); "
        code += f"runpy.run_path({str(SCRIPT)!r}, None, '__main__')"
        command = [sys.executable, "-c", code]
    else:
        command = [python, SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parent, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: mlx_cogvideo needs Python 3.11 or newer, and this is ")


@pytest.mark.parametrize("file", ["generate.py", "mlx_cogvideo/__init__.py"])
def test_an_old_python_can_parse_what_it_reads_first(file):
    ast.parse((SCRIPT.parent / file).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("name", ["12:30.mp4", "a:b/c.gif", "x:y"])
def test_a_colon_in_a_name_is_no_protocol(output, name):
    path = output.parent / name
    path.parent.mkdir(exist_ok=True)
    assert generate(path) == 0
    assert run("--show", path) == 0
    assert generate(output, "--video", path, "--strength", "0.5") == 0


def test_a_model_that_changes_during_the_run_is_a_warning(tmp_path, output, capsys):
    model = damaged(tmp_path, lambda folder: None)
    with during_steps(lambda step: (model / "vae" / "config.json").write_text("{}")):
        assert generate(output, "--model", model) == 0
    assert f"the model's files changed during the run: {output} may show both" in (
        capsys.readouterr().err
    )
