"""The estimate of the memory that a training needs."""

from collections.abc import Mapping
from functools import lru_cache
from math import prod

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoints.model_configurations import ModelConfigurations
from ..nn.attention_backward import SCORES_AT_A_TIME
from ..nn.config import TransformerConfig
from ..nn.eval_schedule import PUSH_ELEMENTS
from ..nn.transformer import CogVideoXTransformer3DModel
from ..pipeline.estimates import choose_tiling, text_memory, vae_memory
from ..pipeline.geometry import Geometry
from ..pipeline.vae_stage import Tiling
from .blockwise import WIDE_ELEMENTS
from .optimizers import make_optimizer
from .settings import TrainingSettings, adapted_layers
from .trained_model import chosen

# Counted in training/blockwise.py, and checked with the demo on the CPU and at full size on a GPU.
BACKWARD_ARRAYS = 15
"""Arrays of the size of the hidden states during the backward pass of a block."""
WIDE_PIECES = 20
"""Pieces of the feed-forward's wide layer, in addition to those arrays: 10 of the part that is
computed, and as many of the next."""
SCORE_TABLES = 5
"""Tables of attention scores, in addition to those arrays, but not at once with the pieces."""
WAITING_ARRAYS = 16
"""Arrays of each block of a small model, whose blocks are evaluated several at a time."""

UPDATE_BYTES = {"adafactor": 10, "adamw": 26, "adamw_8bit": 45}
"""Bytes for each number of a tensor while it is updated, in 16 bits."""

METAL_TABLES, METAL_TABLE_SIDE = 3, 1024
"""Tables of scores that Metal's own backward pass of attention holds for each head, and their
height and width."""


def estimate_training_memory(
    pipe: ModelConfigurations, geometry: Geometry, settings: TrainingSettings
) -> dict[str, int]:
    """Estimates the bytes that each stage of a training needs at its peak."""
    _, frames, height, width, _ = geometry.latent_shape
    tiling = Tiling(choose_tiling(pipe, height, width, decode=False))
    train = pipe.weight_bytes("transformer") + _kept_inputs(pipe, geometry, settings)
    backward = _backward(pipe, geometry, settings)
    if settings.is_full:
        train += _model_bytes(pipe, settings, backward)
    else:
        train += _adapter_bytes(pipe, settings) + backward
    return {
        "captions": text_memory(pipe),
        "clips": vae_memory(pipe, tiling, height, width, frames=frames, decode=False),
        "train": train,
    }


def _hidden(pipe: ModelConfigurations, geometry: Geometry, settings: TrainingSettings) -> int:
    """Elements of the hidden states of a batch."""
    config = pipe.configs["transformer"]
    batch_size = settings.batch_size + settings.prior_batch_size
    return batch_size * config.token_count(geometry.latent_shape) * config.dim


def _kept_inputs(pipe: ModelConfigurations, geometry: Geometry, settings: TrainingSettings) -> int:
    """Bytes of the inputs of all blocks, in a full training for all batches of an update."""
    passes = settings.accumulate if settings.is_full else 1
    hidden = _hidden(pipe, geometry, settings) * pipe.dtype.size
    return passes * pipe.configs["transformer"].num_layers * hidden


def _backward(pipe: ModelConfigurations, geometry: Geometry, settings: TrainingSettings) -> int:
    """Bytes of the backward pass of a block, or of several small ones."""
    config, hidden = pipe.configs["transformer"], _hidden(pipe, geometry, settings)
    batch_size = settings.batch_size + settings.prior_batch_size
    tokens = config.token_count(geometry.latent_shape)
    scores = batch_size * config.num_attention_heads * tokens**2
    elements = BACKWARD_ARRAYS * hidden
    elements += min(WAITING_ARRAYS * config.num_layers * hidden, PUSH_ELEMENTS)
    pieces = [
        WIDE_PIECES * min(WIDE_ELEMENTS, 4 * hidden),
        SCORE_TABLES * min(SCORES_AT_A_TIME, scores),
    ]
    if pipe.machine.backend == "metal":
        side = min(METAL_TABLE_SIDE, tokens)
        pieces.append(METAL_TABLES * batch_size * config.num_attention_heads * side**2)
    elements += max(pieces)
    count = elements * pipe.dtype.size
    return count + 4 * scores if pipe.machine.backend == "cpu" else count


def _adapter_bytes(pipe: ModelConfigurations, settings: TrainingSettings) -> int:
    """Bytes of an adapter, its gradients and its optimizer's states."""
    config = pipe.configs["transformer"]
    count = sum(map(prod, trained_shapes(config, settings).values()))
    return 2 * 4 * count + state_bytes(config, settings)


def _model_bytes(pipe: ModelConfigurations, settings: TrainingSettings, backward: int) -> int:
    """Bytes of training a model's weights beside the weights: states, and a block's gradients.

    Args:
        backward: bytes of the backward pass of a block, which are free while it is updated.
    """
    shapes = trained_shapes(pipe.configs["transformer"], settings)
    blocks: dict[str, int] = {}
    for path, shape in shapes.items():
        block = ".".join(path.split(".")[:2])
        blocks[block] = blocks.get(block, 0) + prod(shape)
    masters = 4 * sum(blocks.values()) if settings.master_weights else 0
    rate = UPDATE_BYTES[settings.effective_optimizer]
    update = max(map(prod, shapes.values())) * rate
    # Those of the next block are made before those of the last one are free.
    gradients = 2 * max(blocks.values()) * pipe.dtype.size
    states = state_bytes(pipe.configs["transformer"], settings)
    return masters + states + gradients + max(backward, update)


@lru_cache(maxsize=32)  # one training is estimated for many sizes and machines
def trained_shapes(
    config: TransformerConfig, settings: TrainingSettings
) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the arrays that a training changes, by path.

    Raises:
        InvalidInputError: a pattern of `settings.train_layers` matches nothing.
    """
    if not settings.is_full:
        shapes: dict[str, tuple[int, ...]] = {}
        for path, (outputs, inputs) in adapted_layers(config, settings.targets).items():
            shapes |= {f"{path}.a": (settings.rank, inputs), f"{path}.b": (outputs, settings.rank)}
            if settings.fine_tune_type == "dora":
                shapes[f"{path}.magnitude"] = (outputs,)
        return shapes
    weights = dict(tree_flatten(CogVideoXTransformer3DModel(config).parameters()))
    return {path: tuple(weights[path].shape) for path in chosen(weights, settings.train_layers)}


@lru_cache(maxsize=32)
def state_bytes(config: TransformerConfig, settings: TrainingSettings) -> int:
    """Bytes of the optimizer's states. Nothing is evaluated."""
    optimizer = make_optimizer(settings)
    shapes = trained_shapes(config, settings).values()
    states = (optimizer.initial(mx.zeros(shape)) for shape in shapes)
    return sum(array.nbytes for state in states for array in state.values())


def memory_advice(pipe: ModelConfigurations, settings: TrainingSettings) -> str:
    """Advice for a training that needs more memory than this machine has."""
    learned = pipe.configs["transformer"].use_learned_positional_embeddings
    ways = [] if learned else ["a smaller size"]
    ways.append("fewer frames")
    if settings.is_full:
        ways.append("--fine-tune-type lora")
    elif not pipe.is_packed("transformer"):
        ways.append("-q 4")
    return f"{' or '.join(ways)} need less"
