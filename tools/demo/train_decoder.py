"""Trains the decoder of a finished demo further; the latents stay what they are.

    python tools/demo/train_decoder.py --out runs/decoder --minutes 25

The encoder doesn't change, so the transformers needn't be trained again. Besides the clips that the
autoencoder was trained on, figures with any number of corners and arms, and with holes, move in the
small world. Figures that `world.UNSEEN_SHAPES` lists are still in no clip. Run the command again to
resume where it stopped (``--stop-after`` limits the time of one call). OUT/vae is the result.
"""

import argparse
import json
import time
from collections.abc import Generator
from pathlib import Path

import mlx.core as mx
import numpy as np
from captions import combinations
from learner import Learner, Log, Plan, on_gpu, train
from train_vae import encode_batch, make_decoder_objective, measure_psnr
from world import render, varied_outlines, wild_scene, world_scene

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH, save_component

PEAK_RATE, HOLD = 2e-3, 0.3
OUTLINES = 1000
QUARTER = {True: 8, False: 1}  # clips in a quarter of a batch, on a GPU or not


def batches(rng: np.random.Generator, vae, quarter: int) -> Generator:
    """Yields clips of both worlds, four times `quarter`, and the means of their latents."""
    every, outlines = combinations(), varied_outlines(rng, OUTLINES)

    def some(values: list, count: int) -> list:
        return [values[index] for index in rng.integers(len(values), size=count)]

    yield
    while True:
        scenes = (
            world_scene(rng, some(every, quarter)),
            world_scene(rng, some(every, 2 * quarter), some(outlines, 2 * quarter)),
            wild_scene(rng, quarter, outlines),
        )
        pixels = mx.concatenate([render(scene) for scene in scenes])
        yield encode_batch(vae, pixels), pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=25, help="training time (default: 25)")
    parser.add_argument(
        "--stop-after",
        type=float,
        default=float("inf"),
        help="minutes of this call; run it again to resume (default: no limit)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    options = parser.parse_args()
    mx.disable_compile()
    log = Log(options.out)
    vae = CogVideoXPipeline.from_pretrained(DEMO_PATH, mx.float32).vae
    log.write("psnr before", **measure_psnr(vae))

    objective = make_decoder_objective(vae)
    learner = Learner(vae.decoder, objective, mx.float32, decay=0.999, weight_decay=0.0)
    learner.restore(options.out / "decoder")
    mx.random.seed(options.seed * 1000 + learner.steps)
    rng = np.random.default_rng([options.seed, learner.steps])

    def check() -> None:
        vae.decoder = learner.averaged(mx.float32)
        log.write("psnr", step=learner.steps, **measure_psnr(vae))

    deadline = time.monotonic() + 60 * options.stop_after
    plan = Plan(60 * options.minutes, deadline, PEAK_RATE, HOLD, 300, 40, checks=12)
    train(learner, batches(rng, vae, QUARTER[on_gpu()]), plan, log, "decoder", check)
    learner.save(options.out / "decoder")
    vae.decoder = learner.averaged(mx.float32)
    config = json.loads((DEMO_PATH / "vae" / "config.json").read_text())
    save_component(options.out / "vae", vae, config, dtype=mx.float16)
    log.write("saved", steps=learner.steps, seconds=learner.seconds)


if __name__ == "__main__":
    main()
