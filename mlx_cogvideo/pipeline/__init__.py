"""From settings to a video: the pipeline and its stages, sources, windows and estimates."""

from .output import VideoOutput
from .pipeline import (
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXVideoToVideoPipeline,
)

__all__ = [
    "CogVideoXImageToVideoPipeline",
    "CogVideoXPipeline",
    "CogVideoXVideoToVideoPipeline",
    "VideoOutput",
]
