"""Judges whether the clips of a demo checkpoint show what held-out captions describe.

    python tools/demo/evaluate.py --model mlx_cogvideo/demo --prompts 100 --seed 0

Every caption describes a combination that no training clip or caption had. Every second caption has
the plain form, the others have natural wordings. attributes.py reads what a clip shows from its
pixels. The autoencoder is judged by its PSNR, also on figures that it never saw.
"""

import argparse
from pathlib import Path

import numpy as np
from attributes import read_attributes
from captions import ATTRIBUTES, Combination, caption, plain_caption, split_combinations
from train_vae import measure_psnr

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.diffusion.extrapolation import EXTRAPOLATED
from mlx_cogvideo.diffusion.schedulers import SCHEDULERS
from mlx_cogvideo.diffusion.step_cache import CACHES
from mlx_cogvideo.nn.transformer import CogVideoXBlock


def held_out_prompts(count: int, rng: np.random.Generator) -> list[tuple[Combination, str]]:
    """Combinations in random order; none is repeated before all others have been used."""
    held_out = split_combinations()[1]
    order = np.concatenate(
        [rng.permutation(len(held_out)) for _ in range(-(-count // len(held_out)))]
    )
    chosen = [held_out[index] for index in order[:count]]
    return [(c, plain_caption(c) if i % 2 == 0 else caption(c, rng)) for i, c in enumerate(chosen)]


def report(wanted: list[Combination], found: list[Combination]) -> None:
    right = np.array([np.equal(f, w) for f, w in zip(found, wanted, strict=True)])
    rows = [
        *zip(ATTRIBUTES, right.mean(axis=0), strict=True),
        ("all four", right.all(axis=1).mean()),
    ]
    print(f"\n{'attribute':12}{'right':>8}   of {len(wanted)} held-out prompts")
    for name, share in rows:
        print(f"{name:12}{share:8.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the model folder")
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    parser.add_argument(
        "--guidance",
        type=float,
        help="guidance scale; much more distorts corners (default: the model's own)",
    )
    parser.add_argument(
        "--scheduler", choices=SCHEDULERS, help="sampler (default: the model's own)"
    )
    parser.add_argument(
        "--cache",
        choices=(*EXTRAPOLATED, *CACHES),
        help="how steps are saved, see docs/faster.md (default: none)",
    )
    parser.add_argument(
        "--computed-steps", type=int, nargs="+", metavar="N", help="(default: the cache's own)"
    )
    parser.add_argument("--cache-threshold", type=float, help="(default: the cache's own)")
    parser.add_argument("--clips", type=Path, help="folder to save the clips in, as NumPy files")
    options = parser.parse_args()

    pipe = CogVideoXPipeline.from_pretrained(options.model)
    blocks, call = [], CogVideoXBlock.attend
    CogVideoXBlock.attend = lambda self, *args: blocks.append(1) or call(self, *args)
    wanted, found = [], []
    prompts = held_out_prompts(options.prompts, np.random.default_rng(options.seed))
    for number, (combination, prompt) in enumerate(prompts):
        clip = pipe(
            prompt,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            scheduler=options.scheduler,
            cache=options.cache,
            cache_threshold=options.cache_threshold,
            computed_steps=options.computed_steps,
            seed=options.seed * 100_000 + number,
        )
        wanted.append(combination)
        found.append(read_attributes(np.asarray(clip)))
        missed = [f"{f}, not {w}" for f, w in zip(found[-1], combination, strict=True) if f != w]
        print(f"{number + 1:4}  {prompt}  {'; '.join(missed) or 'right'}", flush=True)
        if options.clips:
            options.clips.mkdir(parents=True, exist_ok=True)
            np.save(options.clips / f"{number:03}.npy", clip)
    report(wanted, found)
    print(f"{len(blocks) / len(prompts):.1f} blocks computed for a video")

    print(f"\n{'clips':12}{'PSNR':>8}   after encoding and decoding")
    for name, value in measure_psnr(pipe.vae).items():
        print(f"{name:12}{value:8.1f}")


if __name__ == "__main__":
    main()
