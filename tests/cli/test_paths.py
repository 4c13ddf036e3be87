"""Options that name a file take a regular file on this machine, and say so before they open it."""

import fcntl
import logging
import os
import signal

import pytest
from clips import make_clip
from commands import errors, run

from mlx_cogvideo.cli.lora import main as lora
from mlx_cogvideo.video import read_video, write_video

PIPES = [
    (["--prompt", "x", "--video", "a.mp4"], "a.mp4"),
    (["--prompt", "x", "--model", "demo-i2v", "--image", "a.png"], "a.png"),
    (["--prompt", "x", "--lora", "a.safetensors"], "a.safetensors"),
    (["--prompt-file", "a.txt"], "a.txt"),
    (["--replay", "a.mp4"], "a.mp4"),
    (["--show", "a.mp4"], "a.mp4"),
    (["--config", "a.toml"], "a.toml"),
    (["--resume", "a.resume"], "a.resume"),
]


@pytest.mark.parametrize(("arguments", "name"), PIPES, ids=lambda value: str(value))
def test_a_pipe_is_no_file(tmp_path, monkeypatch, capsys, arguments, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(name)
    assert run(*arguments) == 2
    (error,) = errors(capsys.readouterr().err)
    assert f"{name} can't be read: it is not a file but a folder or pipe" in error


@pytest.mark.parametrize("option", ["--video", "--replay", "--show", "--prompt-file", "--config"])
@pytest.mark.parametrize(
    "address", ["https://a.b/c.mp4", "file:///c.mp4", "S3://a/b", "data:a/b,c"]
)
def test_an_address_is_refused_as_what_it_is(tmp_path, monkeypatch, capsys, option, address):
    monkeypatch.chdir(tmp_path)
    prompt = ["--prompt", "x"] if option == "--video" else []
    assert run(*prompt, option, address) == 2
    (error,) = errors(capsys.readouterr().err)
    assert f"{address} is an address: download it first" in error


def test_training_takes_no_address(capsys):
    assert lora(["--data", "https://a.b/clips"]) == 2
    assert "https://a.b/clips is an address: download it first" in capsys.readouterr().err


def test_a_folder_and_a_file_with_colons_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "take:").mkdir()
    write_video("take:/9:16.mp4", make_clip(9, 32, 48), 8)
    size = ["--frames", 9, "--height", 32, "--width", 48, "--dry-run"]
    assert run("--prompt", "x", "--video", "take:/9:16.mp4", *size, "--output", "12:30.gif") == 0
    write_video("12:30.gif", read_video("take:/9:16.mp4")[0], 8, record={"mlx_cogvideo": "1"})
    assert len(read_video("12:30.gif")[0]) == 9
    assert run("--show", "12:30.gif") == 0
    assert '"mlx_cogvideo": "1"' in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="a lease is what makes opening wait")
def test_training_leaves_out_a_clip_that_does_not_answer(tmp_path, capsys):
    for name in ("good", "gone"):
        write_video(tmp_path / f"{name}.mp4", make_clip(9), 8)
        (tmp_path / f"{name}.txt").write_text("a square")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    holder = os.open(tmp_path / "gone.mp4", os.O_RDONLY)
    logging.getLogger("mlx_cogvideo").handlers.clear()
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        paths = [f"--data={tmp_path}", f"--adapter-path={tmp_path / 'adapter'}"]
        assert lora([*paths, "--frames=9", "--timeout=0.3", "--dry-run"]) == 0
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)
    gone, good = capsys.readouterr().out.splitlines()
    assert "gone.mp4: left out, " in gone and "doesn't answer: nothing came for 0.3 s" in gone
    assert "good.mp4: 9 frames" in good
