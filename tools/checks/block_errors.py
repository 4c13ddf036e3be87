"""Compares each block of a full-size transformer with the same block of diffusers in float32.

    python benchmarks/step.py 5b --cases "ours bfloat16" --folder /tmp/random-5b
    python tools/checks/block_errors.py /tmp/random-5b/5b --dtype bfloat16

diffusers computes a step in float32 (TF32 is off), block after block. Each of our blocks gets the
same inputs, in `dtype`. The error is the largest difference divided by the largest value. Prints
one line for each block, and exits with 1 if an error is above --limit.
"""

import argparse
import sys
from pathlib import Path

import diffusers
import mlx.core as mx
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from step import rotation_tables

from mlx_cogvideo.checkpoints import load_component, read_config
from mlx_cogvideo.checkpoints.networks import make_network
from mlx_cogvideo.nn.eval_schedule import EvalSchedule


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("folder", type=Path, help="VARIANT in the folder of benchmarks/step.py --folder")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--limit", type=float, default=2e-2, help="largest error allowed (default: 0.02)")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(mx, args.dtype)
    folder = args.folder / "transformer"
    ours = make_network("transformer", read_config(folder / "config.json"))
    ours = load_component(ours, folder, dtype)
    theirs = diffusers.CogVideoXTransformer3DModel.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    theirs = theirs.to(device).eval()
    stored = np.load(args.folder / "inputs.npz")
    latents, text = stored["latents"], stored["text"][:1]
    times = mx.array([500])
    _, context = ours.embed(mx.array(latents).astype(dtype), mx.array(text).astype(dtype), times)

    errors = []

    def compare(number: int):
        def hook(module, given, named, made):
            parts = {**dict(zip(("hidden_states", "encoder_hidden_states"), given, strict=False))}
            parts |= named
            x = joined(parts["encoder_hidden_states"], parts["hidden_states"])
            temb = mx.array(parts["temb"].float().cpu().numpy()).astype(dtype)
            x, schedule = mx.array(x).astype(dtype), EvalSchedule()
            result = ours.transformer_blocks[number](x, context._replace(temb=temb), schedule)
            result = schedule.flush(result)
            expected = joined(made[1], made[0])
            result = np.array(result.astype(mx.float32))
            errors.append(np.abs(result - expected).max() / np.abs(expected).max())
            print(f"block {number:2}  {errors[-1]:.2e}", flush=True)

        return hook

    for number, block in enumerate(theirs.transformer_blocks):
        block.register_forward_hook(compare(number), with_kwargs=True)
    frames, height, width = latents.shape[1:4]
    with torch.no_grad():
        theirs(
            torch.tensor(latents, device=device).permute(0, 1, 4, 2, 3),
            torch.tensor(text, device=device),
            torch.tensor([500], device=device),
            ofs=torch.tensor([2.0], device=device) if theirs.config.ofs_embed_dim else None,
            image_rotary_emb=rotation_tables(theirs, frames, height, width),
        )
    print(f"largest error {max(errors):.2e}, {len(errors)} blocks in {args.dtype}")
    return int(max(errors) > args.limit)


def joined(text: torch.Tensor, video: torch.Tensor) -> np.ndarray:
    return torch.cat([text, video], dim=1).float().cpu().numpy()


if __name__ == "__main__":
    sys.exit(main())
