"""Kills a server, its worker or both at random moments, and checks that each job is done once.

    python tools/checks/killed_server.py --moments 10

Videos are requested from ``mlx-cogvideo serve`` over HTTP, so that two are unfinished at any time,
and one more while the server is about to be killed. A request counts as accepted once its answer
has come. A server that was killed is started again at once. In the end each accepted video must be
there, with the frames of an uninterrupted run, made once; and nothing may be left beside it.
"""

import argparse
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from killed_runs import PROMPT, ROOT, frames_of, run

VICTIMS = ("server", "worker", "both")
LONGEST = 1200
"""Seconds that all may take after the last moment."""


class Server:
    """The command, and how it is reached."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen | None = None
        self.longest_start = 0.0
        self.log = open(folder.with_suffix(".txt"), "wb")  # noqa: SIM115

    def start(self) -> None:
        """Starts it and waits until it answers."""
        begin = time.perf_counter()
        command = [sys.executable, "-m", "mlx_cogvideo", "serve", "--folder", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], cwd=ROOT, stderr=self.log, stdout=self.log
        )
        while self.ask("GET", "/v1/videos?limit=1") is None:
            assert self.process.poll() is None, "the server doesn't start"
            assert time.perf_counter() < begin + 60, "the server doesn't answer"
            time.sleep(0.05)
        self.longest_start = max(self.longest_start, time.perf_counter() - begin)

    def ask(self, method: str, path: str, values: dict[str, Any] | None = None) -> Any:
        """The answer to a request; None if there is none. A refusal is an error."""
        body = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            body,
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is starting
                return None
            raise AssertionError(f"{method} {path}: {error.code} {error.read()!r}") from None
        except (OSError, ValueError):  # nobody listens, or no longer
            return None

    def states(self) -> Counter:
        """How many jobs are in each state."""
        return Counter(video["state"] for video in self.ask("GET", "/v1/videos?limit=100")["data"])

    def workers(self) -> list[int]:
        """The process that carries out a job, if there is one: the server starts no others."""
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
        pairs = [tuple(map(int, line.split())) for line in table.stdout.splitlines()]
        return [pid for pid, parent in pairs if parent == self.process.pid]

    def kill(self, victim: str) -> list[str]:
        """Ends processes by SIGKILL; returns which there were."""
        killed = []
        workers = self.workers() if victim != "server" else []
        if victim != "worker":
            self.process.kill()
            self.process.wait()
            killed.append("server")
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            killed.append("worker")
        return killed

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.log.close()


class Requests:
    """Requests of videos, and those that were accepted: their seeds by id."""

    def __init__(self, server: Server, steps: int, seeds: int):
        self.accepted: dict[str, int] = {}
        self._server, self._steps = server, steps
        self._seeds = itertools.cycle(range(seeds))

    def send(self) -> None:
        seed = next(self._seeds)
        settings = {"model": "demo", "prompt": PROMPT, "seed": seed, "scheduler": "dpm"}
        settings |= {"num_inference_steps": self._steps}
        video = self._server.ask("POST", "/v1/videos", settings)
        if video is not None:
            self.accepted[video["id"]] = seed

    def keep_two_unfinished(self) -> None:
        states = self._server.states()
        for _ in range(2 - states["queued"] - states["running"]):
            self.send()


def kill_at_random(server: Server, requests: Requests, moments: random.Random, whole: float) -> str:
    """Kills processes at a random moment, starts the server again and returns what was killed."""
    requests.keep_two_unfinished()
    moment, victim = moments.uniform(0, whole * 0.7), moments.choice(VICTIMS)
    time.sleep(moment)
    sender = threading.Thread(target=requests.send)
    sender.start()
    time.sleep(moments.uniform(0, 0.1))
    killed = server.kill(victim)
    if "server" in killed:
        server.start()
    sender.join()
    words = " and ".join(killed) or "nobody"
    print(f"     after {moment:4.1f} s: {words}; then {dict(server.states())}", flush=True)
    return words


def wait_for_all(server: Server, accepted: dict[str, int], seen: Counter) -> None:
    """Waits until all jobs are over; has one that was killed too often go on."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        videos = server.ask("GET", "/v1/videos?limit=100")["data"]
        states = {video["id"]: video["status"] for video in videos}
        assert accepted.keys() <= states.keys(), "a job is lost"
        if set(states.values()) == {"completed"}:
            return
        for video in videos:
            if video["status"] == "failed":
                seen["resumed by hand"] += 1
                print(f"     {video['id']}: {video['error']['message']}")
                server.ask("POST", f"/v1/videos/{video['id']}/resume")
        time.sleep(0.2)
    raise AssertionError("the jobs don't end")


def check(folder: Path, accepted: dict[str, int], expected: dict[int, np.ndarray]) -> int:
    """Checks what is there in the end; returns the jobs whose request had no answer."""
    # A folder without a description is of a request that the kill came before.
    done = {path.parent.name for path in (folder / "jobs").glob("*/job.json")}
    assert accepted.keys() <= done
    names = {path.name for path in (folder / "videos").iterdir()}
    assert names == {f"{i}.mp4" for i in done}, names ^ {f"{i}.mp4" for i in done}
    for job_id in done:
        job = folder / "jobs" / job_id
        events = [json.loads(line) for line in (job / "events.jsonl").open() if line[-2:] == "}\n"]
        assert sum(event["event"] == "output" for event in events) <= 1, f"{job_id}: made twice"
        seed = json.loads((job / "options.json").read_text())["seed"]
        assert accepted.get(job_id, seed) == seed
        assert np.array_equal(frames_of(folder / "videos" / f"{job_id}.mp4"), expected[seed])
    return len(done) - len(accepted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--moments", type=int, default=10, help="moments to kill (default: 10)")
    parser.add_argument("--seeds", type=int, default=3, help="different videos (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random moments (default: 0)"
    )
    args = parser.parse_args()
    moments, seen = random.Random(args.seed), Counter()

    with tempfile.TemporaryDirectory() as temporary:
        expected: dict[int, np.ndarray] = {}
        for seed in range(args.seeds):
            output, begin = Path(temporary) / f"{seed}.mp4", time.perf_counter()
            words = ["--model", "demo", "--prompt", PROMPT, "--scheduler", "dpm", "--quiet"]
            words += ["--steps", str(args.steps), "--seed", str(seed), "--output", str(output)]
            run([sys.executable, str(ROOT / "generate.py"), *words])
            whole = time.perf_counter() - begin
            expected[seed] = frames_of(output)
        print(f"an uninterrupted run takes {whole:.1f} s")

        folder = Path(temporary) / "home"
        server = Server(folder)
        requests = Requests(server, args.steps, args.seeds)
        server.start()
        for _ in range(args.moments):
            seen[kill_at_random(server, requests, moments, whole)] += 1
        wait_for_all(server, requests.accepted, seen)
        unanswered = check(folder, requests.accepted, expected)
        server.stop()
    print(f"killed: {dict(seen)}; a start took {server.longest_start:.1f} s at most")
    print(
        f"{len(requests.accepted)} accepted jobs and {unanswered} without an answer are done once, "
        "with the frames of uninterrupted runs"
    )


if __name__ == "__main__":
    main()
