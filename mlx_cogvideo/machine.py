"""What a machine can do, and what that means for each official model."""

import platform
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

from . import __version__
from .coding import Tiling
from .memory import available_memory, choose_tiling, forecast, guides_in_turn, usable_memory
from .networks import NETWORKS
from .nn.attention import attention
from .nn.quantization import Quantization, linear_layers, packings
from .request import Geometry
from .variants import VARIANTS, Variant

SECONDS = 0.25  # of measuring, each
# Arrays as large as the tokens that a block reads or writes besides its products, as if all of it
# were bandwidth: from the times of its norms and elementwise parts on an H100.
ARRAYS_PER_BLOCK = 30
PACKINGS = {"16 bits": None, "4 bits": Quantization(4, 64)}


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


def describe() -> dict[str, Any]:
    """Chip, memory, system and versions."""
    name = mx.device_info().get("device_name", platform.processor())
    return {
        "mlx_cogvideo": __version__,
        "mlx": mx.__version__,
        "device": f"{mx.default_device().type.name} {name}",
        "system": f"{platform.system()} {platform.release()}",
        "memory": available_memory(),
    }


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
        needs.append(max(forecast(model, request).values()))
        if needs[-1] <= usable_memory(model):
            fitting.append(bits + ", tiled" * (request.tiling.mode == "tiled"))
    advice = next(iter(fitting), "fewer frames or a smaller size, in 4 bits")
    return Outlook(variant.alias, step, 50 * step, *needs, advice)


def _chosen(model: SimpleNamespace) -> SimpleNamespace:
    """The request that generate.py makes by itself, as far as a forecast looks at it."""
    return SimpleNamespace(
        geometry=model.geometry,
        guided=True,
        sequential_guidance=guides_in_turn(model, model.geometry),
        cache=None,
        encodes_frames=False,
        tiling=Tiling(choose_tiling(model, *model.geometry.latent_shape[2:4])),
    )


def report(ceilings: list[Ceilings]) -> dict[str, Any]:
    """All of it, fit for JSON; times are by the fastest of the dtypes."""
    fastest = max(ceilings, key=lambda c: c.matmul)
    return {
        **describe(),
        "dtype": dtype_advice(ceilings),
        "ceilings": [asdict(c) for c in ceilings],
        "outlook": [asdict(outlook(variant, fastest)) for variant in VARIANTS],
    }


def dtype_advice(ceilings: list[Ceilings]) -> str:
    """Which dtype to take, in a sentence."""
    rates = {c.dtype: c.matmul for c in ceilings}
    if rates["float32"] > 1.5 * max(rates["bfloat16"], rates["float16"]):
        return "float32: 16 bits are slower here"
    if rates["float16"] > 1.2 * rates["bfloat16"]:
        return "float16 for 2B, which was trained in it; bfloat16 for the others, which overflow"
    return "what the checkpoint has: float16 for 2B, bfloat16 for the others"


@cache
def _imagined(alias: str, packing: Quantization | None = None) -> SimpleNamespace:
    """An official model that isn't here, as far as a forecast looks at it.

    Args:
        alias: its short name.
        packing: how the converter packed it.
    """
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
    return SimpleNamespace(
        configs=configs,
        dtype=mx.bfloat16,
        geometry=geometry,
        memory_limit=None,
        weight_bytes=weights.__getitem__,
        is_packed=lambda name: packing is not None and name != "vae",
    )


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
