"""CogVideoX on Apple Silicon, in MLX: text in, a video out."""

import sys

# In words that Python 3.9 understands, which macOS brings and which stumbles over the rest.
if sys.version_info < (3, 11):  # noqa: UP036
    raise ImportError(
        f"mlx_cogvideo needs Python 3.11 or newer, and this is {sys.version.split()[0]} "
        f"({sys.executable}): get one from python.org or with 'brew install python', and make a "
        "virtual environment with it"
    )

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .diffusion.schedulers import (
        CogVideoXDDIMScheduler,
        CogVideoXDPMPlusPlusScheduler,
        CogVideoXDPMScheduler,
    )
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

__all__ = [
    "CheckpointError",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMPlusPlusScheduler",
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

_MODULES = {
    "CogVideoXDDIMScheduler": "diffusion.schedulers",
    "CogVideoXDPMPlusPlusScheduler": "diffusion.schedulers",
    "CogVideoXDPMScheduler": "diffusion.schedulers",
    "CogVideoXImageToVideoPipeline": "pipeline.pipeline",
    "CogVideoXPipeline": "pipeline.pipeline",
    "CogVideoXVideoToVideoPipeline": "pipeline.pipeline",
    "VideoOutput": "pipeline.output",
    "generate_video": "runs.generate_video",
}
"""Where a public name is, unless it is an error."""
_SUBMODULES = {"checkpoints", "diffusion", "errors", "nn", "pipeline", "runs", "utils", "video"}
"""Modules that need no import of their own."""


def __getattr__(name: str) -> Any:
    """Imports what is public on its first use: commands begin, and show help, without MLX."""
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_MODULES.get(name, 'errors')}", __name__)
    return globals().setdefault(name, getattr(module, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
