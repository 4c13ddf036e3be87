"""Teaches the demo a shape it has never seen, by lora.py, and judges what came of it.

    python tools/checks/lora_learns.py clips FOLDER    # 24 clips of crosses and their captions
    python tools/checks/lora_learns.py judge [--lora ADAPTER] [--model MODEL]

The crosses are red, green, blue or yellow; judged are purple and orange ones, which no clip shows,
and 50 of the demo's own held-out prompts, which must not be forgotten.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

import attributes
from captions import Combination, plain_caption
from evaluate import held_out_prompts
from world import BACKGROUNDS, COLOURS, MOTIONS, UNSEEN_SHAPES, render, to_uint8, world_scene

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.video import write_video

NEW = "cross"
SEEN, UNSEEN = list(COLOURS)[:4], list(COLOURS)[4:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("clips")
    command.add_argument("folder", type=Path)
    command.add_argument("--count", type=int, default=24)
    command.set_defaults(run=make_clips)
    command = commands.add_parser("judge")
    command.add_argument("--lora", type=Path)
    command.add_argument("--model", default="demo")
    command.add_argument("--prompts", type=int, default=24)
    command.add_argument("--old-prompts", type=int, default=50)
    command.add_argument("--steps", type=int, default=20)
    command.set_defaults(run=judge)
    args = parser.parse_args()
    args.run(args)


def combinations(colours: list[str], count: int, seed: int) -> list[Combination]:
    """Each colour and motion equally often, on backgrounds that they stand out from."""
    random = np.random.default_rng(seed)
    return [
        Combination(
            colours[i % len(colours)],
            NEW,
            MOTIONS[i % len(MOTIONS)],
            str(random.choice(list(BACKGROUNDS))),
        )
        for i in range(count)
    ]


def make_clips(args: argparse.Namespace) -> None:
    wanted = combinations(SEEN, args.count, seed=1)
    outlines = [UNSEEN_SHAPES[NEW]] * len(wanted)
    clips = to_uint8(render(world_scene(np.random.default_rng(1), wanted, outlines)))
    args.folder.mkdir(parents=True)
    for i, (combination, clip) in enumerate(zip(wanted, clips, strict=True)):
        write_video(args.folder / f"{i:02}.mp4", clip, 8)
        (args.folder / f"{i:02}.txt").write_text(plain_caption(combination) + "\n")


def judge(args: argparse.Namespace) -> None:
    attributes.SHAPES = {**attributes.SHAPES, NEW: UNSEEN_SHAPES[NEW]}
    pipe = CogVideoXPipeline.from_pretrained(args.model)
    if args.lora:
        pipe.load_lora(args.lora)
    new = [(c, plain_caption(c)) for c in combinations(UNSEEN, args.prompts, seed=2)]
    old = held_out_prompts(args.old_prompts, np.random.default_rng(0))
    with pipe.keeping("transformer"), pipe.keeping("vae"):
        for title, prompts in ((f"{NEW}, unseen colours", new), ("held-out prompts", old)):
            print(title)
            report(pipe, prompts, args.steps)


def report(pipe: CogVideoXPipeline, prompts: list, steps: int) -> None:
    right = []
    for number, (wanted, prompt) in enumerate(prompts):
        clip = pipe(prompt, num_inference_steps=steps, guidance_scale=2.0, seed=number)
        found = attributes.read_attributes(clip)
        right.append([f == w for f, w in zip(found, wanted, strict=True)])
    right = np.array(right)
    for name, share in zip(Combination._fields, right.mean(0), strict=True):
        print(f"  {name:12}{share:6.0%}")
    print(f"  {'all four':12}{right.all(1).mean():6.0%}", flush=True)


if __name__ == "__main__":
    main()
