"""Walks a folder of clips in the layouts that people and tools write, and notes what is left."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path
from typing import NamedTuple

from ..checkpoints import holds_adapter
from ..checkpoints.components import listed
from ..errors import InvalidInputError
from ..files import read_text
from ..video.clip import CLIPS, IMAGES
from .captions import UNKNOWN, folded, is_text, joined, match, owning_ranks, rank
from .log import LOG
from .tables import TABLES, Row, read_lists, read_table

TABLE_NAMES = ("metadata", "dataset")
VIDEO_LISTS = ("videos.txt", "video.txt")
PICTURE_LISTS = ("images.txt", "image.txt")
FILE_LISTS = (*VIDEO_LISTS, *PICTURE_LISTS)
CAPTION_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")

HELD_OUT = {"test", "val", "valid", "validation", "eval", "dev"}
"""Names of folders beside ``train`` that aren't for training."""

IGNORED = {"__MACOSX", "@eaDir", "lost+found", "System Volume Information", "$RECYCLE.BIN"}
IGNORED |= {"Thumbs.db", "desktop.ini"}
"""What systems leave in folders, beside hidden files."""


class DataSet(NamedTuple):
    """A folder or table of clips.

    Attributes:
        weight: its share of the batches, before the weights are divided by their sum. Clips of data
            sets without a weight are drawn as those of one data set.
    """

    path: Path | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Clip:
    """A clip to learn, or to validate with.

    Attributes:
        caption: on one line; "" if it has none.
        start, end: the part to learn, in seconds; None is the clip's end.
        data_set: where the clip was found.
        held_out: whether it is for validation only.
    """

    path: Path
    caption: str
    start: float = 0.0
    end: float | None = None
    data_set: DataSet = field(default=DataSet(), compare=False)
    held_out: bool = field(default=False, compare=False)

    @property
    def part(self) -> str:
        """The part to learn in words, with a blank in front; "" for the whole clip."""
        if self.end is None:
            return f" from {self.start:g} s" if self.start else ""
        return f" from {self.start:g} to {self.end:g} s"


class Layouts:
    """The clips of a folder, or of a table of clips.

    Attributes:
        notes: what was found and isn't learned as it lies there: names by a description.
    """

    def __init__(self, data: Path, passed_over: Iterable[Path] = ()):
        """`passed_over` are folders that hold no clips of the data set."""
        self.data = data
        self.root = data if data.is_dir() else data.parent
        self.notes: dict[str, list[str]] = defaultdict(list)
        self._passed = {folder.resolve() for folder in passed_over} - {self.root.resolve()}
        self._seen: set[Path] = set()
        self._similar: dict[Path, dict[str, Path]] = {}

    def clips(self) -> Iterator[Clip]:
        """The clips in the order of their names, or of the table.

        Raises:
            InvalidInputError: a table or list is wrong, or names files that aren't there.
            OSError: a file can't be read.
        """
        if self.data.is_dir():
            yield from self._folder(self.data)
        else:
            yield from self._table(self.data)

    def note(self, what: str, names: Iterable[Path | str]) -> None:
        """Notes names, without the path of the data set."""
        shown = [str(name).removeprefix(f"{self.root}{os.sep}") for name in names]
        if shown:
            self.notes[what] += shown

    def _folder(self, folder: Path) -> Iterator[Clip]:
        if folder.resolve() in self._seen or folder.resolve() in self._passed:
            return
        self._seen.add(folder.resolve())
        names = [f"{name}{suffix}" for name in TABLE_NAMES for suffix in TABLES]
        files = _one_of(folder, VIDEO_LISTS) or _one_of(folder, PICTURE_LISTS)
        captions = _one_of(folder, CAPTION_LISTS)
        if table := _one_of(folder, names):
            yield from self._table(table)
        elif files and captions:
            yield from self._listed(files, read_lists(files, captions))
        else:
            if files:
                self.note(f"lists without {CAPTION_LISTS[0]} beside them", [files])
            yield from self._beside(folder)

    def _beside(self, folder: Path) -> Iterator[Clip]:
        """The clips of a folder that have captions beside them or in a folder ``labels``."""
        labels = _labels(folder)
        children = self._children(folder)
        texts, others = [*filter(is_text, children)], [*filterfalse(is_text, children)]
        if labels and labels.is_dir():
            texts = [*filter(is_text, _visible(labels)), *texts]
        found = match([*filter(_can_be_clip, others)], texts)
        owners, used = owning_ranks(found), set()
        for path in others:
            text = found.get(path)
            if path.is_dir() and text is None:
                yield from self._folder(path)
            elif reason := _reason_against(path, text, owners):
                self.note(reason, [path])
            else:
                used.add(text)
                yield Clip(path, _caption(text, labels))
        unused = (path for path in sorted({*texts} - used) if path.name not in FILE_LISTS)
        self.note("texts that belong to no clip", unused)

    def _children(self, folder: Path) -> list[Path]:
        """What a folder holds, without what is no part of a data set."""
        children = _visible(folder)
        names = {path.name for path in children}
        trainings = [path for path in children if _is_training(path)]
        own = [path for path in trainings if path.resolve() not in self._passed]
        held_out = []
        if "train" in names:
            held_out = [p for p in children if p.name.lower() in HELD_OUT and p.is_dir()]
        self.note("folders of trainings passed over", own)
        self.note("folders passed over, since they are beside train", held_out)
        left_out = {*trainings, *held_out}
        if "videos" in names:
            left_out.add(folder / "labels")
        return [path for path in children if path not in left_out]

    def _table(self, table: Path) -> Iterator[Clip]:
        rows, unused = read_table(table)
        self.note(f"columns of {table.name} without a meaning here", unused)
        yield from self._listed(table, rows)

    def _listed(self, source: Path, rows: Sequence[Row]) -> Iterator[Clip]:
        """The clips that a file lists, by paths from its folder."""
        paths = [self._located(source.parent, row.file) for row in rows]
        missing = [
            f"{row.file} ({row.where.removesuffix(f' of {source}')})"
            for row, path in zip(rows, paths, strict=True)
            if path is None
        ]
        if missing:
            raise InvalidInputError(f"{source} lists files that aren't there: {listed(missing)}")
        known = {path.resolve() for path in paths if path}
        others = (path for path in self._videos(source.parent) if path.resolve() not in known)
        self.note(f"clips that {source.name} doesn't list", others)
        for row, path in zip(rows, paths, strict=True):
            if path:
                yield Clip(path, row.caption, row.start, row.end)

    def _located(self, folder: Path, name: str) -> Path | None:
        """The file that a list calls `name`, also where a disk has other rules for names."""
        for each in (name, name.replace("\\", "/")):
            path = folder / each
            if path.exists():
                return path
            if path.parent not in self._similar and path.parent.is_dir():
                visible = _visible(path.parent)
                self._similar[path.parent] = {folded(other.name): other for other in visible}
            if similar := self._similar.get(path.parent, {}).get(folded(path.name)):
                return similar
        return None

    def _videos(self, folder: Path) -> Iterator[Path]:
        """All videos in a folder, except for hidden ones and the results of trainings."""
        for place, folders, files in os.walk(folder):
            inner = [Path(place, name) for name in sorted(folders)]
            wanted = (path for path in inner if _is_visible(path) and not _is_training(path))
            folders[:] = [path.name for path in wanted if path.resolve() not in self._passed]
            for path in filter(_is_visible, (Path(place, name) for name in sorted(files))):
                if path.suffix.lower() in CLIPS:
                    yield path


def _labels(folder: Path) -> Path | None:
    """The captions of a folder ``X/videos``, or of one in it: the same place in ``X/labels``."""
    whole = folder.absolute()
    for parent in (whole, *whole.parents):
        labels = parent.parent / "labels"
        if parent.name == "videos" and labels.is_dir():
            return labels / whole.relative_to(parent)
    return None


def _caption(path: Path | None, labels: Path | None) -> str:
    """The text of a caption's file, of which the first line counts in `labels`."""
    text = read_text(path).strip() if path else ""
    return joined(text.partition("\n")[0] if path and path.parent == labels else text)


def _one_of(folder: Path, names: Iterable[str]) -> Path | None:
    """The file of a folder that has one of the names; raises InvalidInputError if it has two."""
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise InvalidInputError(
            f"{folder} holds {found[0].name} and {found[1].name}: move one of them away"
        )
    return found[0] if found else None


def _is_visible(path: Path) -> bool:
    # A Mac writes ._clip.mp4 beside clip.mp4 on disks of other systems.
    return not path.name.startswith(".") and path.name not in IGNORED


def _visible(folder: Path) -> list[Path]:
    return sorted(filter(_is_visible, folder.iterdir()))


def _reason_against(path: Path, text: Path | None, owners: dict[Path, int]) -> str:
    """Why a file, which may have a caption, is no clip; "" if it is one.

    A file of an unknown kind is one if it has a caption.
    """
    if text:
        shared = rank(path) > owners[text]
        return "files passed over, since another has their caption" if shared else ""
    if rank(path) < UNKNOWN:
        return ""
    if path.suffix.lower() in TABLES:
        return "tables that aren't read (--data TABLE reads one)"
    return "files passed over, of no known kind and without a caption"


def _is_training(folder: Path) -> bool:
    """Whether a folder holds the results of a training, even one that has saved nothing yet."""
    return folder.is_dir() and (holds_adapter(folder) or (folder / LOG).is_file())


def _can_be_clip(path: Path) -> bool:
    """Whether something is a file, or a folder with the frames of one clip.

    These are pictures, with no clips or captions among them.
    """
    if not path.is_dir():
        return True
    children = _visible(path)
    pictures = [child for child in children if child.suffix.lower() in IMAGES]
    clips = [child for child in children if child.is_dir() or child.suffix.lower() in CLIPS]
    return bool(pictures) and not clips and not match(pictures, [*filter(is_text, children)])
