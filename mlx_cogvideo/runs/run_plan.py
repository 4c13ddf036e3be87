"""What a command is about to do, and what it can't."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CogVideoXError
from ..pipeline.pipeline import CogVideoXPipeline
from .preview import Preview
from .resumable import VideoJob


@dataclass(frozen=True)
class Failure:
    """A video that can't be made. An exception itself would keep its frames in memory."""

    label: str
    kind: type[CogVideoXError]
    reason: str


@dataclass
class Plan:
    """What a command is about to do.

    Attributes:
        pipe, model: the model, and its ``model_identity``.
        is_batch: whether more than one video is requested.
        jobs: the videos to make.
        resumed: for those of them that are resumed, what has been done.
        finished: outputs that exist already.
        failed: what can't be made.
        warnings: what won't be as it was.
        preview: what previews are drawn with, if any are.
        locks: keep other processes from writing what this one is about to; to be closed.
    """

    pipe: CogVideoXPipeline
    model: dict[str, Any]
    is_batch: bool
    jobs: list[VideoJob] = field(default_factory=list)
    resumed: dict[Path, str] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    preview: Preview | None = None
    locks: ExitStack = field(default_factory=ExitStack)
