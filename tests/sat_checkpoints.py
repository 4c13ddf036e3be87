"""Checkpoints of the SAT code, and the converter's command on them."""

from pathlib import Path

import mlx.core as mx
import torch
from support import write_spiece_model
from torch_reference import make_t5, make_vae

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.cli.convert import main

PREFIX = "model.diffusion_model."


def sat_vae(model) -> dict[str, torch.Tensor]:
    sat = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[1] == "down_blocks":
            parts[1] = "down"
        elif parts[1] == "up_blocks":
            parts[1], parts[2] = "up", str(3 - int(parts[2]))
        elif parts[1] == "mid_block":
            parts[1:4] = ["mid", f"block_{int(parts[3]) + 1}"]
        renamed = {"resnets": "block", "conv_shortcut": "nin_shortcut"}
        text = ".".join(renamed.get(part, part) for part in parts)
        text = text.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        sat[text] = tensor
    return sat | {"loss.discriminator.weight": torch.zeros(3)}


def vae():
    return make_vae(block_out_channels=(32, 32, 32, 64), norm_num_groups=32)


def make_text_folder(folder: Path) -> Path:
    """Writes a model folder with a tiny T5 and its tokenizer, like 2b's on the hub."""
    make_t5(d_model=24).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    write_spiece_model(folder / "tokenizer")
    return folder


def convert(source, text_folder, *more) -> CogVideoXPipeline:
    destination = source.parent / f"{source.name}-converted"
    arguments = ["--model", source, "--text-encoder", text_folder, "--mlx-path", destination]
    assert main([str(a) for a in (*arguments, "--quiet", *more)]) == 0
    return CogVideoXPipeline.from_pretrained(destination, mx.float32)
