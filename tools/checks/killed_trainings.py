"""Kills a training of the demo at random moments, again and again, and checks the result.

    python tools/checks/killed_trainings.py --kills 10

An uninterrupted training runs first. A second one is stopped with SIGKILL, resumed, stopped again,
and so on. If it hasn't saved anything yet, it is started again. In the end, both adapters must have
the same bytes.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mlx_cogvideo.training.checkpoint import saved_checkpoints
from mlx_cogvideo.video import write_video

ROOT = Path(__file__).parents[2]
FILE = "pytorch_lora_weights.safetensors"


def make_clips(folder: Path) -> None:
    folder.mkdir()
    pixels = np.random.default_rng(0)
    for name in "abc":
        write_video(folder / f"{name}.mp4", pixels.integers(0, 256, (9, 48, 64, 3), np.uint8), 8)
        (folder / f"{name}.txt").write_text(f"noise, take {name}")


def command(data: Path, adapter: Path, iters: int) -> list[str]:
    options = ["--model", "demo", "--frames", "9", "--height", "48", "--width", "64", "--rank", "8"]
    options += ["--batch-size", "2", "--lr-schedule", "cosine", "--save-every", "3", "--quiet"]
    paths = ["--data", str(data), "--adapter-path", str(adapter)]
    return [sys.executable, str(ROOT / "lora.py"), *paths, *options, "--iters", str(iters)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--kills", type=int, default=10, help="times to kill the training (default: 10)"
    )
    parser.add_argument(
        "--iters", type=int, default=500, help="updates of the adapter (default: 500)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random moments (default: 0)"
    )
    args = parser.parse_args()
    moments = random.Random(args.seed)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_clips(folder / "clips")
        start = time.perf_counter()
        whole = command(folder / "clips", folder / "whole", args.iters)
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - start
        print(f"an uninterrupted training takes {took:.1f} s", flush=True)

        adapter = folder / "killed"
        run = command(folder / "clips", adapter, args.iters)
        for kill in range(args.kills):
            again = ["--resume"] if saved_checkpoints(adapter) else []
            moment = moments.uniform(0, took / 6)
            process = subprocess.Popen(run + again, stdout=subprocess.DEVNULL)
            time.sleep(moment)
            alive = process.poll() is None
            process.kill()
            process.wait()
            saved = [path.name for path in saved_checkpoints(adapter)]
            outcome = "killed" if alive else "already finished"
            print(f"{kill + 1:3}  {outcome} after {moment:4.1f} s, checkpoints {saved}", flush=True)
        subprocess.run([*run, "--resume"], check=True, stdout=subprocess.DEVNULL)
        same = (adapter / FILE).read_bytes() == (folder / "whole" / FILE).read_bytes()
        left = [p.name for p in adapter.rglob("*partial*")]
        print(f"same bytes: {same}; left behind: {left or 'nothing'}")
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
