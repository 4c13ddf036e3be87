"""Makes clips of something that the demo has never seen, and judges what lora.py learned.

    python tools/checks/lora_learns.py clips FOLDER [--of cross|climbs]
    python tools/checks/lora_learns.py judge [--of cross|climbs] [--lora ADAPTER] [--model MODEL]

`clips` renders 24 clips with captions, and writes FOLDER/prior.txt: prompts for what the demo
knows. In the clips, the figures are red, green, blue or yellow. `judge` uses purple and orange
figures, which no clip shows, and the demo's own held-out prompts, which must not be forgotten. None
of these is in prior.txt.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

import attributes
import world
from captions import Combination, caption, plain_caption, split_combinations
from evaluate import held_out_prompts
from world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, UNSEEN_SHAPES, render, to_uint8

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.video import write_video

CLIPS, PRIOR_PROMPTS = 24, 96
SEEN, UNSEEN = list(COLOURS)[:4], list(COLOURS)[4:]
CLIMBING = (0.75, -0.75)  # to the right and up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(required=True)
    of = {"choices": ("cross", "climbs"), "default": "cross"}
    of["help"] = "the new thing: a shape or a motion (default: cross)"
    command = commands.add_parser("clips", help="render the clips and write their captions")
    command.add_argument("folder", type=Path, help="the new folder to write")
    command.add_argument("--of", **of)
    command.set_defaults(run=make_clips)
    command = commands.add_parser("judge", help="make videos and count what is right")
    command.add_argument("--of", **of)
    command.add_argument("--lora", type=Path, help="adapter to judge (default: none)")
    command.add_argument("--model", default="demo", help="model to judge (default: demo)")
    command.add_argument("--prompts", type=int, default=48, help="new prompts (default: 48)")
    command.add_argument("--old-prompts", type=int, default=100, help="default: 100")
    command.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    command.set_defaults(run=judge)
    args = parser.parse_args()
    args.run(args)


def combinations(of: str, colours: list[str], count: int, seed: int) -> list[Combination]:
    """Combinations with the new thing: each colour, and each motion or shape, equally often."""
    random = np.random.default_rng(seed)
    shapes = list(SHAPES)
    return [
        Combination(
            colours[i % len(colours)],
            of if of == "cross" else shapes[i % len(shapes)],
            MOTIONS[i % len(MOTIONS)] if of == "cross" else of,
            str(random.choice(list(BACKGROUNDS))),
        )
        for i in range(count)
    ]


def prompt_of(combination: Combination) -> str:
    if combination.motion == "climbs":
        return plain_caption(combination._replace(motion="up")).replace("moves up", "climbs")
    return plain_caption(combination)


def make_clips(args: argparse.Namespace) -> None:
    wanted = combinations(args.of, SEEN, CLIPS, seed=1)
    world.DIRECTIONS["climbs"] = CLIMBING
    outlines = [{**SHAPES, **UNSEEN_SHAPES}[combination.shape] for combination in wanted]
    clips = to_uint8(render(world.world_scene(np.random.default_rng(1), wanted, outlines)))
    args.folder.mkdir(parents=True)
    for i, (combination, clip) in enumerate(zip(wanted, clips, strict=True)):
        write_video(args.folder / f"{i:02}.mp4", clip, 8)
        (args.folder / f"{i:02}.txt").write_text(prompt_of(combination) + "\n")
    random = np.random.default_rng(3)
    known = split_combinations()[0]
    chosen = [known[i] for i in random.permutation(len(known))[:PRIOR_PROMPTS]]
    prompts = [caption(combination, random) for combination in chosen]
    (args.folder / "prior.txt").write_text("\n".join(prompts) + "\n")


def judge(args: argparse.Namespace) -> None:
    attributes.SHAPES = {**SHAPES, "cross": UNSEEN_SHAPES["cross"]}
    known_motion = attributes._motion

    def motion(x: np.ndarray, y: np.ndarray, area: np.ndarray) -> str:
        right, up = x[-1] - x[0], y[0] - y[-1]
        climbs = min(right, up) > attributes.SMALLEST_TRAVEL and 0.5 < right / up < 2
        return "climbs" if climbs else known_motion(x, y, area)

    attributes._motion = motion
    pipe = CogVideoXPipeline.from_pretrained(args.model)
    if args.lora:
        pipe.load_lora(args.lora)
    new = [(c, prompt_of(c)) for c in combinations(args.of, UNSEEN, args.prompts, seed=2)]
    old = held_out_prompts(args.old_prompts, np.random.default_rng(0))
    with pipe.keeping("text_encoder"), pipe.keeping("transformer"), pipe.keeping("vae"):
        for title, prompts in ((f"{args.of}, unseen colours", new), ("held-out prompts", old)):
            print(title)
            report(pipe, prompts, args.steps)


def report(pipe: CogVideoXPipeline, prompts: list, steps: int) -> None:
    right, mistakes = [], Counter()
    for number, (wanted, prompt) in enumerate(prompts):
        clip = pipe(prompt, num_inference_steps=steps, guidance_scale=2.0, seed=number)
        found = attributes.read_attributes(np.asarray(clip))
        right.append([f == w for f, w in zip(found, wanted, strict=True)])
        mistakes.update(f"{f} for {w}" for f, w in zip(found, wanted, strict=True) if f != w)
    right = np.array(right)
    for name, share in zip(Combination._fields, right.mean(0), strict=True):
        print(f"  {name:12}{share:6.0%}")
    print(f"  {'all four':12}{right.all(1).mean():6.0%}", flush=True)
    print("  " + (", ".join(f"{n} {what}" for what, n in mistakes.most_common()) or "all right"))


if __name__ == "__main__":
    main()
