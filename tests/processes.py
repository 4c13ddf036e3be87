"""Several processes on this machine, over MLX's ring backend."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

LAUNCH = Path(sysconfig.get_path("scripts")) / "mlx.launch"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def launched(arguments: list, script: Path, count: int = 2, **options) -> str:
    """Runs a script in several processes by mlx.launch and returns what they print."""
    launch = [LAUNCH, "-n", count, "--backend", "ring", "--starting-port", *free_ports(1), "--"]
    done = subprocess.run(
        [str(word) for word in [*launch, sys.executable, script, *arguments]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(arguments: list, script: Path, count: int, folder: Path) -> list[subprocess.Popen]:
    """Starts the processes of a group without a launcher; `folder` is their current one."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
    group = {"MLX_HOSTFILE": str(hosts)} if count > 1 else {}
    return [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **group, **({"MLX_RANK": str(rank)} if group else {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes: list[subprocess.Popen], timeout: float = 90) -> list[tuple[int, str, str]]:
    """Waits for all; returns their exit codes and what they printed on stdout and stderr."""
    try:
        printed = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, printed, strict=True)]
