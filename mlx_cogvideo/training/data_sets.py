"""Clips of several data sets, and the choice of those that are held out for validation."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoints.components import listed
from ..errors import InvalidInputError
from .clips import find_clips
from .layouts import Clip, DataSet

logger = logging.getLogger(__name__)

Digest = Callable[[Clip], str]
"""Computes the digest of a clip's file; raises InvalidInputError if it can't be read."""


def find_data_sets(data_sets: Sequence[DataSet], leave_out: Path | None = None) -> list[Clip]:
    """The clips of some data sets, one data set after the other; see `find_clips`."""
    return [
        replace(clip, data_set=data_set)
        for data_set in data_sets
        for clip in find_clips(data_set.path, leave_out)
    ]


def warn_of_repeated(clips: Sequence[Clip], digest: Digest) -> None:
    """Warns of files that lie in several data sets, which are learned from each."""
    found: dict[str, dict[Path, Path]] = defaultdict(dict)
    for clip in clips:
        if content := _readable_digest(clip, digest):
            found[content].setdefault(clip.data_set.path, clip.path)
    repeated = [str(path) for paths in found.values() if len(paths) > 1 for path in paths.values()]
    if repeated:
        logger.warning("clips that are in several --data, learned from each: %s", listed(repeated))


def hold_out_share(clips: Sequence[Clip], share: float, seed: int, digest: Digest) -> list[Clip]:
    """Holds out about a share of the clips' files, by their contents and the seed.

    The choice for a file doesn't depend on the other files, so that it stays when clips are added.
    Only if all files would be on one side, one is on the other. Equal files are on the same side.

    Args:
        share: between 0 and 1.

    Returns:
        The clips to learn, in order, and then those that are held out.

    Raises:
        InvalidInputError: there is only one file, or no clip is left to learn of a data set that
            has a weight.
    """
    contents = {clip: _readable_digest(clip, digest) for clip in clips}
    places = {content: _place(content, seed) for content in contents.values() if content}
    if len(places) < 2:
        raise InvalidInputError(
            "--val-split needs two clips with different contents, one to learn and one to hold out"
        )
    count = sum(place < share for place in places.values())
    count = min(max(count, 1), len(places) - 1)
    held_out = dict.fromkeys(sorted(places, key=lambda content: places[content])[:count])
    learned = [clip for clip in clips if contents[clip] not in held_out]
    _check_weights(clips, learned, "choose a smaller --val-split or another --seed")
    # Validation takes the first ones, which are then those of no single folder.
    others = [clip for content in held_out for clip in clips if contents[clip] == content]
    return [*learned, *(replace(clip, held_out=True) for clip in others)]


def hold_out_data(clips: Sequence[Clip], held_out: Sequence[Clip], digest: Digest) -> list[Clip]:
    """Adds clips of another data set that are held out.

    Files that are in both aren't learned, with a warning.

    Returns:
        The clips to learn, in order, and then those that are held out.

    Raises:
        InvalidInputError: no clip is left to learn, or none of a data set that has a weight.
    """
    unseen = {_readable_digest(clip, digest) for clip in held_out} - {None}
    learned, both = [], []
    for clip in clips:
        (both if _readable_digest(clip, digest) in unseen else learned).append(clip)
    if not learned:
        raise InvalidInputError("all clips of --data are in --val-data, too: none is left to learn")
    _check_weights(clips, learned, "leave it out of --data, or give other --val-data")
    if both:
        names = listed([str(clip.path) for clip in both])
        logger.warning("clips that are in --val-data, too, and aren't learned: %s", names)
    return [*learned, *(replace(clip, held_out=True) for clip in held_out)]


def _readable_digest(clip: Clip, digest: Digest) -> str | None:
    """The digest of a clip's file; None if it can't be read, which is reported later."""
    try:
        return digest(clip)
    except InvalidInputError:
        return None


def _check_weights(clips: Sequence[Clip], learned: Sequence[Clip], advice: str) -> None:
    """Raises InvalidInputError if nothing is left to learn of a data set that has a weight."""
    left = {clip.data_set for clip in learned}
    for clip in clips:
        if clip.data_set.weight and clip.data_set not in left:
            raise InvalidInputError(f"all clips of {clip.data_set.path} are held out: {advice}")


def _place(content: str, seed: int) -> float:
    """A number from 0 to 1 that a file's content and the seed decide."""
    digest = hashlib.sha256(f"{seed} {content}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
