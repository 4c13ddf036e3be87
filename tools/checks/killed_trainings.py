"""Kills a training of the demo at random moments, again and again, and checks the result.

    python tools/checks/killed_trainings.py --kills 10
    python tools/checks/killed_trainings.py --fine-tune-type full --kills 20 -- --dtype bfloat16

An uninterrupted training runs first. A second one is stopped with SIGKILL, resumed, stopped again,
and so on. If it hasn't saved anything yet, it is started again. Every other kill comes while a
checkpoint is written, and the last quarter of a full training's while its model folder is. In the
end, both results and last checkpoints must have the same bytes, and no part of a file may be left.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from mlx_cogvideo.files import file_digest
from mlx_cogvideo.training.checkpoint import MODEL, saved_checkpoints
from mlx_cogvideo.training.settings import FINE_TUNE_TYPES
from mlx_cogvideo.video import write_video

ROOT = Path(__file__).parents[2]
ADAPTER = ["pytorch_lora_weights.safetensors", "adapter_config.json"]
LONGEST_WRITE = 0.005
"""Seconds that writing a checkpoint of the demo takes at most."""


def make_clips(folder: Path) -> None:
    folder.mkdir()
    pixels = np.random.default_rng(0)
    for name in "abc":
        write_video(folder / f"{name}.mp4", pixels.integers(0, 256, (9, 48, 64, 3), np.uint8), 8)
        (folder / f"{name}.txt").write_text(f"noise, take {name}")


def command(data: Path, folder: Path, args: argparse.Namespace) -> list[str]:
    options = ["--model", "demo", "--frames", "9", "--height", "48", "--width", "64"]
    options += ["--batch-size", "2", "--lr-schedule", "cosine", "--save-every", "3", "--quiet"]
    options += ["--fine-tune-type", args.fine_tune_type, "--iters", str(args.iters)]
    if args.fine_tune_type != "full":
        options += ["--rank", "8"]
    paths = ["--data", str(data), "--adapter-path", str(folder)]
    return [sys.executable, str(ROOT / "lora.py"), *paths, *options, *args.options]


def results(folder: Path) -> dict[str, str]:
    """The digests of what a training has made, by name, without the card of a model."""
    files = [folder / name for name in ADAPTER if (folder / name).exists()]
    files += saved_checkpoints(folder)[-1].iterdir()
    files += [path for path in (folder / MODEL).rglob("*") if path.suffix != ".md"]
    return {str(path.relative_to(folder)): file_digest(path) for path in files if path.is_file()}


def hidden(folder: Path) -> list[str]:
    """The locks and the parts of files and folders that are there, inside a folder or beside it."""
    found = [*folder.parent.glob(f".{folder.name}*"), *folder.rglob(".*")]
    return sorted(str(path.relative_to(folder.parent)) for path in found)


def wait_for(pattern: str, folder: Path, process: subprocess.Popen) -> None:
    """Waits until a file or a folder is being written, or the process has ended."""
    before = numbers(pattern, folder)  # of what an earlier kill has left
    while process.poll() is None and not numbers(pattern, folder) - before:
        time.sleep(0.0002)


def numbers(pattern: str, folder: Path) -> set[int]:
    """The numbers in the file system of the files and folders that match a pattern."""
    found = set()
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--kills", type=int, default=10, help="times to kill the training (default: 10)"
    )
    parser.add_argument("--iters", type=int, default=500, help="updates (default: 500)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random moments (default: 0)"
    )
    parser.add_argument(
        "--fine-tune-type", choices=FINE_TUNE_TYPES, default="lora", help="default: lora"
    )
    parser.add_argument("options", nargs="*", help="more options of the training, after --")
    args = parser.parse_args()
    moments = random.Random(args.seed)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_clips(folder / "clips")
        start = time.perf_counter()
        whole = command(folder / "clips", folder / "whole", args)
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - start
        print(f"an uninterrupted training takes {took:.1f} s", flush=True)

        killed = folder / "killed"
        run = command(folder / "clips", killed, args)
        for kill in range(args.kills):
            process = subprocess.Popen(run + resumed(killed), stdout=subprocess.DEVNULL)
            if args.fine_tune_type == "full" and kill >= 3 * args.kills // 4:
                wait_for(f".{MODEL}.*", killed, process)
            else:
                time.sleep(moments.uniform(0, took / 6))
                if kill % 2:
                    wait_for("checkpoints/.*", killed, process)
            time.sleep(moments.uniform(0, LONGEST_WRITE))
            outcome = "killed" if process.poll() is None else "already finished"
            process.kill()
            process.wait()
            saved = [path.name for path in saved_checkpoints(killed)]
            left = ", ".join(hidden(killed))
            print(f"{kill + 1:3}  {outcome}: checkpoints {saved}, and {left}", flush=True)
        subprocess.run([*run, *resumed(killed)], check=True, stdout=subprocess.DEVNULL)
        made, expected, left = results(killed), results(folder / "whole"), hidden(killed)
        same = made == expected
        print(f"same bytes in {len(expected)} files: {same}; left behind: {left or 'nothing'}")
        sys.exit(0 if same and not left else 1)


def resumed(folder: Path) -> list[str]:
    """The option that continues the training in a folder, if there is something to continue."""
    return ["--resume"] if saved_checkpoints(folder) else []


if __name__ == "__main__":
    main()
