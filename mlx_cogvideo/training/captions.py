"""Finds the caption that lies beside a clip, under the names that people and tools give it."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..video.clip import CLIPS, IMAGES

TEXT_SUFFIXES = (".txt", ".caption")

UNKNOWN = 2
"""The `rank` of a file of no known kind."""


def joined(text: str) -> str:
    """A caption on one line."""
    return " ".join(text.split())


def is_text(path: Path) -> bool:
    """Whether a file may be a caption."""
    return path.suffix.lower() in TEXT_SUFFIXES and path.is_file()


def folded(name: str) -> str:
    """A file's name as disks compare it that ignore case and how accents are encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def match(clips: Sequence[Path], texts: Iterable[Path]) -> dict[Path, Path]:
    """The caption files of clips: ``clip.txt``, ``clip.caption`` or ``clip.mp4.txt``.

    Names may differ in case and in how accents are encoded, unless another clip has the very name.

    Args:
        texts: caption files; of two of a name, the first counts.
    """
    exact: dict[str, Path] = {}
    for text in texts:
        exact.setdefault(text.name, text)
    found = _by_name(clips, exact)
    taken = set(found.values())
    similar: dict[str, Path] = {}
    for text in exact.values():
        if text not in taken:
            similar.setdefault(folded(text.name), text)
    others = [clip for clip in clips if clip not in found]
    return found | _by_name(others, similar, folded)


def _by_name(
    clips: Iterable[Path], texts: dict[str, Path], key: Callable[[str], str] = str
) -> dict[Path, Path]:
    """The texts of clips, whose names are compared by a key."""
    found = {}
    for clip in clips:
        names = (key(name) for name in _names(clip))
        if name := next((name for name in names if name in texts), None):
            found[clip] = texts[name]
    return found


def _names(clip: Path) -> Sequence[str]:
    stems = dict.fromkeys((clip.name,) if clip.is_dir() else (clip.stem, clip.name))
    return [f"{stem}{suffix}" for stem in stems for suffix in TEXT_SUFFIXES]


def rank(path: Path) -> int:
    """A file's claim to a caption that several share: the lowest number has it."""
    suffix = path.suffix.lower()
    return 0 if path.is_dir() or suffix in CLIPS else 1 if suffix in IMAGES else UNKNOWN


def owning_ranks(found: dict[Path, Path]) -> dict[Path, int]:
    """The `rank` of the files to which each caption of a `match` belongs.

    A picture with the caption of a video is its poster.
    """
    owners: dict[Path, int] = {}
    for path, text in found.items():
        owners[text] = min(rank(path), owners.get(text, UNKNOWN))
    return owners
