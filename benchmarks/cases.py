"""Benchmark cases that run in their own processes, and the size at which they run."""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tools/checks", "tests")]


def run_apart(title: str, command: list[str], **how) -> subprocess.CompletedProcess | None:
    """Runs a command. If it fails or exceeds `timeout`, prints one line and returns None."""
    try:
        done = subprocess.run(command, text=True, check=False, **how)
    except subprocess.TimeoutExpired as error:
        print(f"{title} not finished in {error.timeout:g} s", flush=True)
        return None
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        print(f"{title} failed: {reason[:150]}", flush=True)
        return None
    return done


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `model_and_size` reads."""
    parser.add_argument("variant", help="2b, 5b, 5b-i2v, 1.5-5b or 1.5-5b-i2v")
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

    from mlx_cogvideo.checkpoints.variants import match_variant
    from mlx_cogvideo.nn.autoencoder import AutoencoderConfig
    from mlx_cogvideo.nn.transformer import TransformerConfig
    from mlx_cogvideo.pipeline.geometry import Geometry

    config = TransformerConfig.from_dict(TRANSFORMERS[args.variant.replace("-", "_")])
    geometry = Geometry.choose(
        match_variant(config),
        config,
        AutoencoderConfig(),
        num_frames=args.frames,
        height=args.height,
        width=args.width,
    )
    return config, geometry
