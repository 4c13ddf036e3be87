"""Changes each field of each configuration of the demo, one at a time, in some twenty ways.

    python tools/checks/configurations.py
    python tools/checks/configurations.py --run

Each change is opened, planned for conversion and described; with --run, models that open also make
a small video with both samplers. A change may be accepted or refused in one line. Prints a line for
each traceback, and exits with 1 if there is any. It takes two minutes on a CPU, with --run ten.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from config_mutations import linked_demo, mutate, mutations

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.conversion import describe_folder, plan_conversion
from mlx_cogvideo.errors import CogVideoXError
from mlx_cogvideo.nn.quantization import Quantization

SMALL = {"num_frames": 9, "height": 32, "width": 32, "num_inference_steps": 2, "seed": 1}
SAMPLERS = ("ddim", "dpm")


def opened(folder: Path) -> None:
    pipe = CogVideoXPipeline.from_pretrained(folder)
    for options in (SMALL, {}):
        for scheduler in SAMPLERS:
            pipe.request("a", scheduler=scheduler, **options)


def planned(folder: Path) -> None:
    plan_conversion("it", folder, quantization=Quantization(4, 64))


def ran(folder: Path) -> None:
    pipe = CogVideoXPipeline.from_pretrained(folder)
    for scheduler in SAMPLERS:
        pipe("a", scheduler=scheduler, **SMALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--run", action="store_true", help="make a video of those that open")
    args = parser.parse_args()

    results = Counter()
    ways = [opened, planned, describe_folder, *([ran] if args.run else [])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = linked_demo(Path(temporary))
        for file, field, value in mutations():
            mutate(folder, file, field, value)
            accepted = results[opened.__name__, "accepted"]
            for way in ways:
                if way is ran and results[opened.__name__, "accepted"] == accepted:
                    continue
                result = attempt(way, folder)
                results[way.__name__, result.partition(":")[0]] += 1
                if result.startswith("traceback"):
                    print(f"{file}: {field} = {str(value)[:40]}, {way.__name__}: {result}")
            shutil.copyfile(DEMO_PATH / file, folder / file)
    for (way, result), count in sorted(results.items()):
        print(f"{way:16}{result:10}{count:6}")
    return any(result == "traceback" for _, result in results)


def attempt(way, folder: Path) -> str:
    """How it ends: accepted, refused, or a traceback, with the error after a colon."""
    try:
        way(folder)
    except CogVideoXError as error:
        return "traceback: more than a line" if "\n" in str(error) else "refused"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    return "accepted"


if __name__ == "__main__":
    raise SystemExit(main())
