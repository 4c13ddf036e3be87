"""Starts pairs of commands that write the same output, and checks what they leave behind.

    python tools/checks/races.py --pairs 50

Two runs of ``generate.py`` with the same ``--output`` start together, or two conversions into the
same folder. One of them writes the output, from the first to the last byte. The other reports in
one line that another process writes it, or that it exists. Two batches that share one video still
make the others. Of two trainings in one folder, only one trains, and two that share a cache of
latents train to the same bytes as one alone. Nothing else is left behind.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_cogvideo.runs.saved_run import SavedRun
from mlx_cogvideo.video import read_record, read_video, write_video
from mlx_cogvideo.video.paths import frame_files

ROOT = Path(__file__).parents[2]
GENERATE = [sys.executable, str(ROOT / "generate.py"), "--quiet", "--steps", "3", "--seed", "1"]
GENERATE += ["--frames", "9", "--height", "32", "--width", "48"]
CONVERT = [sys.executable, "-m", "mlx_cogvideo.convert", "--model", "demo", "--quiet"]
LORA = [sys.executable, str(ROOT / "lora.py"), "--quiet", "--iters", "2", "--rank", "2"]
LORA += ["--frames", "9", "--height", "32", "--width", "48"]
ADAPTER = "pytorch_lora_weights.safetensors"
PROMPTS = ("a red circle moves right on a white background", "a blue square grows on black")
REFUSED = re.compile(
    r"error: (?:seed \d: )?(\S+) (?:is being written by process (\d+) on \S+ since [\d:]+: .*"
    r"|exists\b.*|holds an? (?:adapter|model|training): .*)"
)


class Race:
    """Two commands that run at the same time in their own folder."""

    def __init__(self, folder: Path, commands: list[list[str]], delay: float):
        self.folder = folder
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = []
        for i, command in enumerate(commands):
            time.sleep(delay * i)
            started.append(subprocess.Popen(command, cwd=folder, **pipes))
        self.ends = [(*process.communicate(), process.returncode) for process in started]
        self.pids = [process.pid for process in started]

    def winner(self, code: int = 0) -> int:
        """The index of the command that wrote the output; checks the message of the other one."""
        codes = [end[2] for end in self.ends]
        assert sorted(codes) == [code, 1], self.ends
        won = codes.index(code)
        errors = self.ends[1 - won][1].splitlines()
        refusal = REFUSED.fullmatch(errors[-1])
        assert refusal and len(errors) == 1, errors
        assert refusal[2] in (None, str(self.pids[won])), (errors, self.pids)
        return won

    def files(self) -> set[str]:
        return {file.name for file in self.folder.iterdir()}


def frames(output: Path) -> np.ndarray:
    files = frame_files(output) if output.is_dir() else [output]
    return np.concatenate([read_video(file)[0] for file in files])


def tensors(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.suffix in (".safetensors", ".json") and file.name != "conversion.json"
    }


def generations(folder: Path, output: str = "v.mp4") -> Callable[[Path, float], str]:
    """Two prompts to one output: the video shows the prompt in its record."""
    commands = [[*GENERATE, "--prompt", prompt, "--output", output] for prompt in PROMPTS]
    expected = []
    for i, command in enumerate(commands):
        place = folder / str(i)
        place.mkdir()
        subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
        expected.append(frames(place / output))

    def race(place: Path, delay: float) -> str:
        race = Race(place, commands, delay)
        won = race.winner()
        assert race.files() == {output}, race.files()
        record = read_record(place / output)
        assert record["settings"]["prompt"] == PROMPTS[won]
        assert np.array_equal(frames(place / output), expected[won])
        return f"the {('first', 'second')[won]} wrote it"

    return race


def batches(folder: Path) -> Callable[[Path, float], str]:
    """Seeds 1 and 2 of one prompt, 2 and 3 of another: one of them makes the video of seed 2."""

    def race(place: Path, delay: float) -> str:
        commands = [
            [*GENERATE, "--prompt", prompt, "--seed", *seeds, "--output", "v{seed}.mp4"]
            for prompt, seeds in zip(PROMPTS, (("1", "2"), ("2", "3")), strict=True)
        ]
        race = Race(place, commands, delay)
        won = race.winner()
        assert race.files() == {"v1.mp4", "v2.mp4", "v3.mp4"}, race.files()
        prompts = [read_record(place / f"v{seed}.mp4")["settings"]["prompt"] for seed in (1, 2, 3)]
        assert prompts == [PROMPTS[0], PROMPTS[won], PROMPTS[1]]
        return f"the {('first', 'second')[won]} wrote the shared video"

    return race


def resumes(folder: Path) -> Callable[[Path, float], str]:
    """Two commands resume the same saved run, to two outputs: one of them resumes it."""
    prompt = [*GENERATE, "--prompt", PROMPTS[0], "--steps", "40", "--save-every", "1"]
    subprocess.run([*prompt, "-o", "whole.mp4"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    expected = frames(folder / "whole.mp4")
    process = subprocess.Popen([*prompt, "-o", "v.mp4"], cwd=folder, stdout=subprocess.DEVNULL)
    file = folder / "v.mp4.resume"
    while not file.exists() or not SavedRun.load(file).steps_done:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    saved = file.read_bytes()

    def race(place: Path, delay: float) -> str:
        (place / "v.mp4.resume").write_bytes(saved)
        common = [*GENERATE[:3], "--resume", "v.mp4.resume", "--output"]
        race = Race(place, [[*common, "a.mp4"], [*common, "b.mp4"]], delay)
        codes = [end[2] for end in race.ends]
        assert 0 in codes and set(codes) <= {0, 1, 2}, race.ends
        won = codes.index(0)
        (error,) = race.ends[1 - won][1].splitlines()
        gone = "nothing to resume"
        assert REFUSED.fullmatch(error) or gone in error, error
        assert race.files() == {("a.mp4", "b.mp4")[won]}, race.files()
        assert np.array_equal(frames(place / ("a.mp4", "b.mp4")[won]), expected)
        return f"the {('first', 'second')[won]} resumed it"

    return race


def conversions(folder: Path) -> Callable[[Path, float], str]:
    """4 and 8 bits into one folder: all of it comes from one of them."""
    commands = [[*CONVERT, "-q", bits, "--mlx-path", "m"] for bits in ("4", "8")]
    expected = []
    for i, command in enumerate(commands):
        place = folder / str(i)
        place.mkdir()
        subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
        expected.append(tensors(place / "m"))

    def race(place: Path, delay: float) -> str:
        race = Race(place, commands, delay)
        won = race.winner()
        assert race.files() == {"m"}, race.files()
        assert tensors(place / "m") == expected[won]
        return f"the {('first', 'second')[won]} wrote it"

    return race


def adapters(folder: Path) -> Callable[[Path, float], str]:
    """A conversion into the folder of a training: it is a model or an adapter, and no mixture."""
    make_clips(folder)
    commands = [
        [*CONVERT, "-q", "4", "--mlx-path", "m"],
        [*LORA, "--data", str(folder / "clips"), "--adapter-path", "m"],
    ]

    def race(place: Path, delay: float) -> str:
        race = Race(place, commands, delay)
        won = race.winner()
        assert race.files() == {"m"}, race.files()
        names = {file.name for file in (place / "m").iterdir()}
        assert ("model_index.json" in names) == (won == 0)
        assert (ADAPTER in names) == (won == 1)
        return f"the {('conversion', 'training')[won]} wrote it"

    return race


def caches(folder: Path) -> Callable[[Path, float], str]:
    """Two trainings with one new cache of latents: both adapters are those of one alone."""
    make_clips(folder)
    command = [*LORA, "--data", str(folder / "clips"), "--cache", "cache", "--adapter-path"]
    subprocess.run([*command, "alone"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    expected = (folder / "alone" / ADAPTER).read_bytes()

    def race(place: Path, delay: float) -> str:
        race = Race(place, [[*command, "a"], [*command, "b"]], delay)
        assert [end[2] for end in race.ends] == [0, 0], race.ends
        assert race.files() == {"a", "b", "cache"}, race.files()
        assert all((place / name / ADAPTER).read_bytes() == expected for name in "ab")
        assert all(file.suffix == ".safetensors" for file in (place / "cache").iterdir())
        return "both trained"

    return race


def make_clips(folder: Path) -> None:
    """A folder ``clips`` with one clip and its caption."""
    (folder / "clips").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    write_video(folder / "clips" / "a.mp4", noise, 8)
    (folder / "clips" / "a.txt").write_text("noise")


def trainings(folder: Path) -> Callable[[Path, float], str]:
    """Two ranks in one folder: the adapter and its log come from the same training."""
    make_clips(folder)
    ranks = (2, 4)

    def race(place: Path, delay: float) -> str:
        commands = [
            [*LORA, "--data", str(folder / "clips"), "--adapter-path", "a", "--rank", str(rank)]
            for rank in ranks
        ]
        race = Race(place, commands, delay)
        won = race.winner()
        assert race.files() == {"a"}, race.files()
        adapter = mx.load(str(place / "a" / ADAPTER))
        assert {min(tensor.shape) for tensor in adapter.values()} == {ranks[won]}
        assert len((place / "a" / "log.jsonl").read_text().splitlines()) == 2
        return f"the {('first', 'second')[won]} trained"

    return race


KINDS = {
    "generate": generations,
    "frames": partial(generations, output="frames"),
    "batch": batches,
    "resume": resumes,
    "convert": conversions,
    "lora": trainings,
    "convert and lora": adapters,
    "cache": caches,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=50, help="pairs of each kind (default: 50)")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the delays (default: 0)")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as temporary:
            folder, seen = Path(temporary), Counter()
            race = KINDS[kind](folder)
            for i in range(args.pairs):
                place = folder / f"race-{i}"
                place.mkdir()
                # Most pairs start together, some up to a second apart.
                seen[race(place, moments.choice([0, 0, 0, moments.uniform(0, 1)]))] += 1
        print(f"{kind}: {args.pairs} pairs, {dict(seen)}", flush=True)


if __name__ == "__main__":
    main()
