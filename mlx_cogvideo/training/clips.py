"""Finds clips and their captions on disk, and chooses the shape in which each is learned."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from math import log
from pathlib import Path
from typing import Any

from ..checkpoints import holds_adapter
from ..errors import InvalidInputError
from ..files import read_text
from ..video import ClipInfo, ClipSpec
from ..video.clip import CLIPS, IMAGES

SUFFIXES = CLIPS | IMAGES
"""Suffixes of clips, and of still images, which are clips of one frame."""

TEXTS = ("text", "caption", "prompt")
FILES = ("file_name", "file", "video", "path")
"""Names of the columns of a metadata file."""


@dataclass(frozen=True)
class Clip:
    path: Path
    caption: str


def find_clips(data: Path, leave_out: Path | None = None) -> list[Clip]:
    """The clips of a folder, in the order of their names.

    The folder has one of these layouts: ``metadata.jsonl`` or ``metadata.csv`` with a file and a
    text in each line; ``videos.txt`` and ``prompts.txt``, line by line; a folder ``videos`` beside
    a folder ``labels``; or ``clip.txt`` beside each ``clip.mp4``. A clip may also be a folder of
    frames that a metadata file names, or that has a ``clip.txt`` beside it.

    Names that begin with a dot and folders that hold an adapter are ignored. A folder to which
    several links lead is read once.

    Args:
        leave_out: folder of the training's results, whose samples are no clips.

    Raises:
        InvalidInputError: there are no clips, no clip has a caption, or a file can't be read.
    """
    try:
        if not data.is_dir():
            raise InvalidInputError(f"{data} is not a folder")
        seen = set()
        if leave_out is not None:
            seen = {(leave_out / name).resolve() for name in ("", "samples")} - {data.resolve()}
        clips = list(_listed(data, seen))
    except OSError as error:
        raise InvalidInputError(f"{error.filename} can't be read: {error.strerror}") from None
    if not clips:
        raise InvalidInputError(f"{data} holds no clips ({', '.join(sorted(SUFFIXES))})")
    if missing := [str(clip.path) for clip in clips if not clip.path.exists()]:
        raise InvalidInputError(f"{data} lists files that aren't there: {', '.join(missing[:3])}")
    if not any(clip.caption for clip in clips):
        raise InvalidInputError(
            f"none of the {len(clips)} clips in {data} has a caption: write one beside each, "
            "clip.txt for clip.mp4"
        )
    return clips


def _listed(data: Path, seen: set[Path]) -> Iterator[Clip]:
    tables = [data / name for name in ("metadata.jsonl", "metadata.csv")]
    if table := next((path for path in tables if path.is_file()), None):
        yield from _from_rows(data, table, _rows(table))
    elif (data / "videos.txt").is_file() and (data / "prompts.txt").is_file():
        videos, prompts = (_lines(data / name) for name in ("videos.txt", "prompts.txt"))
        if len(videos) != len(prompts):
            raise InvalidInputError(
                f"videos.txt has {len(videos)} lines and prompts.txt {len(prompts)}"
            )
        pairs = zip(videos, prompts, strict=True)
        yield from (Clip(data / video, prompt) for video, prompt in pairs if video)
    elif (data / "videos").is_dir() and (data / "labels").is_dir():
        yield from _with_captions(data / "videos", data / "labels", seen)
    else:
        yield from _with_captions(data, data, seen)


def _with_captions(folder: Path, texts: Path, seen: set[Path]) -> Iterator[Clip]:
    """The clips of a folder with the captions in `texts`, which have the same names.

    Args:
        seen: folders that are passed over; gets those that are read.
    """
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    for path in sorted(folder.iterdir()):
        # A Mac writes ._clip.mp4 beside clip.mp4 on disks of other systems.
        if path.name.startswith(".") or holds_adapter(path):
            continue
        name = path.name if path.is_dir() else path.stem
        caption = texts / f"{name}.txt"
        if path.is_dir() and not caption.is_file():
            yield from _with_captions(path, texts / name, seen)
        elif path.is_dir() or path.suffix.lower() in SUFFIXES:
            text = read_text(caption) if caption.is_file() else ""
            yield Clip(path, " ".join(text.split()))


def _lines(path: Path) -> list[str]:
    """The lines of a file without empty lines at its end."""
    return [line.strip() for line in read_text(path).rstrip().split("\n")]


def _rows(path: Path) -> list[tuple[int, Any]]:
    """The rows of a metadata file, each with the number of its last line."""
    if path.suffix == ".csv":
        return list(_csv_rows(path))
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise InvalidInputError(
                    f"line {number} of {path} isn't JSON: {error.msg}"
                ) from None
    return rows


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    lines = StringIO(read_text(path), newline="")
    reader = csv.reader(lines, skipinitialspace=True, strict=True)
    header: list[str] = []
    try:
        for row in reader:
            if row and not header:
                header = [name.strip() for name in row]
            elif row and len(row) != len(header):
                raise InvalidInputError(
                    f"line {reader.line_num} of {path} has {len(row)} fields and the header "
                    f"{len(header)}: put a text with commas in double quotes"
                )
            elif row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InvalidInputError(f"line {reader.line_num} of {path}: {error}") from None


def _from_rows(data: Path, source: Path, rows: list[tuple[int, Any]]) -> Iterator[Clip]:
    for number, row in rows:
        row = row if isinstance(row, dict) else {}
        file = next((row[name] for name in FILES if row.get(name)), None)
        if file is None:
            raise InvalidInputError(f"line {number} of {source} names no file ({', '.join(FILES)})")
        caption = next((row[name] for name in TEXTS if row.get(name)), "")
        if not isinstance(file, str) or not isinstance(caption, str):
            raise InvalidInputError(f"line {number} of {source}: a file and its text are strings")
        yield Clip(data / file, caption.strip())


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
