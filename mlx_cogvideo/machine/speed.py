"""How fast a machine computes, and what each official model will take on it: an estimate."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Self

import mlx.core as mx

from ..checkpoints import hub_cache
from ..checkpoints.components import DTYPES
from ..checkpoints.model_configurations import ModelConfigurations, official_model
from ..checkpoints.official import not_downloaded
from ..checkpoints.variants import VARIANTS, Variant
from ..device import Machine, free_space, mac
from ..nn.attention import attention
from ..nn.backend import KERNEL_SECONDS, is_known
from ..nn.quantization import Quantization
from ..pipeline.estimates import (
    choose_tiling,
    denoising_memory,
    largest_memory,
    split_cfg,
    text_memory,
    vae_memory,
)
from ..pipeline.geometry import Geometry
from ..pipeline.resolved import ResolvedSettings
from ..pipeline.resolver import model_geometry
from ..pipeline.vae_stage import Tiling

SECONDS = 0.25
"""Time that each measurement takes."""

# Norms and elementwise parts of a block are counted as reads and writes of arrays as large as its
# tokens. The number follows from their times on an H100.
ARRAYS_PER_BLOCK = 30
OPERATIONS_PER_BYTE = 25
"""Operations in the time in which a Mac's memory moves a byte: Apple publishes 68 GB/s for an M1
and 400 GB/s for an M2 Max."""

PACKINGS = {"16 bits": None, "8 bits": Quantization(8, 64), "4 bits": Quantization(4, 64)}
"""The sizes of an official model that are estimated."""

MAC_SIZES = (8, 16, 24, 32, 36, 48, 64, 96, 128)
"""Memory of Macs, in GB."""


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches with a dtype.

    Attributes:
        matmul: operations per second in matrix products.
        attention: operations per second in attention.
        bandwidth: bytes per second that are copied.
    """

    dtype: str
    matmul: float
    attention: float
    bandwidth: float

    def checked(self) -> Self:
        """These ceilings, if they can be those of a machine.

        Raises:
            ValueError: a rate isn't a number, or a machine would need years or no time.
        """
        rates = self.matmul, self.attention, self.bandwidth
        if not all(type(rate) in (int, float) and 1 <= rate <= 1e18 for rate in rates):
            raise ValueError(f"{rates} can't be rates")
        return self


@dataclass(frozen=True)
class Outlook:
    """Estimated time and memory of a model at its own size, with guidance.

    Attributes:
        step: seconds that a step takes.
        video: seconds that 50 steps take.
        memory: bytes at the peak of a run in 16 bits, with the modes that ``generate`` chooses.
        memory_packed: the same in 4 bits.
        advice: which of these to use on this machine.
        download: bytes of its files that aren't in the hub's cache.
    """

    variant: str
    step: float
    video: float
    memory: int
    memory_packed: int
    advice: str
    download: int


@dataclass(frozen=True)
class Choice:
    """What ``generate`` chooses for an official model on a Mac, at the model's own size.

    Attributes:
        bits: ``16 bits``, ``8 bits`` or ``4 bits``.
        gigabytes: the Mac's memory.
        memory: estimated bytes of the stage that needs most.
        limit: bytes that the GPU may use there.
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


def choices_on_macs(chip: str = "") -> Iterator[Choice]:
    """The choices for each official model, in each number of bits, on Macs of all sizes.

    Args:
        chip: of all these Macs; by default the slowest, which needs the least memory.
    """
    for variant, (bits, packing) in product(VARIANTS, PACKINGS.items()):
        model = official_model(variant, packing)
        for gigabytes in MAC_SIZES:
            model.machine = mac(gigabytes, chip)
            mode, split, memory = _choose(model)
            limit = model.machine.memory
            yield Choice(variant.alias, bits, gigabytes, memory, limit, mode, split)


def _choose(model: ModelConfigurations) -> tuple[str, bool, int]:
    """What ``generate`` chooses for a video of the model's own size, with guidance.

    Returns:
        The VAE's mode, whether the passes of guidance are split, and the estimated bytes of the
        stage that needs most memory.
    """
    geometry = model_geometry(model)
    _, frames, height, width, _ = geometry.latent_shape
    mode, split = choose_tiling(model, height, width), split_cfg(model, geometry)
    needs = (
        text_memory(model),
        denoising_memory(model, geometry, 2, passes=2 if split else 1),
        vae_memory(model, Tiling(mode), height, width, frames=frames),
    )
    return mode, split, max(needs)


def measure_ceilings(dtype: mx.Dtype) -> Ceilings:
    """Measures what this machine reaches with a dtype, for about a second."""
    size, seconds = 256, 0.0
    while size < 8192 and seconds < SECONDS / 8:
        size *= 2
        a = mx.random.normal((size, size)).astype(dtype) / size**0.5
        seconds = _seconds(lambda x, a=a: x @ a, a)
    rate = 2 * size**3 / seconds
    tokens, seconds = 256, 0.0
    while tokens < 16384 and seconds < SECONDS / 4:
        tokens *= 2
        # No multiple of 128, as in the official models: CUDA is a tenth slower then.
        q = mx.random.normal((1, 8, tokens - 16, 64)).astype(dtype)
        seconds = _seconds(lambda x, q=q: attention(x, q, q), q)
    attended = 4 * 8 * 64 * (tokens - 16) ** 2 / seconds
    large = mx.zeros(2**26, dtype)  # more than any cache holds
    copied = 2 * large.nbytes / _seconds(lambda x: x + 1, large)
    return Ceilings(str(dtype).split(".")[-1], rate, attended, copied)


def _seconds(compute: Callable[[mx.array], mx.array], x: mx.array) -> float:
    """The best of a few times.

    Short computations are timed eight in a row, because a device needs a moment before the first.
    """
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


def step_seconds(
    model: ModelConfigurations, geometry: Geometry, ceilings: Ceilings, *, batch: int = 2
) -> float:
    """Estimates the seconds that a step of denoising takes.

    Args:
        batch: passes of the transformer; guidance takes 2.
    """
    config = model.configs["transformer"]
    tokens, dim, layers = config.token_count(geometry.latent_shape), config.dim, config.num_layers
    products = 24 * dim**2 * tokens / ceilings.matmul
    scores = 4 * tokens**2 * dim / ceilings.attention
    itemsize = DTYPES[ceilings.dtype].size
    rest = ARRAYS_PER_BLOCK * tokens * dim * itemsize / ceilings.bandwidth
    return batch * layers * (products + scores + rest)


def run_seconds(
    model: ModelConfigurations, settings: ResolvedSettings, ceilings: Ceilings
) -> float:
    """Estimates the seconds that the denoising of a video takes, without a cache of blocks."""
    return settings.passes_of_all_windows * step_seconds(
        model, settings.geometry, ceilings, batch=1
    )


def chip_ceilings(machine: Machine, dtype: str) -> Ceilings | None:
    """What a Mac reaches at least by the table of chips; None for other machines and chips."""
    if machine.backend != "metal" or not is_known(machine.chip):
        return None
    rate = machine.kernel_operations / KERNEL_SECONDS
    return Ceilings(dtype, rate, rate, rate / OPERATIONS_PER_BYTE)


def outlook(variant: Variant, ceilings: Ceilings) -> Outlook:
    """An estimate of a model's time and memory here, at its own size and with guidance."""
    model = official_model(variant)
    step = step_seconds(model, model_geometry(model), ceilings)
    needs, fitting = [], []
    for bits in ("16 bits", "4 bits"):
        model = official_model(variant, PACKINGS[bits])
        mode, _, need = _choose(model)
        needs.append(need)
        if need <= largest_memory(model):
            fitting.append(f"{bits}, tiled" if mode == "tiled" else bits)
    advice = next(iter(fitting), "fewer frames or a smaller size, in 4 bits")
    missing = not_downloaded(variant.repo)
    download = sum(missing.bytes.values()) if missing else 0
    return Outlook(variant.alias, step, 50 * step, *needs, advice, download)


def report(ceilings: list[Ceilings]) -> dict[str, Any]:
    """The measurements and estimates of a check, as JSON holds them.

    Times are estimated for the dtype with the fastest products.
    """
    fastest = max(ceilings, key=lambda c: c.matmul)
    return {
        "dtype": dtype_advice(ceilings),
        "ceilings": [asdict(c) for c in ceilings],
        "disk_free": free_space(hub_cache()),
        "outlook": [asdict(outlook(variant, fastest)) for variant in VARIANTS],
        "macs": [{**asdict(choice), "fits": choice.fits} for choice in choices_on_macs()],
    }


def dtype_advice(ceilings: list[Ceilings]) -> str:
    """Recommends a dtype, in a sentence."""
    rates = {c.dtype: c.matmul for c in ceilings}
    if rates["float32"] > 1.5 * max(rates["bfloat16"], rates["float16"]):
        return "float32: 16 bits are slower here"
    if rates["float16"] > 1.2 * rates["bfloat16"]:
        return "float16 for 2B, which was trained in it; bfloat16 for the others, which overflow"
    return "what the checkpoint has: float16 for 2B, bfloat16 for the others"
