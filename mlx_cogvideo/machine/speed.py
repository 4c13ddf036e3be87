"""What a machine can do, and what that means for each official model."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from math import prod
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoints.networks import NETWORKS
from ..checkpoints.variants import VARIANTS, Variant
from ..device import Machine, mac, this_machine
from ..nn.attention import attention
from ..nn.quantization import Quantization, linear_layers, packings
from ..pipeline.estimates import choose_tiling, estimate_memory, largest_memory, split_cfg
from ..pipeline.geometry import Geometry
from ..pipeline.vae_stage import Tiling

SECONDS = 0.25  # of measuring, each
# Arrays as large as the tokens that a block reads or writes besides its products, as if all of it
# were bandwidth: from the times of its norms and elementwise parts on an H100.
ARRAYS_PER_BLOCK = 30
PACKINGS = {"16 bits": None, "4 bits": Quantization(4, 64)}
ALL_PACKINGS = {"16 bits": None, "8 bits": Quantization(8, 64), "4 bits": Quantization(4, 64)}
MAC_SIZES = (8, 16, 24, 32, 36, 48, 64, 96, 128)
"""Memory of Macs, in GB."""


@dataclass(frozen=True)
class Ceilings:
    """Operations a second in products and in attention, and bytes a second copied, of a dtype."""

    dtype: str
    matmul: float
    attention: float
    bandwidth: float


@dataclass(frozen=True)
class Outlook:
    """What a model will take at its own size.

    Attributes:
        step: seconds, with guidance; `video`: of all 50.
        memory: bytes at the peak of what ``generate.py`` chooses here, in 16 bits, and in 4 bits.
    """

    variant: str
    step: float
    video: float
    memory: int
    memory_packed: int
    advice: str


@dataclass(frozen=True)
class Choice:
    """What ``generate.py`` chooses for an official model on a Mac, at the model's own size.

    Attributes:
        bits: ``16 bits``, ``8 bits`` or ``4 bits``.
        gigabytes: the Mac's memory.
        memory: bytes that the stage that needs most is estimated to need; `limit`: that a run can
            have there.
        tiling: the VAE's mode.
        split_guidance: whether the two passes of guidance are computed one after the other.
    """

    variant: str
    bits: str
    gigabytes: int
    memory: int
    limit: int
    tiling: str
    split_guidance: bool

    @property
    def fits(self) -> bool:
        return self.memory <= self.limit


def choices_on_macs() -> list[Choice]:
    """What is chosen for each official model, in each size, on Macs of all sizes."""
    return [
        _choice(variant.alias, bits, gigabytes)
        for variant in VARIANTS
        for bits in ALL_PACKINGS
        for gigabytes in MAC_SIZES
    ]


def _choice(alias: str, bits: str, gigabytes: int) -> Choice:
    model = _imagined(alias, ALL_PACKINGS[bits], mac(gigabytes))
    request = _chosen(model)
    need = max(estimate_memory(model, request).values())
    limit = model.machine.memory
    mode, split = request.tiling.mode, request.sequential_guidance
    return Choice(alias, bits, gigabytes, need, limit, mode, split)


def measure_ceilings(dtype: mx.Dtype) -> Ceilings:
    """Measures for about a second."""
    size, seconds = 256, 0.0
    while size < 8192 and seconds < SECONDS / 8:
        size *= 2
        a = mx.random.normal((size, size)).astype(dtype) / size**0.5
        seconds = _seconds(lambda x, a=a: x @ a, a)
    rate = 2 * size**3 / seconds
    tokens, seconds = 256, 0.0
    while tokens < 16384 and seconds < SECONDS / 4:
        tokens *= 2
        # Like the official models' no multiple of 128: CUDA is a tenth slower there.
        q = mx.random.normal((1, 8, tokens - 16, 64)).astype(dtype)
        seconds = _seconds(lambda x, q=q: attention(x, q, q), q)
    attended = 4 * 8 * 64 * (tokens - 16) ** 2 / seconds
    large = mx.zeros(2**26, dtype)  # more than any cache holds
    copied = 2 * large.nbytes / _seconds(lambda x: x + 1, large)
    return Ceilings(str(dtype).split(".")[-1], rate, attended, copied)


def _seconds(compute: Callable[[mx.array], mx.array], x: mx.array) -> float:
    """The best of a few times. Short ones count by eight in a row: a device needs a moment before
    the first."""
    mx.eval(compute(x))
    best, in_a_row = float("inf"), 1
    since = time.perf_counter()
    while time.perf_counter() - since < SECONDS / 2 or best == float("inf"):
        start, y = time.perf_counter(), x
        for _ in range(in_a_row):
            y = compute(y)
        mx.eval(y)
        seconds = time.perf_counter() - start
        best = min(best, seconds / in_a_row)
        if seconds < SECONDS / 8:
            in_a_row = 8
    return best


def outlook(variant: Variant, ceilings: Ceilings) -> Outlook:
    """An estimate of a model's time and memory here, at its own size and with guidance."""
    model = _imagined(variant.alias)
    config, geometry = model.configs["transformer"], model.geometry
    tokens, dim, layers = config.token_count(geometry.latent_shape), config.dim, config.num_layers
    products = 24 * dim**2 * tokens / ceilings.matmul
    scores = 4 * tokens**2 * dim / ceilings.attention
    rest = ARRAYS_PER_BLOCK * tokens * dim * 2 / ceilings.bandwidth
    step = 2 * layers * (products + scores + rest)
    needs, fitting = [], []
    for bits, packing in PACKINGS.items():
        model = _imagined(variant.alias, packing)
        request = _chosen(model)
        needs.append(max(estimate_memory(model, request).values()))
        if needs[-1] <= largest_memory(model):
            fitting.append(bits + ", tiled" * (request.tiling.mode == "tiled"))
    advice = next(iter(fitting), "fewer frames or a smaller size, in 4 bits")
    return Outlook(variant.alias, step, 50 * step, *needs, advice)


def _chosen(model: SimpleNamespace) -> SimpleNamespace:
    """The request that generate.py makes by itself, as far as a forecast looks at it."""
    return SimpleNamespace(
        geometry=model.geometry,
        guided=True,
        sequential_guidance=split_cfg(model, model.geometry),
        cache=None,
        encodes_frames=False,
        tiling=Tiling(choose_tiling(model, *model.geometry.latent_shape[2:4])),
    )


def report(ceilings: list[Ceilings]) -> dict[str, Any]:
    """All that isn't a comparison, fit for JSON; times are by the fastest of the dtypes."""
    fastest = max(ceilings, key=lambda c: c.matmul)
    return {
        "dtype": dtype_advice(ceilings),
        "ceilings": [asdict(c) for c in ceilings],
        "outlook": [asdict(outlook(variant, fastest)) for variant in VARIANTS],
        "macs": [{**asdict(choice), "fits": choice.fits} for choice in choices_on_macs()],
    }


def dtype_advice(ceilings: list[Ceilings]) -> str:
    """Which dtype to take, in a sentence."""
    rates = {c.dtype: c.matmul for c in ceilings}
    if rates["float32"] > 1.5 * max(rates["bfloat16"], rates["float16"]):
        return "float32: 16 bits are slower here"
    if rates["float16"] > 1.2 * rates["bfloat16"]:
        return "float16 for 2B, which was trained in it; bfloat16 for the others, which overflow"
    return "what the checkpoint has: float16 for 2B, bfloat16 for the others"


def _imagined(
    alias: str, packing: Quantization | None = None, machine: Machine | None = None
) -> SimpleNamespace:
    """An official model that isn't here, as far as an estimate looks at it.

    Args:
        alias: its short name.
        packing: how the converter packed it.
        machine: None is this one.
    """
    configs, weights, geometry = _sizes(alias, packing)
    return SimpleNamespace(
        configs=configs,
        dtype=mx.bfloat16,
        geometry=geometry,
        machine=machine or this_machine(),
        memory_limit=None,
        weight_bytes=weights.__getitem__,
        is_packed=lambda name: packing is not None and name != "vae",
    )


@cache
def _sizes(
    alias: str, packing: Quantization | None
) -> tuple[dict[str, Any], dict[str, int], Geometry]:
    """A model's configurations, the bytes of its networks, and its own size."""
    variant = next(variant for variant in VARIANTS if variant.alias == alias)
    told = {"transformer": variant.architecture, "vae": {}, "text_encoder": {}}
    configs = {
        name: config_class.from_dict(told[name]) for name, (_, config_class) in NETWORKS.items()
    }
    weights = {
        name: _weight_bytes(network(configs[name]), packing)
        for name, (network, _) in NETWORKS.items()
    }
    geometry = Geometry.choose(
        variant,
        configs["transformer"],
        configs["vae"],
        num_frames=None,
        height=None,
        width=None,
    )
    return configs, weights, geometry


def _weight_bytes(network: nn.Module, packing: Quantization | None) -> int:
    """Of a network in 16 bits, whose layers are packed as the converter packs them."""
    total = 2 * sum(prod(a.shape) for _, a in tree_flatten(network.parameters()))
    if packing is None:
        return total
    layers = linear_layers(network)
    for path, how in packings(layers, packing, "standard").items():
        for part, shape in how.packed_shapes(*layers[path]).items():
            total += prod(shape) * (4 if part == "weight" else 2)
        total -= 2 * prod(layers[path])
    return total
