"""Stores PyTorch's results of the demo's stages, for ``mlx-cogvideo check``.

    python tools/checks/store_check_values.py

Needs the `test` extra.
"""

import argparse
from pathlib import Path

import diffusers
import mlx.core as mx
import numpy as np
import torch
import transformers

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.checkpoints.tokenizer import T5Tokenizer
from mlx_cogvideo.machine.stages import (
    EVERY,
    PROMPT,
    STEPS,
    TILES,
    TIMESTEP,
    VALUES,
    clip,
    latents,
    noise,
)


def channels(array: np.ndarray, order: str) -> torch.Tensor:
    """Moves channels from ``[B, f, h, w, c]`` to where diffusers' transformer or VAE has them."""
    axes = {"transformer": (0, 1, 4, 2, 3), "vae": (0, 4, 1, 2, 3)}[order]
    return torch.tensor(array).permute(axes).contiguous()


@torch.no_grad()
def values(folder: Path = DEMO_PATH) -> dict[str, np.ndarray]:
    """Computes all values by name: float32 arrays, and int32 token ids."""
    load = {"torch_dtype": torch.float32}
    config = diffusers.CogVideoXTransformer3DModel.load_config(folder / "transformer")
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    ids = np.array(tokenizer([PROMPT], max_length=config["max_text_seq_length"]))
    encoder = transformers.T5EncoderModel.from_pretrained(
        folder / "text_encoder", dtype=torch.float32
    )
    text = encoder(torch.tensor(ids))[0]
    transformer = diffusers.CogVideoXTransformer3DModel.from_pretrained(
        folder / "transformer", **load
    )
    x = channels(latents(), "transformer")
    velocity = transformer(x, text, torch.tensor([TIMESTEP]), return_dict=False)[0]
    results = {"ids": ids.astype(np.int32), "text": text[0].numpy()}
    results["velocity"] = velocity.permute(0, 1, 3, 4, 2).numpy()

    ddim = diffusers.CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler")
    ddim.set_timesteps(STEPS)
    results["ddim"] = ddim.step(velocity, ddim.timesteps[3], x, return_dict=False)[0]
    dpm = diffusers.CogVideoXDPMScheduler.from_config(ddim.config)
    dpm.set_timesteps(STEPS)
    module = diffusers.schedulers.scheduling_dpm_cogvideox
    draw, module.randn_tensor = (
        module.randn_tensor,
        lambda *_, **__: channels(noise(), "transformer"),
    )
    results["dpm"] = dpm.step(velocity, None, dpm.timesteps[3], None, x, return_dict=False)[0]
    module.randn_tensor = draw
    for name in ("ddim", "dpm"):
        results[name] = results[name].permute(0, 1, 3, 4, 2).numpy()

    vae = diffusers.AutoencoderKLCogVideoX.from_pretrained(folder / "vae", **load)
    results["mean"] = vae.encode(channels(clip(), "vae")).latent_dist.mean.permute(0, 2, 3, 4, 1)
    results["mean"] = results["mean"].numpy()
    for name in ("pixels", "pixels tiled"):
        pixels = vae.decode(channels(latents(), "vae")).sample.permute(0, 2, 3, 4, 1)
        results[name] = pixels[0, :, ::EVERY, ::EVERY].numpy()
        vae.enable_tiling(*TILES[0], *TILES[1])
    return results


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n", 1)[0]).parse_args()
    arrays = {name: mx.array(array) for name, array in values().items()}
    mx.save_safetensors(str(DEMO_PATH / VALUES), arrays)


if __name__ == "__main__":
    main()
