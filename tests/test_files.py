"""One writer at a time, and temporary files that are nobody else's."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from clips import make_clip
from commands import PROMPT, SMALL, errors, generate, run, start
from support import locked_elsewhere

from mlx_cogvideo import generate_video
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.errors import OutputError
from mlx_cogvideo.files import locked, temporary_path
from mlx_cogvideo.video import read_record, read_video, write_latents, write_video


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lock_is_one_process_s_and_gone_with_it(tmp_path):
    path = tmp_path / "video.mp4"
    with locked_elsewhere(path):
        message = rf"video\.mp4 is being written by process {os.getpid()} on \S+ since [\d:]+: "
        with pytest.raises(OutputError, match=message + "wait until that ends, or rename it"):
            locked(path, "rename it").__enter__()
    with locked(path, ""), locked(path, ""):  # a thread may take it again
        assert names(tmp_path) == {".video.mp4.lock"}
    assert names(tmp_path) == set()


def test_many_threads_take_turns(tmp_path):
    path, inside, most, done = tmp_path / "video.mp4", [], [], []

    def take() -> None:
        while len(done) < 40:
            try:
                with locked(path, ""):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
                    done.append(1)
            except OutputError:
                pass

    threads = [threading.Thread(target=take) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert max(most) == 1 and names(tmp_path) == set()


def test_a_name_reached_by_two_ways_is_one_lock(folder):
    (folder / "here").symlink_to(folder)
    with locked_elsewhere(folder / "video.mp4"):
        for path in ("video.mp4", "./video.mp4", "here/video.mp4"):
            with pytest.raises(OutputError, match="is being written by"):
                write_video(path, make_clip(1), 8)


@pytest.mark.parametrize("kind", ["folder", "file", "link", "pipe"])
def test_what_bears_a_lock_s_name_and_is_none_is_left_alone(tmp_path, kind):
    place, path = tmp_path / ".video.mp4.lock", tmp_path / "video.mp4"
    (tmp_path / "own").write_text("my own notes")
    {
        "folder": place.mkdir,
        "file": lambda: place.write_text("my own notes"),
        "link": lambda: place.symlink_to("own"),
        "pipe": lambda: os.mkfifo(place),
    }[kind]()
    with pytest.raises(OutputError, match=r"\.video\.mp4\.lock.*"):
        write_video(path, make_clip(1), 8)
    assert (tmp_path / "own").read_text() == "my own notes"
    assert place.is_symlink() or place.exists()
    assert not path.exists()


def test_temporary_names_are_new_each_time_and_short_enough(tmp_path):
    for name in ("video.mp4", "v" * 240 + ".mp4", "ビデオ" * 27 + ".mp4.resume"):
        parts = {temporary_path(tmp_path / name) for _ in range(20)}
        assert len(parts) == 20
        for part in parts:
            part.touch()
            part.name.encode()


def test_only_temporaries_beside_a_dead_lock_are_removed(tmp_path):
    (tmp_path / "notes.part").write_text("mine")
    outside = tmp_path.parent / ".outside.part"
    outside.write_text("mine")
    lock = tmp_path / ".video.mp4.lock"
    lines = ["locked by mlx_cogvideo", "process 1", "notes.part", "../.outside.part", "..", ""]
    lock.write_text("\n".join(lines))
    write_video(tmp_path / "video.mp4", make_clip(1), 8)
    assert names(tmp_path) == {"video.mp4", "notes.part"}
    assert outside.exists()


def test_outputs_of_all_kinds_are_refused_while_another_writes_them(folder):
    latents = np.zeros((1, 2, 4, 4, 16), np.float32)
    calls = {
        "a.mp4": lambda: write_video("a.mp4", make_clip(1), 8),
        "a.gif": lambda: write_video("a.gif", make_clip(1), 8),
        "frames": lambda: write_video("frames", make_clip(1), 8),
        "a.safetensors": lambda: write_latents("a.safetensors", latents),
        "b.mp4": lambda: generate_video(PROMPT, output_path="b.mp4"),
    }
    for name, call in calls.items():
        with locked_elsewhere(folder / name), pytest.raises(OutputError, match=rf"{name} is being"):
            call()
    assert names(folder) == set()


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--dry-run"]], ids=str)
def test_a_second_run_with_one_output_is_refused_before_it_computes(folder, capsys, option):
    first = start("--prompt", PROMPT, "--output", "video.mp4", *SMALL, "--steps", 400)
    try:
        while not (folder / "video.mp4.resume").exists():
            assert first.poll() is None
            time.sleep(0.05)
        assert generate("video.mp4", *option) == 1
        (line,) = errors(capsys.readouterr().err)
        assert f"video.mp4 is being written by process {first.pid} on" in line
        assert line.endswith("wait until that ends, or choose another --output")
        assert run("--resume", "video.mp4.resume", "--output", "other.mp4", *option) == 1
        assert f"written by process {first.pid}" in errors(capsys.readouterr().err)[0]
        assert run("--prompt", PROMPT, *SMALL, "--seed", 1, 2, "-o", "video{seed}.mp4") == 0
        assert "video.mp4" not in names(folder)
    finally:
        first.kill()
        first.wait()
    # The lock has gone with its process; what it saved hasn't.
    assert run("--resume", "--dry-run") == 0
    assert generate("video.mp4", "--overwrite") == 0
    assert names(folder) == {"video.mp4", "video1.mp4", "video2.mp4"}
    assert read_record("video.mp4")["settings"]["seed"] == 1
    assert len(read_video("video.mp4")[0]) == 9


def test_a_batch_says_which_of_its_videos_is_another_s_and_makes_the_rest(folder, capsys):
    with locked_elsewhere(folder / "v2.mp4"):
        assert run("--prompt", PROMPT, *SMALL, "--seed", 1, 2, 3, "-o", "v{seed}.mp4") == 1
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("error: seed 2: v2.mp4 is being written by")
    assert names(folder) == {"v1.mp4", "v3.mp4"}


def test_more_outputs_than_open_files_are_allowed_are_locked_all_the_same(folder):
    code = (
        "import resource, contextlib, pathlib\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))\n"
        "from mlx_cogvideo.files import locked\n"
        "with contextlib.ExitStack() as stack:\n"
        "    for i in range(200):\n"
        "        stack.enter_context(locked(pathlib.Path(f'v{{i}}.mp4'), ''))\n"
    )
    command = [sys.executable, "-c"]
    subprocess.run([*command, code.format(hard=1000)], check=True)
    assert names(folder) == set()
    ended = subprocess.run([*command, code.format(hard=64)], capture_output=True, text=True)
    assert "too many at once: split the batch" in ended.stderr.splitlines()[-1]
    assert names(folder) == set()


def test_a_second_conversion_into_one_folder_is_refused(folder, capsys):
    with locked_elsewhere(folder / "tiny"):
        assert convert(["--model", "demo", "--mlx-path", "tiny"]) == 1
        assert convert(["--model", "demo", "--mlx-path", "tiny", "--dry-run"]) == 0
    (line,) = errors(capsys.readouterr().err)
    assert "tiny is being written by" in line
    assert line.endswith("wait until that ends, or choose another --mlx-path")
    assert convert(["--model", "demo", "--mlx-path", "tiny"]) == 0
    assert names(folder) == {"tiny"}


def test_a_conversion_killed_half_way_leaves_nothing_to_the_next(folder):
    code = (
        "import os, signal\n"
        "from mlx_cogvideo.checkpoints.safetensors_writer import SafetensorsWriter\n"
        "from mlx_cogvideo.cli.convert import main\n"
        "SafetensorsWriter.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "main(['--model', 'demo', '--mlx-path', 'tiny'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    left = names(folder)
    assert len(left) == 2 and ".tiny.lock" in left
    assert convert(["--model", "demo", "--mlx-path", "tiny"]) == 0
    assert names(folder) == {"tiny"}
