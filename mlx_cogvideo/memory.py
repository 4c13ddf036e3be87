"""How much memory a run needs, how much there is, and what to tell the system about it."""

import os
import platform
from math import prod
from pathlib import Path

import mlx.core as mx

from .nn.autoencoder import largest_decode_tensor
from .pipeline import CogVideoXPipeline
from .request import Request

# Peak activations of a stage in units of one array that it is made of: for the transformer, its
# tokens times their width; for the VAE, its largest feature map. On the CPU, MLX unfolds the
# windows of a convolution (27 for the VAE's) and holds a head's whole table of attention scores.
# Those of Metal are guesses by CUDA's.
TRANSFORMER_ARRAYS = {"cpu": 26, "cuda": 14, "metal": 14}
DECODER_ARRAYS = {"cpu": 37, "cuda": 14, "metal": 14}

# CUDA's backend lets go of a block's arrays only when the graph they belong to is submitted: of
# eight arrays a block, it was seen to hold up to this much.
HELD_PER_BLOCK = 8
HELD_AT_MOST = 14 * 2**30


def forecast(pipe: CogVideoXPipeline, request: Request, *, decode: bool = True) -> dict[str, int]:
    """Bytes that each stage of a run needs at its peak: weights and activations. An estimate."""
    device = _device()
    config = pipe.configs["transformer"]
    batch = 2 if request.guided else 1
    itemsize = pipe.dtype.size

    text = pipe.configs["text_encoder"]
    length = config.max_text_seq_length
    layer = length * (2 * text.d_ff + 6 * text.d_model) * itemsize + text.num_heads * length**2 * 4

    _, frames, height, width, _ = request.geometry.latent_shape
    area = height * width // config.patch_size**2
    tokens = length + frames // (config.patch_size_t or 1) * area
    heads = config.num_attention_heads
    hidden = batch * tokens * heads * config.attention_head_dim * itemsize
    activations = TRANSFORMER_ARRAYS[device] * hidden
    if device == "cpu":
        activations += batch * heads * tokens**2 * 4
    elif device == "cuda":
        activations += min(HELD_AT_MOST, HELD_PER_BLOCK * config.num_layers * hidden)

    needs = {
        "encode": pipe.weight_bytes("text_encoder") + layer,
        "denoise": pipe.weight_bytes("transformer") + activations,
    }
    if decode:
        shape = (1, frames - request.geometry.leading_latents, height, width)
        largest = largest_decode_tensor(pipe.configs["vae"], shape) * itemsize
        needs["decode"] = pipe.weight_bytes("vae") + DECODER_ARRAYS[device] * largest
        # One chunk's pixels in float32, on the device and off it.
        needs["decode"] += 2 * 4 * prod((12, request.geometry.height, request.geometry.width, 3))
    return needs


def available_memory() -> int:
    """Bytes that a run can have now.

    On a Mac, what the GPU may use of the memory that it shares with everything else.
    """
    if mx.default_device().type == mx.DeviceType.gpu:
        info = mx.device_info()
        # Metal's name for it, then CUDA's two.
        for name in ("max_recommended_working_set_size", "free_memory", "total_memory"):
            if name in info:
                return info[name]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        meminfo = dict(line.split(":", 1) for line in lines)
        return int(meminfo["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device() -> str:
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def keep_resident() -> None:
    """Lets macOS 15 and later keep a model's memory wired, so that nothing of it is paged out.

    Elsewhere there is no such limit to set, and earlier systems take it for an error.
    """
    if not mx.metal.is_available():
        return
    version = platform.mac_ver()[0]
    if version and int(version.split(".")[0]) >= 15:
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
