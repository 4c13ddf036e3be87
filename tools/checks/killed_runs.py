"""Kills runs of the demo at random moments, and checks what they leave and how they resume.

    python tools/checks/killed_runs.py --runs 20

An uninterrupted run comes first. Each of the others is stopped with SIGKILL between its start and
its end, and resumed. If it hasn't saved anything yet, it is started again. Two things are checked:
the output's name holds either nothing or the whole video at any time; and in the end the frames are
the same, and nothing is left beside the output.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from mlx_cogvideo.video import read_video
from mlx_cogvideo.video.paths import frame_files

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle moves right on a white background"
NAMES = ("video.mp4", "frames", "video.gif")


def command(output: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "generate.py"), "--quiet", "--output", str(output), *more]


def new_run(output: Path, steps: int) -> list[str]:
    arguments = ["--prompt", PROMPT, "--seed", "7", "--scheduler", "dpm", "--save-every", "1"]
    return command(output, *arguments, "--steps", str(steps))


def run(arguments: list[str]) -> None:
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)


def frames_of(output: Path) -> np.ndarray:
    files = frame_files(output) if output.is_dir() else [output]
    return np.concatenate([read_video(file)[0] for file in files])


def kill_after(arguments: list[str], seconds: float) -> None:
    """Starts a command and kills it with SIGKILL after some seconds."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    time.sleep(seconds)
    process.kill()
    process.wait()


def finish(output: Path, steps: int, expected: np.ndarray) -> tuple[str, list[str]]:
    """Completes a killed run and checks the result.

    Returns:
        What was done, and the files that the killed run had left.
    """
    # The next run takes over the locks of a killed one.
    left = sorted(file.name for file in output.parent.iterdir() if file.suffix != ".lock")
    if output.exists():
        assert np.array_equal(frames_of(output), expected), left
    if f"{output.name}.resume" in left:
        outcome, again = "resumed", command(output, "--resume")
    elif output.exists():
        outcome, again = "already finished", None
    else:
        outcome, again = "started again", new_run(output, steps)
    if again:
        run(again)
    assert np.array_equal(frames_of(output), expected)
    after = [file.name for file in output.parent.iterdir() if again or file.suffix != ".lock"]
    assert after == [output.name], after
    return outcome, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=20, help="runs to kill (default: 20)")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps (default: 10)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random moments (default: 0)"
    )
    args = parser.parse_args()
    moments = random.Random(args.seed)
    seen = Counter()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        expected = {}
        for name in NAMES:
            start = time.perf_counter()
            run(new_run(folder / f"whole-{name}", args.steps))
            whole = time.perf_counter() - start
            expected[name] = frames_of(folder / f"whole-{name}")
        print(f"an uninterrupted run takes {whole:.1f} s")

        for i in range(args.runs):
            place = folder / str(i)
            place.mkdir()
            output = place / NAMES[i % len(NAMES)]
            moment = moments.uniform(0, whole)
            kill_after(new_run(output, args.steps), moment)
            outcome, left = finish(output, args.steps, expected[output.name])
            seen[outcome] += 1
            killed = f"killed after {moment:4.1f} s, left {left}"
            print(f"{i + 1:3}  {output.name:10} {killed}: {outcome}")
    print(f"{args.runs} runs, same frames each time: {dict(seen)}")


if __name__ == "__main__":
    main()
