"""CogVideoX on Apple Silicon, in MLX: text in, a video out."""

import sys

# In words that Python 3.9 understands, which macOS brings and which stumbles over the rest.
if sys.version_info < (3, 11):  # noqa: UP036
    raise ImportError(
        f"mlx_cogvideo needs Python 3.11 or newer, and this is {sys.version.split()[0]} "
        f"({sys.executable}): get one from python.org or with 'brew install python', and make a "
        "virtual environment with it"
    )

from .diffusion.schedulers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from .errors import (
    CheckpointError,
    CogVideoXError,
    DeviceError,
    GenerationError,
    InvalidInputError,
    ModelNotFoundError,
    OutputError,
    PeerLostError,
)
from .pipeline.output import VideoOutput
from .pipeline.pipeline import (
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXVideoToVideoPipeline,
)
from .runs.generate_video import generate_video
from .version import __version__

__all__ = [
    "CheckpointError",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "CogVideoXError",
    "CogVideoXImageToVideoPipeline",
    "CogVideoXPipeline",
    "CogVideoXVideoToVideoPipeline",
    "DeviceError",
    "GenerationError",
    "InvalidInputError",
    "ModelNotFoundError",
    "OutputError",
    "PeerLostError",
    "VideoOutput",
    "__version__",
    "generate_video",
]
