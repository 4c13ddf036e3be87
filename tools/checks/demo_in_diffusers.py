"""Makes the demo's videos with diffusers and with this package, and prints the differences.

    python tools/checks/demo_in_diffusers.py --prompts 20
    python tools/checks/demo_in_diffusers.py --model FOLDER --prompt "a blue ring moves up"

Both use the same folder, prompts and initial latents, DDIM, guidance 6 and float32. Prints a line
for each prompt, by default the demo's held-out ones. Exits with 1 if a pixel in [0, 1] differs by
more than 1e-3. Needs the `test` extra.
"""

import argparse
import sys
from pathlib import Path

import diffusers
import mlx.core as mx
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

from captions import plain_caption, split_combinations

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH

TOLERANCE = 1e-3
GUIDANCE = 6.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--prompts", type=int, default=20, help="number of held-out prompts (default: 20)"
    )
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument(
        "--model", type=Path, default=DEMO_PATH, help="folder of the model (default: the demo's)"
    )
    parser.add_argument(
        "--prompt", nargs="+", help="prompts of your own (default: held-out ones)", metavar="PROMPT"
    )
    args = parser.parse_args()

    reference = diffusers.CogVideoXPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    reference.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(reference.scheduler.config)
    reference.set_progress_bar_config(disable=True)
    pipe = CogVideoXPipeline.from_pretrained(args.model, dtype=mx.float32)
    geometry = pipe.geometry()

    worst = 0.0
    for prompt in args.prompt or held_out_prompts(args.prompts):
        latents = np.random.default_rng(len(prompt)).standard_normal(
            geometry.latent_shape, np.float32
        )
        expected = reference(
            prompt=prompt,
            latents=torch.tensor(latents).permute(0, 1, 4, 2, 3),
            num_frames=geometry.num_frames,
            height=geometry.height,
            width=geometry.width,
            num_inference_steps=args.steps,
            guidance_scale=GUIDANCE,
            max_sequence_length=reference.transformer.config.max_text_seq_length,
            output_type="np",
        ).frames[0]
        video = pipe(
            prompt,
            latents=mx.array(latents),
            scheduler="ddim",
            num_inference_steps=args.steps,
            guidance_scale=GUIDANCE,
            output_type="np",
        ).frames[0]
        error = float(np.abs(video - expected).max())
        worst = max(worst, error)
        print(f"{error:.1e}  {prompt}", flush=True)
    print(f"{worst:.1e}  largest difference of a pixel in [0, 1]")
    return int(worst > TOLERANCE)


def held_out_prompts(count: int) -> list[str]:
    _, held_out = split_combinations()
    chosen = np.random.default_rng(0).permutation(len(held_out))[:count]
    return [plain_caption(held_out[i]) for i in chosen]


if __name__ == "__main__":
    sys.exit(main())
