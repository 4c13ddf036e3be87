"""Fits the linear map from latents to colours that draws the demo's previews.

    python tools/demo/fit_preview.py --model mlx_cogvideo/demo

Uses least squares: from the latents of clips of the small world to the mean colours of the pixels
that each latent covers. Writes MODEL/latent_rgb.json.
"""

import argparse
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from captions import split_combinations
from train_vae import encode_batch
from world import render, world_scene

from mlx_cogvideo import CogVideoXPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--clips", type=int, default=64, help="clips to fit (default: 64)")
    args = parser.parse_args()
    pipe = CogVideoXPipeline.from_pretrained(args.model, mx.float32)
    scale, every = pipe.configs["vae"].scaling_factor, split_combinations()[0]
    random = np.random.default_rng(0)
    latents, colours = [], []
    for _ in range(args.clips // 4):
        chosen = [every[i] for i in random.integers(len(every), size=4)]
        pixels = render(world_scene(random, chosen))
        latents.append(np.array(encode_batch(pipe.vae, pixels) * scale).reshape(-1, 16))
        shown = np.array(pixels)[:, ::4]  # the first frame, then the last of each four
        count, frames, height, width, _ = shown.shape
        cells = shown.reshape(count, frames, height // 8, 8, width // 8, 8, 3).mean((3, 5))
        colours.append(cells.reshape(-1, 3))
    latents, colours = np.concatenate(latents), np.concatenate(colours)
    inputs = np.concatenate([latents, np.ones((len(latents), 1))], axis=1)
    fitted, *_ = np.linalg.lstsq(inputs, colours, rcond=None)
    error = np.abs(inputs @ fitted - colours).mean()
    fit = {"factors": fitted[:-1].round(4).tolist(), "bias": fitted[-1].round(4).tolist()}
    (args.model / "latent_rgb.json").write_text(json.dumps(fit) + "\n")
    print(f"mean error {error:.3f}, for colours from -1 to 1")


if __name__ == "__main__":
    main()
