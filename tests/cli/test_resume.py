"""Interrupted runs of ``generate.py``, and ``--resume``."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import (
    PROMPT,
    SCRIPT,
    SMALL,
    ctrl_c_in_step,
    during_steps,
    errors,
    generate,
    heeding_ctrl_c,
    press_ctrl_c,
    run,
    start,
    warnings,
)
from safetensors.numpy import save_file

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.cli.signals import Interrupts
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel
from mlx_cogvideo.runs.saved_run import SavedRun
from mlx_cogvideo.version import __version__
from mlx_cogvideo.video import read_record, read_video


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes an empty folder and changes into it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stopped(folder, capsys) -> str:
    """Interrupts a run of four steps after the second, and returns its messages."""
    with ctrl_c_in_step(2):
        assert generate("video.mp4", "--steps", 4, "--scheduler", "dpm") == 130
    assert [file.name for file in folder.iterdir()] == ["video.mp4.resume"]
    return capsys.readouterr().err


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


def same_video(first, second) -> bool:
    return (read_video(first)[0] == read_video(second)[0]).all()


def uninterrupted(*arguments) -> str:
    assert generate("whole.mp4", "--steps", 4, "--scheduler", "dpm", *arguments) == 0
    return "whole.mp4"


def test_an_interrupted_run_prints_what_is_kept_and_how_to_resume(stopped, folder, capsys):
    last = stopped.splitlines()[-1]
    assert last.startswith("interrupted: 2 of 4 steps")
    command = shlex.split(last.partition("mlx-cogvideo generate ")[2])
    assert run(*command) == 0
    assert "resumed  after 2 of 4 steps" in capsys.readouterr().err
    assert names(folder) == {"video.mp4"}
    assert same_video("video.mp4", uninterrupted())


def test_one_video_is_not_saved_before_its_first_step(folder):
    seen = {}
    with during_steps(lambda step: seen.setdefault(step, names(folder))):
        assert generate("video.mp4", "--save-every", 1) == 0
    assert "video.mp4.resume" not in seen[1]
    assert "video.mp4.resume" in seen[2]
    assert names(folder) == {"video.mp4"}


def test_what_was_encoded_is_kept_where_the_first_step_fails(folder, capsys):
    def fail(step: int) -> None:
        raise RuntimeError("[metal::malloc] Unable to allocate")

    with during_steps(fail):
        assert generate("video.mp4", "--steps", 4) == 1
    assert "0 of 4 steps are kept" in capsys.readouterr().err
    assert SavedRun.load(folder / "video.mp4.resume").stages_done == ("encode",)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resume"],
        ["--resume", "video.mp4"],
        ["--resume", "--output", "video.mp4"],
        ["--resume", "--prompt", PROMPT],
        ["--resume", "--prompt", PROMPT, *SMALL, "--steps", "4", "--seed", "1"],
        ["--resume", "--prompt", PROMPT, "--fps", "16"],
    ],
    ids=" ".join,
)
def test_a_run_can_be_resumed_by_any_of_its_names(stopped, folder, arguments):
    assert run(*arguments) == 0
    assert names(folder) == {"video.mp4"}
    record = read_record("video.mp4")
    assert record["resumed_at"] == [2]
    fps = ["--fps", "16"] if "--fps" in arguments else []
    assert record["settings"]["fps"] == (16 if fps else 8)
    assert same_video("video.mp4", uninterrupted(*fps))


@pytest.mark.parametrize(
    "options",
    [["--tile-size", 16, 32], ["--tiling", "tiled", "--tile-size", 16, 32], ["--tiling", "tiled"]],
    ids=str,
)
@pytest.mark.parametrize("old", [False, True], ids=["new file", "file of an older version"])
def test_a_resumed_run_may_decode_in_another_tiling_mode(stopped, folder, options, old):
    if old:
        saved = SavedRun.load(folder / "video.mp4.resume")
        for name in ("tiling", "tile_size", "tile_overlap", "lora"):
            del saved.record["settings"][name]
        saved.save(folder / "video.mp4.resume")
    assert run("--resume", "video.mp4", *options) == 0
    settings = read_record("video.mp4")["settings"]
    assert settings["tiling"] == "tiled"
    assert settings["tile_size"] == ([16, 32] if "--tile-size" in options else None)


def test_finished_stages_are_not_warned_of(stopped, monkeypatch, capsys):
    monkeypatch.setattr("mlx_cogvideo.pipeline.estimates.text_memory", lambda pipe: 2**60)
    assert run("--resume", "--dry-run") == 0
    messages = capsys.readouterr().err
    assert "memory   about denoise" in messages and warnings(messages) == []


def test_a_resumed_run_may_write_another_output(stopped, folder):
    assert run("--resume", "video.mp4.resume", "--output", "other.gif") == 0
    assert names(folder) == {"other.gif"}


def test_another_output_is_kept_over_a_second_interruption(stopped, folder):
    with ctrl_c_in_step(1):
        assert run("--resume", "video.mp4.resume", "--output", "other.mp4") == 130
    assert run("--resume", "video.mp4.resume") == 0
    assert names(folder) == {"other.mp4"}


def test_a_saved_run_that_cannot_be_removed_is_a_warning(stopped, folder, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", refuse)
        assert run("--resume") == 0
    assert "can't be removed: Permission denied" in capsys.readouterr().err


def test_the_record_lists_each_interruption(stopped, folder):
    with ctrl_c_in_step(1):
        assert run("--resume") == 130
    assert run("--resume") == 0
    assert read_record("video.mp4")["resumed_at"] == [2, 3]
    assert same_video("video.mp4", uninterrupted())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5"], "num_inference_steps was 4 and is now 5"),
        (["--seed", "2"], "seed was 1 and is now 2"),
        (["--guidance", "3"], "guidance_scale was 2.0 and is now 3.0"),
        (["--dtype", "bfloat16"], "dtype was 'float32' and is now 'bfloat16'"),
        (["--scheduler", "ddim"], "scheduler was 'dpm' and is now 'ddim'"),
        (["--prompt", "a cat"], f"prompt was '{PROMPT}' and is now 'a cat'"),
        (["--no-compile"], "compile was True and is now False"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_settings_are_refused_by_name(
    stopped, folder, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr("mlx.core.disable_compile", lambda: None)
    assert run("--resume", *arguments) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "video.mp4.resume" in line and message in line
    assert names(folder) == {"video.mp4.resume"}


def test_another_model_is_refused_by_name(stopped, folder, capsys):
    shutil.copytree(DEMO_PATH, folder / "changed")
    with (folder / "changed/transformer/config.json").open("a") as config:
        config.write("\n")
    assert run("--resume", "--model", "changed") == 2
    (line,) = errors(capsys.readouterr().err)
    assert "the model's transformer was" in line


def test_a_model_may_move_to_another_folder(stopped, folder):
    shutil.copytree(DEMO_PATH, folder / "moved")
    assert run("--resume", "--model", "moved") == 0


def test_another_version_is_a_warning(stopped, folder, monkeypatch, capsys):
    monkeypatch.setattr("mlx_cogvideo.pipeline.recording.__version__", "9.9")
    assert run("--resume") == 0
    assert f"mlx_cogvideo was {__version__} and is now 9.9" in capsys.readouterr().err


def test_a_new_run_replaces_an_unfinished_one_only_with_overwrite(stopped, folder, capsys):
    assert generate("video.mp4") == 1
    (line,) = errors(capsys.readouterr().err)
    assert "video.mp4.resume" in line and "2 of 4 steps" in line and "--resume" in line
    assert generate("video.mp4", "--overwrite") == 0
    assert names(folder) == {"video.mp4"}


def test_a_finished_video_whose_saved_run_remains_is_not_made_again(stopped, folder, capsys):
    saved = (folder / "video.mp4.resume").read_bytes()
    assert run("--resume") == 0
    (folder / "video.mp4.resume").write_bytes(saved)
    written = os.stat("video.mp4").st_mtime_ns
    assert run("--resume") == 0
    assert "finished video.mp4" in capsys.readouterr().err
    assert os.stat("video.mp4").st_mtime_ns == written
    assert names(folder) == {"video.mp4"}


@pytest.mark.parametrize(
    "arguments", [[], ["--output", "a.gif"], ["--prompt", PROMPT], ["nowhere.resume"]]
)
def test_nothing_to_resume_is_one_clear_line(folder, capsys, arguments):
    assert run("--resume", *arguments) == 2
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("error: nothing to resume: ")
    assert names(folder) == set()


def test_a_saved_run_takes_no_prompt(stopped, capsys):
    assert run("--resume", "video.mp4.resume", "--prompt", "a cat") == 2
    assert "leave out --prompt" in errors(capsys.readouterr().err)[0]


def test_a_saved_run_that_cannot_be_read_is_one_clear_line(folder, capsys):
    (folder / "video.mp4.resume").write_text("broken")
    for arguments in (["--resume"], ["--prompt", PROMPT, "--resume"], ["--prompt", PROMPT]):
        assert run(*arguments) == 2
        (line,) = errors(capsys.readouterr().err)
        assert "video.mp4.resume can't be read" in line
    assert generate("video.mp4", "--overwrite") == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mlx_cogvideo", "[" * 10_000),
        ("mlx_cogvideo", '{"settings": [], "model": {}}'),
        ("mlx_cogvideo", '{"settings": {"num_inference_steps": 4}, "model": {}}'),
        ("run", "[" * 10_000),
        ("run", '{"step": 0, "output": 3}'),
        ("run", '{"step": 0, "output": ""}'),
        ("run", '{"step": "x", "output": "video.mp4"}'),
        ("run", '{"step": 0.5, "timestep": 1, "output": "video.mp4"}'),
    ],
)
def test_a_changed_saved_run_is_one_clear_line(folder, capsys, name, text):
    settings = {"prompt": PROMPT, "num_inference_steps": 4}
    record = {"mlx_cogvideo": "0.1.0", "settings": settings}
    metadata = {"mlx_cogvideo": json.dumps(record), "run": '{"step": 0, "output": "video.mp4"}'}
    arrays = {name: np.zeros(1, np.float32) for name in ("embeds", "latents", "x0")}
    save_file(arrays, folder / "video.mp4.resume", metadata | {name: text})
    assert run("--resume", "video.mp4") == 2
    (line,) = errors(capsys.readouterr().err)
    assert "video.mp4.resume can't be read as a saved run" in line


def wait_for(path, process) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_after_the_step_and_nothing_is_lost(folder, name):
    arguments = ["--prompt", PROMPT, *SMALL, "--steps", "100", "--save-every", "1", "--seed", "1"]
    process = start(*arguments, "--quiet", cwd=folder)
    wait_for(folder / "video.mp4.resume", process)
    time.sleep(0.3)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "steps are kept" in stderr and f"{sys.executable} {SCRIPT} --resume" in stderr
    assert names(folder) == {"video.mp4.resume"}
    assert 0 <= SavedRun.load(folder / "video.mp4.resume").steps_done < 100


def test_a_second_ctrl_c_stops_in_the_middle_of_a_step(folder, monkeypatch, capfd):
    step, steps = CogVideoXTransformer3DModel.__call__, []

    def interrupted(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            press_ctrl_c()  # waits for the end of the step
            press_ctrl_c()
            pytest.fail("the step went on")
        return step(*arguments, **options)

    monkeypatch.setattr(CogVideoXTransformer3DModel, "__call__", interrupted)
    with heeding_ctrl_c():
        assert generate("video.mp4", "--steps", 4) == 130
    messages = capfd.readouterr().err
    assert messages.count("stopping after this step") == 1
    assert "interrupted: 2 of 4 steps" in messages


def test_only_a_second_ctrl_c_ends_a_step_at_once(capfd):
    with heeding_ctrl_c(), Interrupts() as interrupts:
        interrupts.patient = True
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.raise_signal(number)
        assert interrupts.wanted
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_a_run_does_not_need_a_reader_of_its_messages(folder):
    process = start("--prompt", PROMPT, *SMALL, "--seed", "1", cwd=folder)
    process.stderr.close()
    process.stderr = None
    stdout, _ = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (0, "video.mp4\n")
    assert names(folder) == {"video.mp4"}


def test_ignored_signals_stay_ignored(folder):
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "from mlx_cogvideo.cli.signals import Interrupts\n"
        "with Interrupts(): print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_killed_run_leaves_no_video_and_resumes_to_the_same(folder):
    arguments = ["--prompt", PROMPT, *SMALL, "--steps", "4", "--scheduler", "dpm", "--seed", "1"]
    process = start(*arguments, "--save-every", "1", cwd=folder)
    wait_for(folder / "video.mp4.resume", process)
    process.kill()
    process.communicate()
    assert "video.mp4" not in names(folder)
    assert run("--resume") == 0
    assert names(folder) == {"video.mp4"}
    assert same_video("video.mp4", uninterrupted())


def test_a_full_disk_is_an_error_before_the_run(folder, monkeypatch, capsys):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**14))
    assert generate("video.mp4") == 1
    (line,) = errors(capsys.readouterr().err)
    assert "16 KiB" in line and "50 KiB" in line
    assert names(folder) == set()


def test_a_disk_that_fills_up_at_the_end_loses_nothing(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            "mlx_cogvideo.video.mp4.VideoWriter._add",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        assert generate("video.mp4") == 1
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("error: video.mp4 can't be written: No space left on device (https:")
    assert "#the-disk-is-full); 2 of 2 steps are kept" in line
    assert line.endswith("mlx-cogvideo generate --resume video.mp4.resume")
    assert names(folder) == {"video.mp4.resume"}
    assert run("--resume") == 0
