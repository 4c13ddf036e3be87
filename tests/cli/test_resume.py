"""``generate.py`` stopped half-way, and ``--resume``."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import PROMPT, SMALL, errors, generate, run, start

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.cli import common
from mlx_cogvideo.cli.signals import Interrupts
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel
from mlx_cogvideo.runs.saved_run import SavedRun
from mlx_cogvideo.video import read_record, read_video


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stopped(folder, monkeypatch, capsys) -> str:
    """A run of four steps that was interrupted after the second; what it said."""
    with monkeypatch.context() as patch:
        patch.setattr("mlx_cogvideo.cli.session.Session._note", stop_at(2))
        assert generate("video.mp4", "--steps", 4, "--scheduler", "dpm") == 130
    assert [file.name for file in folder.iterdir()] == ["video.mp4.resume"]
    return capsys.readouterr().err


def stop_at(step):
    def note(session, stage, done, total):
        if (stage, done) == ("denoise", step):
            session._interrupts.wanted = True

    return note


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


def same_video(first, second) -> bool:
    return (read_video(first)[0] == read_video(second)[0]).all()


def uninterrupted(*arguments) -> str:
    assert generate("whole.mp4", "--steps", 4, "--scheduler", "dpm", *arguments) == 0
    return "whole.mp4"


def test_an_interrupted_run_says_what_is_kept_and_how_to_go_on(stopped, folder, capsys):
    last = stopped.splitlines()[-1]
    assert last.startswith("interrupted: 2 of 4 steps are kept, and this goes on: ")
    command = shlex.split(last.partition("goes on: ")[2])
    assert command[:2] == ["python", "generate.py"]
    assert run(*command[2:]) == 0
    assert "resumed  after 2 of 4 steps" in capsys.readouterr().err
    assert names(folder) == {"video.mp4"}
    assert same_video("video.mp4", uninterrupted())


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
def test_a_run_goes_on_however_it_is_named(stopped, folder, arguments):
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
@pytest.mark.parametrize("old", [False, True], ids=["saved now", "before there was a choice"])
def test_a_run_goes_on_to_be_decoded_in_another_way(stopped, folder, options, old):
    if old:
        saved = SavedRun.load(folder / "video.mp4.resume")
        for name in ("tiling", "tile_size", "tile_overlap", "lora"):
            del saved.record["settings"][name]
        saved.save(folder / "video.mp4.resume")
    assert run("--resume", "video.mp4", *options) == 0
    settings = read_record("video.mp4")["settings"]
    assert settings["tiling"] == "tiled"
    assert settings["tile_size"] == ([16, 32] if "--tile-size" in options else None)


def test_what_is_behind_a_run_is_not_warned_of(stopped, monkeypatch, capsys):
    monkeypatch.setattr("mlx_cogvideo.pipeline.estimates.text_memory", lambda pipe: 2**60)
    assert run("--resume", "--dry-run") == 0
    said = capsys.readouterr().err
    assert "memory   about denoise" in said and "warning" not in said


def test_a_run_goes_on_to_another_output(stopped, folder):
    assert run("--resume", "video.mp4.resume", "--output", "other.gif") == 0
    assert names(folder) == {"other.gif"}


def test_a_run_that_goes_on_to_another_output_does_so_after_the_next_stop(
    stopped, folder, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("mlx_cogvideo.cli.session.Session._note", stop_at(3))
        assert run("--resume", "video.mp4.resume", "--output", "other.mp4") == 130
    assert run("--resume", "video.mp4.resume") == 0
    assert names(folder) == {"other.mp4"}


def test_a_saved_run_that_cannot_be_removed_does_no_harm(stopped, folder, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", refuse)
        assert run("--resume") == 0
    assert "can't be removed: Permission denied" in capsys.readouterr().err


def test_a_run_interrupted_twice_notes_both(stopped, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mlx_cogvideo.cli.session.Session._note", stop_at(3))
        assert run("--resume") == 130
    assert run("--resume") == 0
    assert read_record("video.mp4")["resumed_at"] == [2, 3]
    assert same_video("video.mp4", uninterrupted())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5"], "num_inference_steps was 4 and is now 5"),
        (["--seed", "2"], "seed was 1 and is now 2"),
        (["--guidance", "2"], "guidance_scale was 6.0 and is now 2.0"),
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
    assert f"video.mp4.resume was begun otherwise: {message}: go on with the same" in line
    assert names(folder) == {"video.mp4.resume"}


def test_another_model_is_refused_by_name(stopped, folder, capsys):
    shutil.copytree(DEMO_PATH, folder / "changed")
    with (folder / "changed/transformer/config.json").open("a") as config:
        config.write("\n")
    assert run("--resume", "--model", "changed") == 2
    (line,) = errors(capsys.readouterr().err)
    assert "the model's transformer was" in line


def test_the_same_model_in_another_place_is_the_same(stopped, folder):
    shutil.copytree(DEMO_PATH, folder / "moved")
    assert run("--resume", "--model", "moved") == 0


def test_another_version_is_warned_of(stopped, folder, monkeypatch, capsys):
    monkeypatch.setattr("mlx_cogvideo.runs.record.__version__", "9.9")
    assert run("--resume") == 0
    assert "mlx_cogvideo was 0.1.0 and is now 9.9" in capsys.readouterr().err


def test_a_new_run_never_replaces_an_unfinished_one_unasked(stopped, folder, capsys):
    assert generate("video.mp4") == 1
    (line,) = errors(capsys.readouterr().err)
    assert "video.mp4.resume holds an unfinished run, 2 of 4 steps: go on with --resume" in line
    assert generate("video.mp4", "--overwrite") == 0
    assert names(folder) == {"video.mp4"}


def test_a_video_that_was_finished_just_before_the_end_is_not_made_again(stopped, folder, capsys):
    saved = (folder / "video.mp4.resume").read_bytes()
    assert run("--resume") == 0
    (folder / "video.mp4.resume").write_bytes(saved)
    made = os.stat("video.mp4").st_mtime_ns
    assert run("--resume") == 0
    assert "finished video.mp4, made before" in capsys.readouterr().err
    assert os.stat("video.mp4").st_mtime_ns == made
    assert names(folder) == {"video.mp4"}


@pytest.mark.parametrize(
    "arguments", [[], ["--output", "a.gif"], ["--prompt", PROMPT], ["nowhere.resume"]]
)
def test_with_nothing_to_resume_there_is_one_clear_line(folder, capsys, arguments):
    assert run("--resume", *arguments) == 2
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("error: nothing to resume: there is no ")
    assert names(folder) == set()


def test_a_file_named_for_resuming_brings_its_own_prompt(stopped, capsys):
    assert run("--resume", "video.mp4.resume", "--prompt", "a cat") == 2
    assert "leave out --prompt" in errors(capsys.readouterr().err)[0]


def test_a_saved_run_that_cannot_be_read_is_one_clear_line(folder, capsys):
    (folder / "video.mp4.resume").write_text("broken")
    for arguments in (["--resume"], ["--prompt", PROMPT, "--resume"], ["--prompt", PROMPT]):
        assert run(*arguments) == 2
        (line,) = errors(capsys.readouterr().err)
        assert "video.mp4.resume can't be read as a saved run" in line
    assert generate("video.mp4", "--overwrite") == 0


def wait_for(path, process) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_stops_after_the_step_and_nothing_is_lost(folder, name):
    arguments = ["--prompt", PROMPT, *SMALL, "--steps", "100", "--save-every", "1", "--seed", "1"]
    process = start(*arguments, "--quiet", cwd=folder)
    wait_for(folder / "video.mp4.resume", process)
    time.sleep(0.3)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "steps are kept, and this goes on: python generate.py --resume" in said
    assert names(folder) == {"video.mp4.resume"}
    assert 0 <= SavedRun.load(folder / "video.mp4.resume").steps_done < 100


def test_a_second_ctrl_c_stops_in_the_middle_of_a_step(folder, monkeypatch, capfd):
    step, calls = CogVideoXTransformer3DModel.__call__, iter(range(10))

    def interrupted(*arguments, **how):
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # still here: the first one waits for the end of the step
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        return step(*arguments, **how)

    monkeypatch.setattr(CogVideoXTransformer3DModel, "__call__", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert generate("video.mp4", "--steps", 4) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capfd.readouterr().err
    assert said.count("stopping after this step (once more to stop at once)") == 1
    assert "interrupted: 2 of 4 steps are kept" in said


def test_only_ctrl_c_is_impatient_the_second_time(capfd):
    interrupts = Interrupts()
    interrupts.patient = True
    for name in ("SIGHUP", "SIGTERM", "SIGTERM"):
        interrupts._handle(getattr(signal, name), None)
    assert interrupts.wanted
    with pytest.raises(KeyboardInterrupt):
        interrupts._handle(signal.SIGINT, None)


def test_nobody_need_listen(monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError

    muted = []
    monkeypatch.setattr(common, "mute", lambda *streams: muted.append(streams))
    monkeypatch.setattr(common, "tqdm", gone)
    gone.write = gone
    common.say("hello")
    bars = common.Bars()
    bars("train", 1, 3)
    bars("train", 2, 3)
    bars.close()
    assert muted == 3 * [(2,)]


def test_who_asked_to_ignore_signals_is_obeyed(folder):
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "from mlx_cogvideo.cli.signals import Interrupts\n"
        "with Interrupts(): print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_killed_run_leaves_no_video_and_goes_on_to_the_same(folder):
    arguments = ["--prompt", PROMPT, *SMALL, "--steps", "4", "--scheduler", "dpm", "--seed", "1"]
    process = start(*arguments, "--save-every", "1", cwd=folder)
    wait_for(folder / "video.mp4.resume", process)
    process.kill()
    process.communicate()
    assert "video.mp4" not in names(folder)
    assert run("--resume") == 0
    assert names(folder) == {"video.mp4"}
    assert same_video("video.mp4", uninterrupted())


def test_a_full_disk_is_noticed_before_the_run(folder, monkeypatch, capsys):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**14))
    assert generate("video.mp4") == 1
    (line,) = errors(capsys.readouterr().err)
    assert "has 16 KiB free and more than 50 KiB are needed: make room" in line
    assert names(folder) == set()


def test_a_disk_that_fills_up_at_the_end_keeps_the_run(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            "mlx_cogvideo.video.mp4.VideoWriter._add",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        assert generate("video.mp4") == 1
    (line,) = errors(capsys.readouterr().err)
    assert line == (
        "error: video.mp4 can't be written: No space left on device; 2 of 2 steps are kept, and "
        "this goes on: python generate.py --resume video.mp4.resume"
    )
    assert names(folder) == {"video.mp4.resume"}
    assert run("--resume") == 0
