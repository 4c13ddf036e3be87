"""From settings to a video: the pipeline and its stages, sources, windows and estimates."""

from .pipeline import CogVideoXPipeline

__all__ = ["CogVideoXPipeline"]
