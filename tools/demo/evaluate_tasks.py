"""Judges a demo checkpoint on images, videos and longer videos.

    python tools/demo/evaluate_tasks.py image --model MODEL     # first frames of held-out clips
    python tools/demo/evaluate_tasks.py video --model MODEL     # clips with changed prompts
    python tools/demo/evaluate_tasks.py extend --model MODEL    # four windows

`image` uses the rendered first frame of a held-out clip, with its caption. `video` uses a clip with
a caption that names another colour, or with --change differs in other attributes. `extend` checks
each window, each seam, and the frames around it. An image-to-video model starts from a rendered
frame.
"""

import argparse
from pathlib import Path

import numpy as np
from attributes import follow_figure, read_attributes
from captions import ATTRIBUTES, VALUES, Combination
from evaluate import held_out_prompts
from world import SIZE, render, to_uint8, world_scene

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.video import write_video

EDGE = 6.0  # pixels between a figure and the edge, at which it has arrived
STANDING = 2.0  # pixels; a figure stands if it moves, or its radius changes, by less


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=("image", "video", "extend"), help="what to judge")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--prompts", type=int, default=50, help="held-out prompts (default: 50)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's own)")
    parser.add_argument(
        "--strength",
        type=float,
        nargs="+",
        default=[0.3, 0.9],
        help="strengths to try for video (default: 0.3 0.9)",
    )
    parser.add_argument(
        "--change",
        nargs="+",
        choices=ATTRIBUTES,
        default=["colour"],
        help="attributes of the clip that the prompt changes (default: colour)",
    )
    parser.add_argument("--extend", type=int, default=3, help="additional windows (default: 3)")
    parser.add_argument(
        "--overlap", type=int, help="frames that windows share (default: the pipeline's)"
    )
    parser.add_argument("--clips", type=Path, help="folder to save the videos in (default: none)")
    args = parser.parse_args()
    pipe = CogVideoXPipeline.from_pretrained(args.model)
    prompts = held_out_prompts(args.prompts, np.random.default_rng(0))
    with pipe.keeping("text_encoder"), pipe.keeping("transformer"), pipe.keeping("vae"):
        {"image": images, "video": videos, "extend": extended}[args.task](pipe, prompts, args)


def make(pipe: CogVideoXPipeline, number: int, prompt: str, args, **more) -> np.ndarray:
    output = pipe(
        prompt,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        seed=number,
        **more,
    )
    clip = np.asarray(output)
    if args.clips:
        args.clips.mkdir(parents=True, exist_ok=True)
        name = f"{number:03}-{more.get('strength', '')}.mp4"
        write_video(args.clips / name, clip, 8, overwrite=True)
    return clip


def clips_of(combinations: list[Combination], seed: int) -> np.ndarray:
    return np.array(to_uint8(render(world_scene(np.random.default_rng(seed), combinations))))


def images(pipe, prompts, args) -> None:
    real = clips_of([wanted for wanted, _ in prompts], seed=5)
    right, psnr = [], []
    for number, ((wanted, prompt), clip) in enumerate(zip(prompts, real, strict=True)):
        made = make(pipe, number, prompt, args, image=clip[0])
        error = np.square((made[0].astype(float) - clip[0]) / 255).mean()
        psnr.append(-10 * np.log10(error))
        right.append([f == w for f, w in zip(read_attributes(made), wanted, strict=True)])
    table(right, "as the caption says")
    print(f"first frame: PSNR {np.mean(psnr):.1f} dB, lowest {np.min(psnr):.1f}")


def videos(pipe, prompts, args) -> None:
    random = np.random.default_rng(6)
    changed = [ATTRIBUTES.index(name) for name in args.change]
    others = []
    for wanted, _ in prompts:
        other = list(wanted)
        for i in changed:
            other[i] = str(random.choice([value for value in VALUES[i] if value != other[i]]))
        others.append(Combination(*other))
    real = clips_of(others, seed=7)
    for strength in args.strength:
        stays, wins = [], []
        for number, ((wanted, prompt), other, clip) in enumerate(
            zip(prompts, others, real, strict=True)
        ):
            found = read_attributes(make(pipe, number, prompt, args, video=clip, strength=strength))
            stays.append([f == o for f, o in zip(found, other, strict=True)])
            wins.append([f == w for f, w in zip(found, wanted, strict=True)])
        print(f"strength {strength}")
        table(stays, "as in the clip")
        table(wins, "as the caption says")


def extended(pipe, prompts, args) -> None:
    constant, directions, seams = [], [], []
    real = clips_of([wanted for wanted, _ in prompts], seed=5)
    for number, ((_, prompt), start) in enumerate(zip(prompts, real, strict=True)):
        more = {"extend": args.extend, "overlap": args.overlap}
        if pipe.takes_image:
            more["image"] = start[0]
        clip = make(pipe, number, prompt, args, **more)
        request = pipe.request(prompt, **more)
        frames, step = request.geometry.num_frames, request.geometry.num_frames - request.overlap
        windows = [clip[i * step : i * step + frames] for i in range(args.extend + 1)]
        found = [read_attributes(window) for window in windows]
        constant.append([len({getattr(f, name) for f in found}) == 1 for name in ATTRIBUTES[:2]])
        ends = [frames + i * step for i in range(args.extend)]
        directions += [goes_on(clip, end, step) for end in ends]
        jumps = np.abs(np.diff(clip.astype(float), axis=0)).mean(axis=(1, 2, 3))
        at_seams = [k for end in ends for k in range(end - request.overlap - 1, end)]
        elsewhere = np.delete(jumps, at_seams)
        seams.append(jumps[at_seams].max() <= 2 * elsewhere.max())
        print(f"{number:3} {prompt}: {[f'{f.colour} {f.shape}' for f in found]}", flush=True)
    colour, shape = np.array(constant).mean(0)
    both = np.array(constant).all(1).mean()
    print(f"colour constant {colour:.0%}, shape constant {shape:.0%}, both {both:.0%}")
    print(f"direction kept at {np.mean(directions):.0%} of {len(directions)} seams")
    print(f"no jump in {np.mean(seams):.0%}")


def goes_on(clip: np.ndarray, end: int, count: int) -> bool:
    """Whether a figure moves after frame `end` as before, or stands where its path ends."""
    path = follow_figure(clip[end - 8 : min(end + count, len(clip))])
    if path is None:
        return False
    x, y, radius = path[0], path[1], np.sqrt(path[2] / np.pi)
    middle = 8
    before = np.array([x[middle - 1] - x[0], y[middle - 1] - y[0], 0])
    after = np.array([x[-1] - x[middle - 1], y[-1] - y[middle - 1], 0])
    growth = radius[middle - 1] - radius[0], radius[-1] - radius[middle - 1]
    if np.abs(before).max() < STANDING:  # it grows, shrinks, or stands
        stands = abs(growth[1]) < STANDING
        return np.abs(after).max() < 4 and (growth[0] * growth[1] > 0 or stands)
    axis = np.abs(before).argmax()
    place = (x, y)[axis][-1]
    arrived = min(place, SIZE - place) < radius[-1] + EDGE
    return after[axis] * before[axis] > 0 or (arrived and abs(after[axis]) < 4)


def table(rows: list[list[bool]], title: str) -> None:
    shares = np.array(rows).mean(axis=0)
    values = ", ".join(f"{n} {s:.0%}" for n, s in zip(ATTRIBUTES, shares, strict=True))
    print(f"  {title}: {values}", flush=True)


if __name__ == "__main__":
    main()
