"""How much memory a run needs, how much there is, and what to tell the system about it."""

import os
import platform
from collections.abc import Collection
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from .caching import CACHED_ARRAYS
from .coding import Tiling
from .errors import InvalidInputError
from .nn.attention import SCORES_AT_A_TIME
from .nn.autoencoder import (
    BAND_ELEMENTS,
    CHUNK_FRAMES,
    MAX_ELEMENTS,
    TILE_BAND_ELEMENTS,
    footprint,
    largest_decode_tensor,
)
from .nn.device import on_gpu
from .nn.portions import PORTION_ELEMENTS
from .nn.transformer import FEED_FORWARD_ELEMENTS
from .request import Geometry, Request
from .training.backward import WIDE_ELEMENTS

if TYPE_CHECKING:
    from .pipeline import CogVideoXPipeline

# Peak activations of the transformer in arrays as large as its tokens: while it attends, and beside
# the wide layer of the feed-forward part. Measured on CUDA (benchmarks/step.py), by which those of
# Metal are guessed. On the CPU small videos are computed in one portion, and MLX holds the whole
# table of attention scores.
ATTENTION_ARRAYS = 11
FEED_FORWARD_ARRAYS = 6
ARRAYS_ON_CPU = 43

# The same while a block's gradients are taken, and beside those the pieces of the wide layer or the
# tables of scores that are computed at a time. Counted in training/backward.py, and checked with
# the demo on the CPU. Of a small model, whole blocks wait until they fill a portion.
BACKWARD_ARRAYS = 15
WIDE_PIECES = 10
SCORE_TABLES = 5
WAITING_ARRAYS = 16

# Of scores, that Metal's own backward of attention holds for each head, and their height and width.
METAL_TABLES, METAL_TABLE_SIDE = 3, 1024

# What the VAE holds beside whole maps, in bands of the size that it works on. Small ones it takes
# several at a time. On the CPU, MLX unfolds the windows of a convolution, 27 for the VAE's.
VAE_BANDS = {"none": 3, "seamless": 16, "tiled": 7}
VAE_BANDS_ON_CPU = 37

# What whole frames may take in any case.
WHOLE_FRAMES = 2 * 2**30


def forecast(
    pipe: "CogVideoXPipeline",
    request: Request,
    *,
    decode: bool = True,
    done: Collection[str] = (),
) -> dict[str, int]:
    """Bytes that each stage of a run needs at its peak: weights and activations. An estimate.

    Args:
        done: stages that are behind it, which are left out.
    """
    _, frames, height, width, _ = request.geometry.latent_shape
    batch = 2 if request.guided else 1
    passes = batch if request.sequential_guidance else 1
    needs = {
        "encode": text_memory(pipe),
        "denoise": denoising_memory(
            pipe, request.geometry, batch, passes=passes, cache=request.cache
        ),
    }
    if request.encodes_frames:
        count = frames if request.source.image is None else 1
        way = request.source_tiling
        needs["source"] = vae_memory(pipe, way, height, width, frames=count, decode=False)
    if decode:
        needs["decode"] = vae_memory(pipe, request.tiling, height, width, frames=frames)
    return {stage: need for stage, need in needs.items() if stage not in done}


def denoising_memory(
    pipe: "CogVideoXPipeline",
    geometry: Geometry,
    batch: int,
    *,
    passes: int = 1,
    cache: str | None = None,
) -> int:
    """Bytes that the transformer needs for a batch of so many videos. An estimate.

    Args:
        passes: parts of the batch, computed one after another.
        cache: of steps.
    """
    config, itemsize = pipe.configs["transformer"], pipe.dtype.size
    tokens, dim = config.token_count(geometry.latent_shape), config.dim
    cached = CACHED_ARRAYS.get(cache, 0) * batch * tokens * dim * itemsize
    at_a_time = batch // passes
    hidden = at_a_time * tokens * dim
    if not on_gpu():
        scores = at_a_time * config.num_attention_heads * tokens**2
        activations = ARRAYS_ON_CPU * hidden * itemsize + 4 * scores
    else:
        # Two parts of the wide layer at a time, each before and after its activation.
        parts = ceil(4 * hidden / FEED_FORWARD_ELEMENTS)
        wide = 2 * min(2, parts) * 4 * hidden / parts
        elements = max(ATTENTION_ARRAYS * hidden, FEED_FORWARD_ARRAYS * hidden + wide)
        if pipe.is_packed("transformer"):
            elements += 2 * min(2, parts) * 4 * dim**2  # the two linear layers' weights
        activations = int(elements * itemsize)
    return pipe.weight_bytes("transformer") + activations + cached


def guides_in_turn(pipe: "CogVideoXPipeline", geometry: Geometry, cache: str | None = None) -> bool:
    """Whether there is no memory for the two passes of guidance at a time."""
    return denoising_memory(pipe, geometry, batch=2, cache=cache) > usable_memory(pipe)


def check_memory_limit(
    pipe: "CogVideoXPipeline",
    request: Request,
    *,
    decode: bool = True,
    done: Collection[str] = (),
) -> None:
    """Raises InvalidInputError where a run is foretold to take more than the pipeline's limit.

    Args:
        done: stages that are behind it.
    """
    if pipe.memory_limit is None:
        return
    needs = forecast(pipe, request, decode=decode, done=done)
    stage = max(needs, key=needs.get, default=None)
    if stage is not None and needs[stage] > pipe.memory_limit:
        raise InvalidInputError(
            f"{stage} needs about {size(needs[stage])} and the limit is "
            f"{size(pipe.memory_limit)}: {what_needs_less(pipe, request, stage)}"
        )


def what_needs_less(pipe: "CogVideoXPipeline", request: Request, stage: str) -> str:
    """What to do where a stage needs more memory than it may take."""
    there_is = usable_memory(pipe)
    if stage == "decode" and request.tiling.mode != "tiled":
        return "--tiling tiled needs less"
    if stage == "source" and request.source.tiling != "tiled":
        return "--source-tiling tiled needs less"
    if stage == "denoise" and request.guided and not request.sequential_guidance:
        return "--sequential-guidance needs less"
    network = {"encode": "text_encoder", "denoise": "transformer"}.get(stage, "vae")
    weights = pipe.weight_bytes(network)
    if network != "vae" and 2 * weights > there_is and not pipe.is_packed(network):
        return f"a {network.replace('_', ' ')} in 4 bits needs less (mlx_cogvideo.convert)"
    if stage == "encode" or weights > there_is:
        return "no setting makes it less"
    return "a smaller size or fewer frames need less"


def training_forecast(
    pipe: "CogVideoXPipeline", geometry: Geometry, batch_size: int, adapter_parameters: int
) -> dict[str, int]:
    """Bytes that each stage of training an adapter needs at its peak. An estimate."""
    config = pipe.configs["transformer"]
    _, frames, height, width, _ = geometry.latent_shape
    tokens = config.token_count(geometry.latent_shape)
    hidden = batch_size * tokens * config.dim
    scores = batch_size * config.num_attention_heads * tokens**2
    # The input of each block is kept, too.
    elements = (config.num_layers + BACKWARD_ARRAYS) * hidden
    elements += min(WAITING_ARRAYS * config.num_layers * hidden, PORTION_ELEMENTS)
    pieces = [
        WIDE_PIECES * min(WIDE_ELEMENTS, 4 * hidden),
        SCORE_TABLES * min(SCORES_AT_A_TIME, scores),
    ]
    if mx.metal.is_available():
        side = min(METAL_TABLE_SIDE, tokens)
        pieces.append(METAL_TABLES * batch_size * config.num_attention_heads * side**2)
    elements += max(pieces)
    train = pipe.weight_bytes("transformer") + elements * pipe.dtype.size
    train += 4 * 4 * adapter_parameters  # with their gradients, and two moments, in float32
    if not on_gpu():
        train += 4 * scores
    tiling = Tiling(choose_tiling(pipe, height, width, decode=False))
    return {
        "captions": text_memory(pipe),
        "clips": vae_memory(pipe, tiling, height, width, frames=frames, decode=False),
        "train": train,
    }


def text_memory(pipe: "CogVideoXPipeline") -> int:
    """Bytes that the text encoder needs. An estimate."""
    text, length = pipe.configs["text_encoder"], pipe.configs["transformer"].max_text_seq_length
    elements = length * (2 * text.d_ff + 6 * text.d_model)
    if pipe.is_packed("text_encoder"):
        elements += text.block_weights
    scores = text.num_heads * length**2 * 4
    return pipe.weight_bytes("text_encoder") + elements * pipe.dtype.size + scores


def vae_memory(
    pipe: "CogVideoXPipeline",
    tiling: Tiling,
    height: int,
    width: int,
    *,
    frames: int = 3,
    decode: bool = True,
) -> int:
    """Bytes that the VAE needs for frames of `height` and `width` latent pixels. An estimate.

    Args:
        frames: latent frames of the clip, of which a chunk has 3 at most; tiles keep the pixels of
            all of them.
    """
    config = pipe.configs["vae"]
    ratio = config.spatial_compression_ratio
    chunk = min(CHUNK_FRAMES, (frames - 1) * config.temporal_compression_ratio + 1)
    elements = {"none": None, "seamless": BAND_ELEMENTS, "tiled": TILE_BAND_ELEMENTS}[tiling.mode]
    # Pixels in float32, on the device and off it.
    pixels = 2 * 4 * chunk * height * width * ratio**2 * config.out_channels
    if (tiles := tiling.tiles(config, height, width)) is not None:
        # A row of tiles with all frames, twice, and the clip as uint8.
        rows = height + 2 * tiles.size[0] * pipe.dtype.size
        pixels = frames * config.temporal_compression_ratio * rows * width
        pixels *= ratio**2 * config.out_channels
        height, width = min(height, tiles.size[0]), min(width, tiles.size[1])
    parts = footprint(config, height, width, frames=chunk, decode=decode, band_elements=elements)
    bands = VAE_BANDS[tiling.mode] if on_gpu() else VAE_BANDS_ON_CPU
    count = parts.remembered + parts.maps + bands * parts.band
    return pipe.weight_bytes("vae") + count * pipe.dtype.size + pixels


def choose_tiling(
    pipe: "CogVideoXPipeline", height: int, width: int, *, decode: bool = True
) -> str:
    """The VAE's fastest way for which there is memory; of the exact ones if there is for any.

    Whole frames save a second of minutes, and aren't to be what a run needs most memory for.
    """
    there_is = usable_memory(pipe)
    limits = {"none": max(pipe.weight_bytes("transformer"), WHOLE_FRAMES), "seamless": there_is}
    if decode and largest_decode_tensor(pipe.configs["vae"], (1, 3, height, width)) >= MAX_ELEMENTS:
        del limits["none"]
    for mode, limit in limits.items():
        if vae_memory(pipe, Tiling(mode), height, width, decode=decode) <= min(limit, there_is):
            return mode
    return "tiled"


def usable_memory(pipe: "CogVideoXPipeline") -> int:
    """Bytes that a run may be foretold to need: what there is, up to the pipeline's limit."""
    there_is = available_memory()
    return there_is if pipe.memory_limit is None else min(there_is, pipe.memory_limit)


def available_memory() -> int:
    """Bytes that a run can have now.

    On a Mac, what the GPU may use of the memory that it shares with everything else.
    """
    if on_gpu():
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


def size(count: float) -> str:
    """Bytes as ``16 KiB``, ``466 MiB`` or ``9.2 GiB``."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1023.5:
            return f"{count:.0f} {unit}"
    return f"{count / 1024:.1f} GiB"


def manage_memory(limit: int | None = None) -> None:
    """Tells MLX and the system what to hold on to while a video is made.

    What has been freed is kept for the next use up to an eighth of the memory. macOS 15 and later
    keep a model's memory wired, so that nothing of it is paged out; elsewhere there is no such
    limit to set, and earlier systems take it for an error.

    Args:
        limit: bytes that the run is to keep to, which MLX takes for a guideline.
    """
    there_is = available_memory()
    if limit is not None:
        mx.set_memory_limit(limit)
        there_is = min(there_is, limit)
    mx.set_cache_limit(there_is // 8)
    if not mx.metal.is_available():
        return
    version = platform.mac_ver()[0]
    if version and int(version.split(".")[0]) >= 15:
        mx.set_wired_limit(min(int(mx.device_info()["max_recommended_working_set_size"]), there_is))
