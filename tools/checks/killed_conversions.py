"""Kills conversions of the demo at random moments and checks what they leave behind.

    python tools/checks/killed_conversions.py --runs 20

Each conversion is stopped with SIGKILL between its start and its end. Afterwards there is either
no folder, or one with the same bytes as an uninterrupted conversion gives. Anything else that is
left can't be opened as a model, and the same command succeeds.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mlx_cogvideo import CogVideoXError, CogVideoXPipeline


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=20, help="conversions to kill (default: 20)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random moments (default: 0)"
    )
    args = parser.parse_args()
    moments, seen = random.Random(args.seed), Counter()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        output = folder / "mlx_model"
        command = [sys.executable, "-m", "mlx_cogvideo.convert", "--model", "demo", "-q"]
        command += ["--quiet", "--mlx-path", str(output)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        expected = contents(output)
        shutil.rmtree(output)

        for _ in range(args.runs):
            # Starting Python takes most of the time, so only the last part is interesting.
            moment = moments.uniform(0.5 * whole, whole)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            time.sleep(moment)
            process.kill()
            process.wait()
            kind = "not started"
            if output.exists():
                assert contents(output) == expected
                shutil.rmtree(output)
                kind = "finished"
            elif parts := list(folder.glob(".mlx_model.*.part")):
                kind = "unfinished"
                try:
                    CogVideoXPipeline.from_pretrained(parts[0])
                    assert contents(parts[0]) == expected, "an unfinished model could be opened"
                except CogVideoXError:
                    pass
            seen[kind] += 1
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            assert contents(output) == expected
            assert [file.name for file in folder.iterdir()] == ["mlx_model"]
            shutil.rmtree(output)
    print(f"{args.runs} conversions, each complete in the end; when killed: {dict(seen)}")


if __name__ == "__main__":
    main()
