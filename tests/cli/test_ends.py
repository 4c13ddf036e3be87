"""How a command ends: without readers of its streams, and where a step never does."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import PROMPT, SCRIPT, SMALL, run

from mlx_cogvideo.video import read_record, write_video

RUN = [sys.executable, str(SCRIPT), "--prompt", PROMPT, *SMALL, "--seed", "1", "--output"]
STUCK = """
import ctypes, sys
from mlx_cogvideo.cli.generate import main
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel
def stuck(*_, **__):
    print("stuck", flush=True)
    lock = ctypes.create_string_buffer(256)
    for _ in range(2):  # the second time it waits for itself, outside of Python
        ctypes.CDLL(None).pthread_mutex_lock(lock)
CogVideoXTransformer3DModel.__call__ = stuck
sys.exit(main(sys.argv[1:]))
"""


def shell(script: str, folder, output: str = "video.mp4") -> subprocess.CompletedProcess:
    """Runs a script of the shell, in which ``"$@"`` makes a video."""
    command = ["bash", "-c", f"set -o pipefail; {script}", "bash", *RUN, output]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        pytest.param('"$@" --quiet | true', 0, "", id="nobody reads stdout"),
        pytest.param('"$@" --quiet >&-', 0, "", id="stdout is closed"),
        pytest.param('"$@" 2>&-', 0, "", id="stderr is closed"),
        pytest.param('"$@" <&- >&- 2>&-', 0, "", id="all are closed"),
        pytest.param('"$@" 2>/dev/full', 0, "", id="stderr is full"),
        pytest.param('"$@" --quiet >/dev/full', 0, "No space left", id="stdout is full"),
        pytest.param('"$@" --quiet --json-events | head -n 1', 0, "", id="events have no reader"),
    ],
)
def test_a_video_is_made_whatever_becomes_of_the_streams(tmp_path, script, code, message):
    if "/dev/full" in script and sys.platform != "linux":
        pytest.skip("only Linux has /dev/full")
    done = shell(script, tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr and len(done.stderr.splitlines()) == bool(message)
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
    assert read_record(tmp_path / "video.mp4")["settings"]["prompt"] == PROMPT


def test_a_name_is_printed_where_the_terminal_lacks_its_letters(tmp_path):
    done = shell('PYTHONIOENCODING=ascii "$@" --quiet', tmp_path, "猫.mp4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u732b.mp4\n", "")


@pytest.mark.parametrize(("name", "pause"), [("SIGINT", 0.1), ("SIGTERM", 1.2)])
def test_a_step_that_never_ends_is_left_after_the_second_signal(tmp_path, name, pause):
    command = [sys.executable, "-c", STUCK, *RUN[2:], "video.mp4", "--quiet", "--json-events"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "stuck\n" in iter(process.stdout.readline, "")
    process.send_signal(getattr(signal, name))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(pause)
    process.send_signal(getattr(signal, name))
    began = time.monotonic()
    events, messages = process.communicate(timeout=30)
    assert process.returncode == 130
    assert 4 < time.monotonic() - began < 12
    last = messages.splitlines()[-1]
    assert last == "stopped inside a step that doesn't end; what was saved before is kept"
    (end,) = map(json.loads, events.splitlines())
    assert (end["event"], end["error"], end["exit_code"]) == ("end", last, 130)


def test_a_record_is_shown_without_what_terminals_obey(tmp_path, capsys):
    frame = np.zeros((1, 16, 16, 3), np.uint8)
    record = {"mlx_cogvideo": "0", "settings": {"prompt": "\x1b[2J\x9b2J\x7f 猫"}}
    write_video(tmp_path / "a.mp4", frame, 8, record=record)
    assert run("--show", tmp_path / "a.mp4") == 0
    shown = capsys.readouterr().out
    assert "\\u001b[2J\\u009b2J\\u007f 猫" in shown and json.loads(shown) == record
