"""Benchmark cases that run in their own processes, and the size at which they run."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tools/checks", "tests")]


def run_apart(title: str, command: list[str], **how) -> subprocess.CompletedProcess | None:
    """Runs a command. If it fails or exceeds `timeout`, prints one line and returns None."""
    try:
        done = subprocess.run(command, text=True, check=False, **how)
    except subprocess.TimeoutExpired as error:
        print(f"{title} not finished in {error.timeout:g} s", flush=True)
        return None
    if done.returncode:
        print(f"{title} failed: {last_line(done.stderr)}", flush=True)
        return None
    return done


def run_together(
    title: str, command: list[str], environments: Sequence[Mapping[str, str]], timeout: float
) -> list[str] | None:
    """Runs a command in several processes at once, and returns what each has printed.

    If one of them fails, or they exceed `timeout`, ends all, prints one line and returns None.

    Args:
        environments: the environment variables of each process, besides this one's own.
    """
    with ExitStack() as stack:
        count, processes = len(environments), []
        # Files, because a full pipe would stop a process while others wait for it.
        outputs = [stack.enter_context(TemporaryFile("w+")) for _ in range(count)]
        errors = [stack.enter_context(TemporaryFile("w+")) for _ in range(count)]
        try:
            for variables, output, error in zip(environments, outputs, errors, strict=True):
                environment = {**os.environ, **variables}
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=error)
                )
            failed = _wait(processes, timeout)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed is None:
            print(f"{title} not finished in {timeout:g} s", flush=True)
            return None
        if failed:
            reasons = [(rank, last_line(_contents(errors[rank]))) for rank in failed]
            # Others fail because a process is gone: the first to fail says why it is.
            rank, reason = min(reasons, key=lambda each: "another process is gone" in each[1])
            code = processes[rank].returncode
            how = "failed" if code > 0 else f"was ended by signal {-code}"
            print(f"{title} process {rank} {how}: {reason}", flush=True)
            return None
        return [_contents(output) for output in outputs]


def _wait(processes: list[subprocess.Popen], timeout: float) -> list[int] | None:
    """Waits until all have ended or one has failed; returns the failed ones.

    None means that they exceed the timeout.
    """
    end = time.monotonic() + timeout
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed or None not in codes:
            return failed
        if time.monotonic() > end:
            return None
        time.sleep(0.05)


def _contents(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def last_line(text: str) -> str:
    return (text.strip() or "no message").splitlines()[-1][:150]


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `model_and_size` reads."""
    parser.add_argument("variant", help="2b, 5b, 5b-i2v, 1.5-5b, 1.5-5b-i2v or demo")
    parser.add_argument(
        "--frames", type=int, help="frames of the video (default: the variant's own)"
    )
    parser.add_argument("--height", type=int, help="in pixels (default: the variant's own)")
    parser.add_argument("--width", type=int, help="in pixels (default: the variant's own)")


def add_cases(parser: argparse.ArgumentParser, cases: list[str], steps: int) -> None:
    """Adds the options of a benchmark that times steps, each case in a process of its own.

    Args:
        steps: steps to time by default.
    """
    add = parser.add_argument
    add(
        "--cases",
        nargs="+",
        default=cases,
        metavar="CASE",
        help=f"cases to run, of: {', '.join(cases)}",
    )
    add("--steps", type=int, default=steps, help=f"steps to time (default: {steps})")
    add("--timeout", type=float, help="seconds after which a case is stopped (default: none)")
    add("--folder", type=Path, help="folder to keep the checkpoint in (default: a temporary one)")
    add("--case", help=argparse.SUPPRESS)


def model_and_size(args: argparse.Namespace):
    """Returns the configuration of a variant's transformer, and the requested geometry."""
    from official import TRANSFORMERS

    from mlx_cogvideo.checkpoints import DEMO_PATH, read_config
    from mlx_cogvideo.checkpoints.variants import match_variant
    from mlx_cogvideo.nn.autoencoder import AutoencoderConfig
    from mlx_cogvideo.nn.transformer import TransformerConfig
    from mlx_cogvideo.pipeline.geometry import Geometry

    if args.variant == "demo":
        contents = read_config(DEMO_PATH / "transformer" / "config.json")
    else:
        contents = TRANSFORMERS[args.variant.replace("-", "_")]
    config = TransformerConfig.from_dict(contents)
    geometry = Geometry.choose(
        match_variant(config),
        config,
        AutoencoderConfig(),
        num_frames=args.frames,
        height=args.height,
        width=args.width,
    )
    return config, geometry
