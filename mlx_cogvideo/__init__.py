"""CogVideoX on Apple Silicon, in MLX: text in, a video out."""

from .errors import (
    CheckpointError,
    CogVideoXError,
    GenerationError,
    InvalidInputError,
    ModelNotFoundError,
    OutputError,
)
from .generation import generate_video
from .pipeline import CogVideoXPipeline

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CogVideoXError",
    "CogVideoXPipeline",
    "GenerationError",
    "InvalidInputError",
    "ModelNotFoundError",
    "OutputError",
    "generate_video",
]
