"""Locks for one writer at a time, and temporary files."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip
from commands import PROMPT, SMALL, errors, generate, run, start
from support import environment, killed, locked_elsewhere

from mlx_cogvideo import generate_video
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.errors import OutputError
from mlx_cogvideo.files import check_unlocked, locked, temporary_path
from mlx_cogvideo.video import read_record, read_video, write_latents, write_video


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lock_belongs_to_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "video.mp4"
    with locked_elsewhere(path):
        message = rf"video\.mp4 is being written by process {os.getpid()} on \S+ since [\d:]+: "
        with pytest.raises(OutputError, match=message + "wait until that ends, or rename it"):
            locked(path, "rename it").__enter__()
    with locked(path, ""), locked(path, ""):  # a thread may take it again
        assert names(tmp_path) == {".video.mp4.lock"}
    assert names(tmp_path) == set()


def test_a_process_that_has_just_taken_a_lock_is_named_as_well(tmp_path):
    file = tmp_path / ".video.mp4.lock"
    stream = os.open(file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(stream, fcntl.LOCK_EX)
    text = b"locked by mlx_cogvideo\nprocess 12 on a-host since 10:00:00\n[]\n"
    threading.Timer(0.05, os.pwrite, (stream, text, 0)).start()
    with pytest.raises(OutputError, match="by process 12 on a-host since 10:00:00"):
        check_unlocked(tmp_path / "video.mp4", "")
    os.close(stream)


def test_the_time_in_a_message_is_that_of_the_lock(tmp_path, monkeypatch):
    now = ["10:00:00"]
    monkeypatch.setattr("mlx_cogvideo.files.time.strftime", lambda _: now[0])
    with locked(tmp_path / "v.mp4", ""):
        now[0] = "11:00:00"
        temporary_path(tmp_path / "v.mp4")
        assert "since 10:00:00" in (tmp_path / ".v.mp4.lock").read_text()


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


def test_two_paths_to_one_file_are_one_lock(folder):
    (folder / "here").symlink_to(folder)
    with locked_elsewhere(folder / "video.mp4"):
        for path in ("video.mp4", "./video.mp4", "here/video.mp4"):
            with pytest.raises(OutputError, match="is being written by"):
                write_video(path, make_clip(1), 8)


@pytest.mark.parametrize("kind", ["folder", "file", "link", "pipe"])
def test_a_file_with_the_name_of_a_lock_is_left_alone(tmp_path, kind):
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
    listed = ["notes.part", "../.outside.part", "..", "/", "", 3, None, ".other.mp4.01234567.part"]
    lock.write_text("\n".join(["locked by mlx_cogvideo", "process 1", json.dumps(listed), ""]))
    (tmp_path / ".other.mp4.01234567.part").write_text("mine")
    write_video(tmp_path / "video.mp4", make_clip(1), 8)
    assert names(tmp_path) == {"video.mp4", "notes.part", ".other.mp4.01234567.part"}
    assert outside.exists()


def test_on_a_file_system_without_locks_nothing_is_removed(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    lines = ["locked by mlx_cogvideo", "process 1", json.dumps([".v.mp4.01234567.part"]), ""]
    (tmp_path / ".v.mp4.lock").write_text("\n".join(lines))
    (tmp_path / ".v.mp4.01234567.part").write_text("growing")
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_video(tmp_path / "v.mp4", make_clip(1), 8)
    assert names(tmp_path) == {"v.mp4", ".v.mp4.lock", ".v.mp4.01234567.part"}
    assert (tmp_path / ".v.mp4.lock").read_text() == "\n".join(lines)
    assert "can't be locked (Operation not supported)" in caplog.records[0].getMessage()


def test_a_lock_that_another_process_has_replaced_is_left_to_it(tmp_path):
    path = tmp_path / "v.mp4"
    with locked(path, ""):
        (tmp_path / ".v.mp4.lock").unlink()  # as if it were stale
        with locked_elsewhere(path):
            mine = (tmp_path / ".v.mp4.lock").stat().st_ino
            with pytest.raises(OutputError), locked(tmp_path / ".." / tmp_path.name / "v.mp4", ""):
                raise OutputError("any error ends the block")
            assert (tmp_path / ".v.mp4.lock").stat().st_ino == mine


def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path):
    code = (
        "import os, pathlib, sys\n"
        "from mlx_cogvideo.files import locked\n"
        "path = pathlib.Path('v.mp4')\n"
        "with locked(path, ''):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        sys.exit()\n"
        "    os.waitpid(child, 0)\n"
        "    assert os.path.exists('.v.mp4.lock')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment())
    assert names(tmp_path) == set()


def test_a_line_break_in_a_name_removes_no_other_file(folder):
    (folder / ".mine.part").write_text("mine")
    name = "x\n.mine.part\ny.mp4"
    killed(
        folder,
        "from pathlib import Path",
        "from mlx_cogvideo.files import locked, temporary_path",
        f"lock = locked(Path({name!r}), '')",
        "lock.__enter__()",
        f"temporary_path(Path({name!r})).touch()",
    )
    assert len(names(folder)) == 3
    with locked(folder / name, ""):
        pass
    assert names(folder) == {".mine.part"}


def test_temporaries_of_a_killed_command_beside_and_inside_its_output_are_removed(folder):
    """A preview beside a video, and an adapter and samples in a training's folder."""
    (folder / "a" / "samples").mkdir(parents=True)
    (folder / "a" / "samples" / ".mine.part").write_text("mine")
    killed(
        folder,
        "from pathlib import Path",
        "from mlx_cogvideo.files import locked, temporary_path",
        "video, preview = locked(Path('v.mp4'), ''), locked(Path('v.mp4.preview.gif'), '')",
        "video.__enter__(), preview.__enter__()",
        "temporary_path(Path('v.mp4.preview.gif')).touch()",
        "training = locked(Path('a'), '')",
        "training.__enter__()",
        "temporary_path(Path('a/weights.safetensors'), '.part.safetensors').touch()",
        "sample = locked(Path('a/samples/1.mp4'), '')",
        "sample.__enter__()",
        "temporary_path(Path('a/samples/1.mp4')).touch()",
    )
    assert len(names(folder)) == 5 and len(names(folder / "a" / "samples")) == 3
    with locked(folder / "v.mp4", ""), locked(folder / "a", ""):
        pass
    assert names(folder) == {"a"} and names(folder / "a") == {"samples"}
    assert names(folder / "a" / "samples") == {".mine.part"}


def test_a_finished_output_that_cannot_be_renamed_survives_a_kill(folder):
    killed(
        folder,
        "from mlx_cogvideo.files import locked, temporary_path",
        "from mlx_cogvideo.video.paths import publish",
        "from mlx_cogvideo import OutputError",
        "from pathlib import Path",
        "lock = locked(Path('v.mp4'), '')",
        "lock.__enter__()",
        "part = temporary_path(Path('v.mp4'))",
        "part.write_text('finished')",
        "Path('v.mp4').write_text('newer')",
        "try:",
        "    publish(part, Path('v.mp4'), overwrite=False)",
        "except OutputError:",
        "    pass",
    )
    write_video("v.mp4", make_clip(1), 8, overwrite=True)
    (part,) = names(folder) - {"v.mp4"}
    assert (folder / part).read_text() == "finished"


def test_a_batch_with_two_paths_to_one_file_is_refused(folder, capsys):
    (folder / "1").mkdir()
    (folder / "2").symlink_to("1")
    (folder / "p.txt").write_text("a red circle\na blue square\n")
    assert run("--prompt-file", "p.txt", *SMALL, "--seed", 1, "-o", "{index}/v.mp4") == 2
    assert "2 videos would be called v.mp4" in errors(capsys.readouterr().err)[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_conversion_leaves_nothing(folder, number):
    code = (
        "import os, signal\n"
        "from mlx_cogvideo.checkpoints.tensor_files import SafetensorsWriter\n"
        "from mlx_cogvideo.cli.convert import main\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"  # nohup has it ignored
        f"SafetensorsWriter.write = lambda *_: os.kill(os.getpid(), {int(number)})\n"
        "raise SystemExit(main(['--model', 'demo', '--mlx-path', 'tiny', '--quiet']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 130 and ended.stderr == "interrupted: nothing was written\n"
    assert names(folder) == set()


@pytest.mark.parametrize("path", ["/", "a\0b.mp4"])
def test_a_path_without_a_name_is_one_line(path):
    with pytest.raises(OutputError, match="is no name for an output"):
        locked(Path(path), "").__enter__()


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


@pytest.fixture
def writing(folder) -> Iterator[subprocess.Popen]:
    """A process that denoises video.mp4 and has saved a step of it."""
    process = start("--prompt", PROMPT, "--output", "video.mp4", *SMALL, "--steps", 400)
    try:
        while not (folder / "video.mp4.resume").exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--dry-run"]], ids=str)
def test_a_second_run_with_one_output_is_refused_before_it_computes(
    folder, writing, capsys, option
):
    assert generate("video.mp4", *option) == 1
    (line,) = errors(capsys.readouterr().err)
    assert f"video.mp4 is being written by process {writing.pid} on" in line
    assert "wait until that ends, or choose another --output" in line
    assert run("--resume", "video.mp4.resume", "--output", "other.mp4", *option) == 1
    assert f"written by process {writing.pid}" in errors(capsys.readouterr().err)[0]
    assert "video.mp4" not in names(folder)


def test_other_outputs_are_written_beside_a_locked_one(folder, writing):
    assert run("--prompt", PROMPT, *SMALL, "--seed", 1, 2, "-o", "video{seed}.mp4") == 0
    assert {"video1.mp4", "video2.mp4"} <= names(folder)
    assert "video.mp4" not in names(folder)


def test_a_killed_run_frees_its_output_and_keeps_its_saved_steps(folder, writing):
    writing.kill()
    writing.wait()
    assert run("--resume", "--dry-run") == 0
    assert generate("video.mp4", "--overwrite") == 0
    assert names(folder) == {"video.mp4"}
    assert read_record("video.mp4")["settings"]["seed"] == 1
    assert len(read_video("video.mp4")[0]) == 9


def test_a_batch_names_the_video_that_another_process_writes_and_makes_the_rest(folder, capsys):
    with locked_elsewhere(folder / "v2.mp4"):
        assert run("--prompt", PROMPT, *SMALL, "--seed", 1, 2, 3, "-o", "v{seed}.mp4") == 1
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("error: seed 2: v2.mp4 is being written by")
    assert names(folder) == {"v1.mp4", "v3.mp4"}


def test_more_outputs_than_the_limit_of_open_files_can_be_locked(folder):
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
        assert convert(["--model", "demo", "--mlx-path", "tiny", "--dry-run"]) == 1
    first, second = errors(capsys.readouterr().err)
    assert first == second and "tiny is being written by" in first
    assert "wait until that ends, or choose another --mlx-path" in first
    assert convert(["--model", "demo", "--mlx-path", "tiny"]) == 0
    assert names(folder) == {"tiny"}


def test_the_temporary_of_a_killed_conversion_is_removed_by_the_next(folder):
    code = (
        "import os, signal\n"
        "from mlx_cogvideo.checkpoints.tensor_files import SafetensorsWriter\n"
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
