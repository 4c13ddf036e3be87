"""The commands ``serve`` and ``ui``: what they say, lock and leave, as processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("gradio", reason="the server needs the extra ui")

import httpx
from api_server import QUICK, until
from support import environment

from mlx_cogvideo.web.commands import EXTRA

COMMAND = [sys.executable, "-m", "mlx_cogvideo"]


def start(*arguments) -> subprocess.Popen:
    line = [*COMMAND, *map(str, arguments)]
    pipe = subprocess.PIPE
    # As where tests are run in the background of a shell, which ignores the signal for them.
    return subprocess.Popen(
        line, stdout=pipe, stderr=pipe, text=True, env=environment(), start_new_session=True
    )


@contextmanager
def served(*arguments):
    """A server that has said where it is, and its address."""
    process = start("serve", "--port", 0, *arguments)
    try:
        line = process.stderr.readline()
        found = re.search(r"http://[^ ]+", line)
        assert found, line + process.stderr.read()
        yield process, found[0].rstrip(","), line
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_the_port_answers_at_once_and_ctrl_c_keeps_the_running_job(tmp_path):
    begin = time.monotonic()
    with served("--folder", tmp_path / "home") as (process, url, _):
        assert httpx.get(f"{url}health").status_code == 200
        assert time.monotonic() - begin < 30  # 2 where nothing else runs
        body = {**QUICK, "num_inference_steps": 900}
        path = f"{url}v1/videos/{httpx.post(f'{url}v1/videos', json=body).json()['id']}"
        until(lambda: httpx.get(path).json()["step"] >= 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        said = process.stderr.read().splitlines()
        assert [line.partition(":")[0] for line in said] == [
            "stopping",
            "stopped; jobs that aren't finished go on at the next start",
        ]
    with served("--folder", tmp_path / "home") as (process, url, _):
        path = re.sub(r"^http://[^/]+/", url, path)
        video = until(lambda: (v := httpx.get(path).json())["state"] == "running" and v)
        until(lambda: httpx.get(path).json()["step"] > video["step"])
        assert httpx.delete(path).json()["deleted"]


def test_two_servers_share_neither_a_folder_nor_a_port(tmp_path):
    with served("--folder", tmp_path / "a") as (_, url, _):
        port = httpx.URL(url).port
        done = start("serve", "--port", port, "--folder", tmp_path / "b")
        problem = done.communicate(timeout=60)[1]
        assert problem == (
            f"error: port {port} is taken by another program: choose another --port\n"
        )
        assert done.returncode == 1
        done = start("serve", "--port", 0, "--folder", tmp_path / "a")
        problem = done.communicate(timeout=60)[1]
        assert done.returncode == 1 and problem.count("\n") == 1
        assert "choose another --folder" in problem and f"at {url}" in problem
        assert (tmp_path / "a" / "address.txt").exists()
    assert not (tmp_path / "a" / "address.txt").exists()


def test_another_host_makes_a_token_and_says_so(tmp_path):
    with served("--folder", tmp_path, "--host", "0.0.0.0") as (_, url, line):
        token = re.search(r"\?token=([\w-]+)", url)[1]
        local = f"http://127.0.0.1:{httpx.URL(url).port}"
        assert len(token) == 32 and "token" in line and "HTTPS" in line
        assert httpx.get(f"{local}/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{local}/v1/models/demo", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--port", "70000"), "must be from 0 to 65535, got 70000"),
        (("--token", "short"), "must have at least 8 letters"),
        (("--most-queued", "0"), "must be at least 1"),
        (("--share",), "nothing is sent to other hosts"),
        (("--host", "no.such.host.invalid"), "is no address of this machine"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, problem):
    done = start("serve", "--folder", tmp_path, *options)
    said = done.communicate(timeout=60)[1]
    assert done.returncode == 2 and problem in said and said.count("\n") == 1


@pytest.mark.parametrize(("command", "what"), [("ui", "the page"), ("serve", "the server")])
def test_without_the_extra_one_line_says_what_to_install(tmp_path, command, what):
    hidden = "import sys\nfor name in ('gradio', 'fastapi', 'uvicorn'): sys.modules[name] = None\n"
    code = f"{hidden}from mlx_cogvideo.cli.main import main\nsys.exit(main([{command!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.stderr == f'error: {what} needs gradio: pip install "{EXTRA}"\n'
    assert done.returncode == 1 and not os.listdir(tmp_path)


@pytest.mark.parametrize("command", ["generate", "lora", "convert", "check", "ui", "serve"])
def test_commands_import_nothing_of_the_extra_for_their_help(command):
    code = (
        "import sys, mlx_cogvideo\nfrom mlx_cogvideo.cli.main import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit: pass\n"
        "extra = {'gradio', 'fastapi', 'starlette', 'uvicorn', 'python_multipart'}\n"
        "sys.exit(str(extra & sys.modules.keys()) if extra & sys.modules.keys() else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
