"""Makes the animated picture of the README: what the bundled demo makes of eight prompts.

    python tools/docs/make_picture.py docs/assets/demo.gif

No setting is given but the prompt and the seed, so that the picture shows what a reader gets.
"""

import argparse
from pathlib import Path

import numpy as np

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.video import write_video

PROMPTS = """\
a red circle moves right on a white background
a blue square grows on a gray background
a green triangle moves up on a black background
a yellow circle shrinks on a pink background
a purple triangle moves left on a white background
an orange square moves down on a black background
a green square moves right on a pink background
a blue circle moves up on a gray background
"""
COLUMNS, GAP = 4, 2
HOLD = 4
"""How often the last frame is repeated, before the picture begins again."""


def make_grid(videos: list[np.ndarray]) -> np.ndarray:
    """The videos side by side, with white lines between them.

    Args:
        videos: uint8 ``[F, H, W, 3]``, all of one shape; a multiple of `COLUMNS`.

    Returns:
        uint8 ``[F + HOLD, ...]``.
    """
    framed = [
        np.pad(video, ((0, HOLD), (0, GAP), (0, GAP), (0, 0)), mode="edge") for video in videos
    ]
    for video in framed:
        video[:, -GAP:] = video[:, :, -GAP:] = 255
    rows = [framed[i : i + COLUMNS] for i in range(0, len(framed), COLUMNS)]
    return np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1)[:, :-GAP, :-GAP]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the picture, a .gif, which is replaced")
    parser.add_argument("--model", default="demo", help="the model (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all videos (default: 0)")
    args = parser.parse_args()
    pipe = CogVideoXPipeline.from_pretrained(args.model)
    videos = [np.asarray(pipe(prompt, seed=args.seed)) for prompt in PROMPTS.splitlines()]
    write_video(args.output, make_grid(videos), pipe.fps, overwrite=True)


if __name__ == "__main__":
    main()
