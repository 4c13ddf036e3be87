"""Compares the bundled demo, stage by stage, with values that PyTorch computed.

A machine can so show that its numbers are right without PyTorch. The values are in the demo's
folder; tools/checks/store_check_values.py makes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoints import DEMO_PATH
from ..checkpoints.compatibility import check_networks, read_configurations
from ..checkpoints.model_folder import ModelFolder
from ..checkpoints.resolve import Base
from ..diffusion.denoising import velocities
from ..diffusion.schedulers import make_scheduler
from ..errors import InvalidInputError
from ..nn.attention import attention
from ..nn.quantization import Quantization, QuantizedLinear

VALUES = "check_values.safetensors"
PROMPT = "a red circle moves right on a white background"
TIMESTEP, STEPS = 699, 10
TILES = (64, 64), (0.25, 0.25)  # size and overlap
EVERY = 6  # one of so many pixels of a frame is compared, in height and in width

TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest differences that pass, relative to the largest value of a stage."""


@dataclass(frozen=True)
class Result:
    """The error of a stage relative to its largest value, and the largest error that passes."""

    stage: str
    error: float
    tolerance: float

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def latents() -> np.ndarray:
    """``[1, 3, 12, 12, 16]``, the same everywhere: from NumPy's legacy generator."""
    return np.random.RandomState(0).standard_normal((1, 3, 12, 12, 16)).astype(np.float32)


def noise() -> np.ndarray:
    return np.random.RandomState(1).standard_normal((1, 3, 12, 12, 16)).astype(np.float32)


def clip() -> np.ndarray:
    """A bright square that moves over a ramp: ``[1, 9, 96, 96, 3]`` from -1 to 1."""
    y, x = np.mgrid[:96, :96] / 95
    pixels = np.repeat(np.stack([x, y, 1 - x], axis=-1)[None], 9, axis=0) - 0.5
    for frame in range(9):
        pixels[frame, 30:60, 10 + 4 * frame : 40 + 4 * frame] = 1
    return pixels[None].astype(np.float32)


def check_stages(
    folder: Path = DEMO_PATH, dtype: mx.Dtype = mx.float32, base: Base | None = None
) -> Iterator[Result]:
    """Runs each stage of a model on PyTorch's output of the stage before it.

    Args:
        folder: the demo or a copy of it.
        base: where the components are that the folder lacks.
        dtype: of the weights and activations.

    Raises:
        InvalidInputError: the model is another one, whose values aren't known.
    """
    model = ModelFolder(folder, dtype, base)
    if model.configs != check_networks(read_configurations(DEMO_PATH)):
        raise InvalidInputError(
            f"{folder} is no copy of the demo: only the demo's values of PyTorch are known"
        )
    stored = mx.load(str(DEMO_PATH / VALUES))
    name = model.dtype_name

    def compared(stage: str, actual: mx.array, expected: mx.array, times: float = 1) -> Result:
        actual = np.array(actual.astype(mx.float32), np.float64)
        expected = np.array(expected, np.float64)
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        return Result(stage, float(error), times * TOLERANCES[name])

    length = model.configs["transformer"].max_text_seq_length
    ids = model.tokenizer([PROMPT], max_length=length)
    yield Result("tokenizer", float(np.abs(np.array(ids) - np.array(stored["ids"])).max()), 0)
    yield compared("text encoder", model.text_encoder(ids)[0], stored["text"])
    text = stored["text"][None].astype(dtype)
    noisy = mx.array(latents()).astype(dtype)
    velocity = velocities(model.transformer, noisy, text, mx.array([TIMESTEP]))
    yield compared("transformer", velocity, stored["velocity"])
    yield from (compared(f"sampler {kind}", *pair) for kind, pair in _samplers(model, stored))
    for mode in ("none", "exact", "tiled"):
        tiles = TILES if mode == "tiled" else ()
        pixels = model.vae.decode(mx.array(latents()).astype(dtype), mode, *tiles)
        expected = stored["pixels tiled" if mode == "tiled" else "pixels"]
        yield compared(f"VAE, decoding, {mode}", pixels[0, :, ::EVERY, ::EVERY], expected)
    posterior = model.vae.encode(mx.array(clip()).astype(dtype), "exact")
    yield compared("VAE, encoding", posterior.mean, stored["mean"])
    yield from (compared(*primitive) for primitive in _primitives(dtype))


def _samplers(model: ModelFolder, stored: dict[str, mx.array]) -> Iterator[tuple[str, tuple]]:
    for kind in ("ddim", "dpm"):
        scheduler = make_scheduler(kind, model.scheduler_config, mx.random.key(0))
        scheduler.set_timesteps(STEPS)
        arguments = {"noise": mx.array(noise())} if kind == "dpm" else {}
        timestep = int(scheduler.timesteps[3])
        made, _ = scheduler.step(
            stored["velocity"], timestep, mx.array(latents()), previous_x0=None, **arguments
        )
        yield kind, (made, stored[kind])


def _primitives(dtype: mx.Dtype) -> Iterator[tuple[str, mx.array, np.ndarray]]:
    """Attention and packed weights with their names, each with NumPy's values."""
    random = np.random.RandomState(2)
    q, k, v = (random.standard_normal((1, 2, 300, 64)).astype(np.float32) for _ in range(3))
    scores = np.einsum("bhqd,bhkd->bhqk", q, k).astype(np.float64) / 8
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v)
    yield "attention", attention(*(mx.array(a).astype(dtype) for a in (q, k, v))), expected
    weight = mx.array(random.standard_normal((128, 256)).astype(np.float32))
    for bits in (4, 8):
        quantization = Quantization(bits, 64)
        layer = QuantizedLinear(256, 128, False, quantization)
        packed, scales, biases = mx.quantize(weight, 64, bits)
        layer.update({"weight": packed, "scales": scales, "biases": biases})
        unpacked = np.array(layer.unpacked(mx.float32), np.float64)
        for rows in (1, 40, 400):
            x = random.standard_normal((rows, 256)).astype(np.float32)
            name = f"{bits} bits, {rows} row{'s' * (rows > 1)}"
            layer.update({"scales": scales.astype(dtype), "biases": biases.astype(dtype)})
            yield name, layer(mx.array(x).astype(dtype)), x.astype(np.float64) @ unpacked.T
