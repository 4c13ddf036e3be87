"""Estimates of the memory that a run needs, and the modes that fit into it."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoints.model_configurations import ModelConfigurations
from ..checkpoints.model_folder import ModelFolder
from ..device import Machine, size
from ..diffusion.division import ONE_PROCESS, Division
from ..diffusion.extrapolation import held_arrays
from ..diffusion.step_cache import CACHED_ARRAYS
from ..errors import InvalidInputError
from ..nn.autoencoder import (
    CHUNK_FRAMES,
    MAX_ELEMENTS,
    STRIP_ELEMENTS,
    TILE_STRIP_ELEMENTS,
    TinyDecoder,
    footprint,
    largest_decode_tensor,
    tiny_footprint,
)
from ..nn.transformer import feed_forward_parts
from .geometry import Geometry
from .resolved import ResolvedSettings
from .vae_stage import Tiling


@dataclass(frozen=True)
class Constants:
    """Arrays that a backend holds at the peak of a stage, in addition to those of any backend.

    Attributes:
        whole, strips, tiles: for the VAE's modes, feature maps of the size that is computed at a
            time (the whole frame, a strip of rows, a strip of a tile), beside the widest map and
            the convolutions' caches.
        attention: for the transformer, arrays as large as its tokens during attention.
        feed_forward: the same beside the wide layer of the feed-forward part.
    """

    whole: int
    strips: int
    tiles: int
    attention: int
    feed_forward: int

    def maps(self, tiling: str) -> int:
        """Feature maps of one of the VAE's modes."""
        return {"none": self.whole, "exact": self.strips, "tiled": self.tiles}[tiling]


CONSTANTS = {
    # Measured on an H100: benchmarks/step.py and benchmarks/vae.py.
    "cuda": Constants(whole=3, strips=16, tiles=7, attention=11, feed_forward=6),
    # Counted in MLX's source, not measured. A causal convolution is computed as three 2-D ones:
    # their padded input, three results and an output that isn't used are held until the GPU is
    # done, and joining the parts of a result takes one more. Products and attention have no
    # workspace there, so that CUDA's numbers hold or are too high.
    "metal": Constants(whole=5, strips=17, tiles=7, attention=11, feed_forward=6),
    # Winograd holds its transformed input and output, 2.7 maps, for each of the three.
    "metal winograd": Constants(whole=17, strips=19, tiles=17, attention=11, feed_forward=6),
    # MLX unfolds the windows of a convolution, 27 for the VAE's. Small videos are computed in one
    # portion. Measured with the demo.
    "cpu": Constants(whole=37, strips=37, tiles=37, attention=43, feed_forward=6),
}


def constants(machine: Machine) -> Constants:
    """The constants of a machine's backend."""
    return CONSTANTS["metal winograd" if machine.winograd else machine.backend]


TINY_MAPS = {"cuda": 4, "metal": 4, "cpu": 14}
"""Maps of the small decoder's widest layer that a backend holds; the CPU unfolds windows of 9."""

# Bytes that whole frames may always take.
WHOLE_FRAMES = 2 * 2**30


def estimate_memory(
    pipe: ModelFolder,
    settings: ResolvedSettings,
    *,
    decode: bool = True,
    done: Collection[str] = (),
) -> dict[str, int]:
    """Bytes that each stage of a run needs at its peak: weights and activations. An estimate.

    Args:
        done: stages that are finished, which are left out.
    """
    _, frames, height, width, _ = settings.geometry.latent_shape
    batch = 2 if settings.guided else 1
    needs = {"encode": text_memory(pipe)}
    if settings.encodes_frames:
        count = frames if settings.source.image is None else 1
        tiling = settings.encoding
        needs["source"] = vae_memory(pipe, tiling, height, width, frames=count, decode=False)
    needs["denoise"] = denoising_memory(
        pipe,
        settings.geometry,
        batch,
        passes=settings.batch_parts,
        cache=settings.cache,
        division=settings.division,
    )
    if decode:
        if settings.vae == "tiny":
            needs["decode"] = tiny_memory(pipe, height, width)
        else:
            needs["decode"] = vae_memory(pipe, settings.decoding, height, width, frames=frames)
    return {stage: need for stage, need in needs.items() if stage not in done}


def denoising_memory(
    pipe: ModelFolder,
    geometry: Geometry,
    batch: int,
    *,
    passes: int = 1,
    cache: str | None = None,
    division: Division = ONE_PROCESS,
) -> int:
    """Bytes that the transformer needs for a batch of so many videos. An estimate.

    Args:
        passes: parts of the batch, computed one after another.
        cache: of steps.
        division: how processes divide a step; the estimate is for the one that needs most.
    """
    config, itemsize = pipe.configs["transformer"], pipe.dtype.size
    tokens, dim = config.token_count(geometry.latent_shape), config.dim
    lines = held_arrays(cache, batch) * math.prod(geometry.latent_shape) * mx.float32.size
    batch = max(1, batch // division.halves)
    own_tokens = division.largest_share(tokens)
    cached = lines + CACHED_ARRAYS.get(cache, 0) * batch * own_tokens * dim * itemsize
    at_a_time = batch // min(passes, batch)
    rows = at_a_time * own_tokens
    hidden = rows * dim
    # Two parts of the wide layer at a time, each before and after its activation.
    machine = pipe.machine
    parts = feed_forward_parts(rows, dim, machine.kernel_operations)
    wide = 2 * min(2, parts) * 4 * hidden / parts
    held = constants(machine)
    elements = max(held.attention * hidden, held.feed_forward * hidden + wide)
    if machine.backend == "cpu":  # where MLX holds the whole table of scores, in float32
        cached += 4 * at_a_time * config.num_attention_heads * own_tokens * tokens
    elif pipe.is_packed("transformer"):
        elements += 2 * min(2, parts) * 4 * dim**2  # the two linear layers' weights
    if division.splits_tokens:  # keys and values of all tokens, as they arrive and joined
        elements += 2 * 2 * at_a_time * tokens * dim
    return pipe.weight_bytes("transformer") + int(elements * itemsize) + cached


def split_cfg(
    pipe: ModelFolder,
    geometry: Geometry,
    cache: str | None = None,
    division: Division = ONE_PROCESS,
) -> bool:
    """Whether memory is too short for the two passes of guidance at a time."""
    need = denoising_memory(pipe, geometry, batch=2, cache=cache, division=division)
    return need > usable_memory(pipe)


def check_memory_limit(
    pipe: ModelFolder,
    settings: ResolvedSettings,
    *,
    decode: bool = True,
    done: Collection[str] = (),
) -> None:
    """Raises InvalidInputError where a run is estimated to need more than the pipeline's limit.

    Args:
        done: stages that are finished.
    """
    if pipe.memory_limit is None:
        return
    needs = estimate_memory(pipe, settings, decode=decode, done=done)
    stage = max(needs, key=needs.get, default=None)
    if stage is not None and needs[stage] > pipe.memory_limit:
        raise InvalidInputError(
            f"{stage} needs about {size(needs[stage])} and the limit is "
            f"{size(pipe.memory_limit)}: {memory_advice(pipe, settings, stage)}"
        )


def memory_advice(pipe: ModelFolder, settings: ResolvedSettings, stage: str) -> str:
    """Advice for a stage that needs more memory than this machine, or the limit, allows."""
    available = largest_memory(pipe)
    if stage == "decode" and settings.vae == "full" and settings.decoding.mode != "tiled":
        return "--tiling tiled needs less"
    if stage == "source" and settings.source.tiling != "tiled":
        return "--source-tiling tiled needs less"
    if stage == "denoise" and settings.guided and settings.batch_parts == 1:
        return "--sequential-guidance needs less"
    network = {"encode": "text_encoder", "denoise": "transformer"}.get(stage, "vae")
    weights = pipe.weight_bytes(network)
    if network != "vae" and 2 * weights > available and not pipe.is_packed(network):
        return f"-q 4 needs less, a {network.replace('_', ' ')} in 4 bits"
    if stage == "encode" or weights > available:
        return "no setting makes it less"
    return _smaller(pipe, settings)


def _smaller(pipe: ModelFolder, settings: ResolvedSettings) -> str:
    """Advice to make a smaller video, as far as the model can."""
    ways = []
    if not pipe.configs["transformer"].use_learned_positional_embeddings:
        ways.append("a smaller size")
    if settings.geometry.num_frames > 1:
        ways.append("fewer frames")
    return f"{' or '.join(ways)} need less" if ways else "no setting makes it less"


def text_memory(pipe: ModelFolder) -> int:
    """Bytes that the text encoder needs. An estimate."""
    text, length = pipe.configs["text_encoder"], pipe.configs["transformer"].max_text_seq_length
    elements = length * (2 * text.d_ff + 6 * text.d_model)
    if pipe.is_packed("text_encoder"):
        elements += text.block_weights
    scores = text.num_heads * length**2 * 4
    return pipe.weight_bytes("text_encoder") + elements * pipe.dtype.size + scores


def vae_memory(
    pipe: ModelFolder,
    tiling: Tiling,
    height: int,
    width: int,
    *,
    frames: int = 3,
    decode: bool = True,
) -> int:
    """Bytes that the VAE needs for frames of `height` and `width` latent pixels. An estimate.

    Args:
        frames: latent frames of the clip. A chunk has 3 of them at most; tiles keep the pixels of
            all.
    """
    config = pipe.configs["vae"]
    ratio = config.spatial_compression_ratio
    chunk = min(CHUNK_FRAMES, (frames - 1) * config.temporal_compression_ratio + 1)
    elements = {"none": None, "exact": STRIP_ELEMENTS, "tiled": TILE_STRIP_ELEMENTS}[tiling.mode]
    # Pixels in float32, on the device and off it.
    pixels = 2 * 4 * chunk * height * width * ratio**2 * config.out_channels
    if (tiles := tiling.tiles(config, height, width)) is not None:
        # A row of tiles with all frames, twice, and the clip as uint8.
        rows = height + 2 * tiles.size[0] * pipe.dtype.size
        pixels = frames * config.temporal_compression_ratio * rows * width
        pixels *= ratio**2 * config.out_channels
        height, width = min(height, tiles.size[0]), min(width, tiles.size[1])
    parts = footprint(config, height, width, frames=chunk, decode=decode, strip_elements=elements)
    count = parts.remembered + parts.maps + constants(pipe.machine).maps(tiling.mode) * parts.strip
    return pipe.weight_bytes("vae") + count * pipe.dtype.size + pixels


def tiny_memory(pipe: ModelConfigurations, height: int, width: int) -> int:
    """Bytes that the small decoder needs for frames of so many latent pixels. An estimate."""
    parameters = tree_flatten(TinyDecoder(pipe.configs["vae"].latent_channels).parameters())
    weights = sum(parameter.size for _, parameter in parameters)
    seen, largest = tiny_footprint(height, width)
    maps = TINY_MAPS[pipe.machine.backend]
    # Four frames of pixels in float32, on the device and off it.
    pixels = 2 * 4 * 4 * 3 * height * width * pipe.configs["vae"].spatial_compression_ratio ** 2
    return int((weights + seen + maps * largest) * pipe.dtype.size) + pixels


def choose_tiling(pipe: ModelFolder, height: int, width: int, *, decode: bool = True) -> str:
    """Chooses the VAE's fastest mode that fits into memory, an exact one if possible.

    Whole frames save a second of minutes, so that they must not be the stage that needs most
    memory. They and strips give the same video: the memory that is free now may choose between
    them. Tiles give another video: only the machine's memory may choose them, so that a command
    gives the same video whatever else is running.
    """
    limits = {
        "none": min(max(pipe.weight_bytes("transformer"), WHOLE_FRAMES), usable_memory(pipe)),
        "exact": largest_memory(pipe),
    }
    if decode and largest_decode_tensor(pipe.configs["vae"], (1, 3, height, width)) >= MAX_ELEMENTS:
        del limits["none"]
    for mode, limit in limits.items():
        if vae_memory(pipe, Tiling(mode), height, width, decode=decode) <= limit:
            return mode
    return "tiled"


def usable_memory(pipe: ModelFolder) -> int:
    """Bytes that a run may be estimated to need now: what is available, up to the limit."""
    return _limited(pipe.machine.available, pipe)


def largest_memory(pipe: ModelFolder) -> int:
    """Bytes that a run may be estimated to need on this machine at all, up to the limit."""
    return _limited(pipe.machine.memory, pipe)


def _limited(available: int, pipe: ModelFolder) -> int:
    return available if pipe.memory_limit is None else min(available, pipe.memory_limit)
