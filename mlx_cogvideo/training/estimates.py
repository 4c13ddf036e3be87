"""The estimate of the memory that a training needs."""

from ..checkpoints.model_folder import ModelFolder
from ..nn.attention_backward import SCORES_AT_A_TIME
from ..nn.eval_schedule import PUSH_ELEMENTS
from ..pipeline.estimates import choose_tiling, text_memory, vae_memory
from ..pipeline.geometry import Geometry
from ..pipeline.vae_stage import Tiling
from .blockwise import WIDE_ELEMENTS

# Counted in training/blockwise.py, and checked with the demo on the CPU.
BACKWARD_ARRAYS = 15
"""Arrays of the size of the hidden states during the backward pass of a block."""
WIDE_PIECES = 10
"""Pieces of the feed-forward's wide layer, in addition to those arrays."""
SCORE_TABLES = 5
"""Tables of attention scores, in addition to those arrays, but not at once with the pieces."""
WAITING_ARRAYS = 16
"""Arrays of each block of a small model, whose blocks are evaluated several at a time."""

METAL_TABLES, METAL_TABLE_SIDE = 3, 1024
"""Tables of scores that Metal's own backward pass of attention holds for each head, and their
height and width."""


def estimate_training_memory(
    pipe: ModelFolder, geometry: Geometry, batch_size: int, adapter_parameters: int
) -> dict[str, int]:
    """Estimates the bytes that each stage of a training needs at its peak."""
    config = pipe.configs["transformer"]
    _, frames, height, width, _ = geometry.latent_shape
    tokens = config.token_count(geometry.latent_shape)
    hidden = batch_size * tokens * config.dim
    scores = batch_size * config.num_attention_heads * tokens**2
    # The input of each block is kept, too.
    elements = (config.num_layers + BACKWARD_ARRAYS) * hidden
    elements += min(WAITING_ARRAYS * config.num_layers * hidden, PUSH_ELEMENTS)
    pieces = [
        WIDE_PIECES * min(WIDE_ELEMENTS, 4 * hidden),
        SCORE_TABLES * min(SCORES_AT_A_TIME, scores),
    ]
    if pipe.machine.backend == "metal":
        side = min(METAL_TABLE_SIDE, tokens)
        pieces.append(METAL_TABLES * batch_size * config.num_attention_heads * side**2)
    elements += max(pieces)
    train = pipe.weight_bytes("transformer") + elements * pipe.dtype.size
    train += 4 * 4 * adapter_parameters  # parameters, gradients and two moments in float32
    if pipe.machine.backend == "cpu":
        train += 4 * scores
    tiling = Tiling(choose_tiling(pipe, height, width, decode=False))
    return {
        "captions": text_memory(pipe),
        "clips": vae_memory(pipe, tiling, height, width, frames=frames, decode=False),
        "train": train,
    }


def memory_advice(pipe: ModelFolder) -> str:
    """Advice for a training that needs more memory than this machine has."""
    learned = pipe.configs["transformer"].use_learned_positional_embeddings
    ways = [] if learned else ["a smaller size"]
    ways.append("fewer frames")
    if not pipe.is_packed("transformer"):
        ways.append("-q 4")
    return f"{' or '.join(ways)} need less"
