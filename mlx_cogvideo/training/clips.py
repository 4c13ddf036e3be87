"""The clips of a data set, and the shape in which each is learned."""

import logging
from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path

from ..checkpoints.components import listed
from ..errors import InvalidInputError
from ..video import ClipInfo, ClipSpec
from ..video.clip import CLIPS, IMAGES
from .layouts import Clip, Layouts
from .tables import TABLES

logger = logging.getLogger(__name__)


def find_clips(data: Path, leave_out: Path | None = None) -> list[Clip]:
    """The clips of a folder, in the order of their names, or of a table.

    A folder has one of the layouts in docs/files.md, or its folders have. A folder to which several
    links lead is read once. Warns of whatever else is there and isn't learned, by name.

    Args:
        data: the folder, or a table of clips.
        leave_out: folder of the training's results, whose samples are no clips.

    Raises:
        InvalidInputError: there are no clips, no clip has a caption, or a file can't be read.
    """
    if not data.is_dir() and not (data.is_file() and data.suffix.lower() in TABLES):
        raise InvalidInputError(f"{data} is not a folder, or a table ({', '.join(TABLES)})")
    results = ("", "samples", "checkpoints", "best", "wandb")
    samples = [leave_out / name for name in results] if leave_out else []
    layouts = Layouts(data, samples)
    try:
        counts = Counter(layouts.clips())
    except OSError as error:
        raise InvalidInputError(f"{error.filename} can't be read: {error.strerror}") from None
    clips = list(counts)
    repeated = (clip.path for clip, count in counts.items() if count > 1)
    layouts.note("clips listed twice, and learned once", repeated)
    without = [clip.path for clip in clips if not clip.caption]
    if len(without) < len(clips):
        layouts.note("clips without a caption", without)
    for what, names in layouts.notes.items():
        logger.warning("%s: %s", what, listed(names))
    if not clips:
        raise InvalidInputError(f"{data} holds no clips ({', '.join(sorted(CLIPS | IMAGES))})")
    if len(without) == len(clips):
        raise InvalidInputError(
            f"none of the {len(clips)} clips in {data} has a caption: write one beside each, "
            "clip.txt for clip.mp4"
        )
    return clips


def choose_spec(clip: ClipInfo, specs: Sequence[ClipSpec]) -> ClipSpec:
    """The spec in which most of a clip is learned.

    Of the specs that the clip is long enough for, it is the one with the nearest aspect ratio, then
    the longest, then the largest. If the clip is too short for all of them, it is one of the
    shortest.
    """

    def rank(spec: ClipSpec) -> tuple[float, int, int]:
        ratio = log(clip.height / clip.width) - log(spec.height / spec.width)
        return round(abs(ratio), 3), -spec.frames, -spec.height * spec.width

    long_enough = [spec for spec in specs if spec.frames <= clip.frames]
    if not long_enough:  # as few repeated frames as possible: they teach standing still
        fewest = min(spec.frames for spec in specs)
        long_enough = [spec for spec in specs if spec.frames == fewest]
    return min(long_enough, key=rank)
