"""Trains the decoder of a finished demo further; the latents stay what they are.

    python tools/demo/train_decoder.py --out runs/decoder --minutes 25

The encoder doesn't change, so the transformers needn't be trained again. Half of the clips have
been through the last steps of the transformer (`Rebuilt`): the decoder learns to straighten its
edges. The others show figures with any number of corners and arms, and with holes, but none that
`world.UNSEEN_SHAPES` lists. Run the command again to resume where it stopped (``--stop-after``
limits the time of one call). OUT/vae is the result.
"""

import argparse
import json
import time
from collections.abc import Generator
from pathlib import Path

import mlx.core as mx
import numpy as np
from captions import combinations, plain_caption, split_combinations
from learner import Learner, Log, Plan, on_gpu, train
from train_transformer import denoise, encode_captions, make_scheduler
from train_vae import encode_batch, make_decoder_objective, measure_psnr
from world import render, varied_outlines, wild_scene, world_scene

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH, save_component

PEAK_RATE, HOLD = 1e-3, 0.3
STEPS, GUIDANCE = 10, 2.0  # of the demo
FIRST_STEPS = range(3, 10)
OUTLINES = 1000
QUARTER = {True: 8, False: 1}  # clips in a quarter of a batch, on a GPU or not


class Rebuilt:
    """Latents with the small errors that the transformer makes, and the pixels that they stand for.

    Clips get the noise of a step of the demo's own sampling, from which the transformer makes the
    rest: the figure stays where it is, and its edges are the transformer's.
    """

    def __init__(self, pipe: CogVideoXPipeline):
        self._vae, self._transformer = pipe.vae, pipe.transformer
        self._scaling = pipe.configs["vae"].scaling_factor
        self._combinations = split_combinations()[0]
        captions = ["", *map(plain_caption, self._combinations)]
        self._rows = encode_captions(pipe.text_encoder, pipe.tokenizer, captions)
        self._scheduler = make_scheduler(STEPS)
        mx.eval(self._rows)

    def __call__(self, rng: np.random.Generator, count: int, first: int) -> tuple:
        """Makes pixels ``[B, F, H, W, 3]`` and latents, from step number `first` on."""
        chosen = rng.integers(len(self._combinations), size=count)
        pixels = render(world_scene(rng, [self._combinations[i] for i in chosen]))
        latents = encode_batch(self._vae, pixels) * self._scaling
        timestep = mx.full(count, int(self._scheduler.timesteps[first]))
        noise = mx.random.normal(latents.shape)
        noisy = self._scheduler.add_noise(latents, noise, timestep)
        text, empty = self._rows[mx.array(1 + chosen)], self._rows[:1]
        made = denoise(
            self._transformer, self._scheduler, noisy, text, empty, GUIDANCE, first=first
        )
        return pixels, made / self._scaling


def batches(rng: np.random.Generator, vae, rebuilt: Rebuilt, quarter: int) -> Generator:
    """Yields latents and the pixels that they stand for, four times `quarter`."""
    every, outlines = combinations(), varied_outlines(rng, OUTLINES)

    def some(values: list, count: int) -> list:
        return [values[index] for index in rng.integers(len(values), size=count)]

    yield
    while True:
        pixels, latents = rebuilt(rng, 2 * quarter, int(rng.choice(FIRST_STEPS)))
        scenes = (
            world_scene(rng, some(every, quarter), some(outlines, quarter)),
            wild_scene(rng, quarter, outlines),
        )
        others = mx.concatenate([render(scene) for scene in scenes])
        latents = mx.concatenate([latents, encode_batch(vae, others)])
        yield latents, mx.concatenate([pixels, others])


def rebuilt_psnr(vae, rebuilt: Rebuilt, count: int) -> dict[str, float]:
    """PSNR in dB of clips that the transformer makes from some of its steps on."""
    found = {}
    for first in FIRST_STEPS[::2]:
        mx.random.seed(first)
        pixels, latents = rebuilt(np.random.default_rng(first), count, first)
        frames = mx.concatenate(list(vae.decode_chunks(latents)), axis=1)
        error = mx.square((mx.clip(frames, -1, 1) - pixels) / 2).mean((1, 2, 3, 4))
        found[f"from {first}"] = (-10 * mx.log10(error)).mean().item()
    return found


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
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH, mx.float32)
    vae, rebuilt, quarter = pipe.vae, Rebuilt(pipe), QUARTER[on_gpu()]
    log.write("psnr before", **measure_psnr(vae), **rebuilt_psnr(vae, rebuilt, quarter))

    objective = make_decoder_objective(vae)
    learner = Learner(vae.decoder, objective, mx.float32, decay=0.999, weight_decay=0.0)
    learner.restore(options.out / "decoder")
    mx.random.seed(options.seed * 1000 + learner.steps)
    rng = np.random.default_rng([options.seed, learner.steps])

    def check() -> None:
        vae.decoder = learner.averaged(mx.float32)
        found = measure_psnr(vae) | rebuilt_psnr(vae, rebuilt, quarter)
        log.write("psnr", step=learner.steps, **found)

    deadline = time.monotonic() + 60 * options.stop_after
    plan = Plan(60 * options.minutes, deadline, PEAK_RATE, HOLD, 300, 40, checks=12)
    train(learner, batches(rng, vae, rebuilt, quarter), plan, log, "decoder", check)
    learner.save(options.out / "decoder")
    vae.decoder = learner.averaged(mx.float32)
    config = json.loads((DEMO_PATH / "vae" / "config.json").read_text())
    save_component(options.out / "vae", vae, config, dtype=mx.float16)
    log.write("saved", steps=learner.steps, seconds=learner.seconds)


if __name__ == "__main__":
    main()
