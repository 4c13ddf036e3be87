"""Clips on disk and their captions: found, and read as the model wants them."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError
from ..video.reader import open_input

SUFFIXES = {
    ".mp4",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".m4v",
    ".gif",
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
}
"""Endings of clips, and of still images, which are clips of one frame."""

TEXTS = ("text", "caption", "prompt")
FILES = ("file_name", "file", "video", "path")
"""Names of the columns of a metadata file."""


@dataclass(frozen=True)
class Clip:
    path: Path
    caption: str


@dataclass(frozen=True)
class Shape:
    """How clips are to be read.

    Attributes:
        frames: 8N+1.
        height, width: in pixels; a clip is scaled until it covers them and cropped at the middle.
        fps: frames a second; those are taken that are nearest to these times.
        skip: frames of the clip to leave out at its beginning, and at its end.
    """

    frames: int
    height: int
    width: int
    fps: float
    skip: tuple[int, int] = (0, 0)


def find_clips(data: Path) -> list[Clip]:
    """The clips of a folder, in the order of their names.

    It is laid out in one of these ways: ``metadata.jsonl`` or ``metadata.csv`` with a file and a
    text in each line; ``videos.txt`` and ``prompts.txt``, line by line; a folder ``videos`` beside
    a folder ``labels``; or ``clip.txt`` beside each ``clip.mp4``.

    Raises:
        InvalidInputError: there are no clips, or none of them has a caption.
    """
    if not data.is_dir():
        raise InvalidInputError(f"{data} is no folder")
    clips = [clip for clip in _listed(data) if clip.path.suffix.lower() in SUFFIXES]
    if not clips:
        raise InvalidInputError(f"{data} holds no clips ({', '.join(sorted(SUFFIXES))})")
    if missing := [str(clip.path) for clip in clips if not clip.path.is_file()]:
        raise InvalidInputError(f"{data} lists files that aren't there: {', '.join(missing[:3])}")
    if not any(clip.caption for clip in clips):
        raise InvalidInputError(
            f"none of the {len(clips)} clips in {data} has a caption: write one beside each, "
            "clip.txt for clip.mp4"
        )
    return clips


def _listed(data: Path) -> Iterator[Clip]:
    lines, table = data / "metadata.jsonl", data / "metadata.csv"
    if lines.is_file():
        text = lines.read_text(encoding="utf-8")
        yield from _from_rows(data, lines, [json.loads(row) for row in text.splitlines() if row])
    elif table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            yield from _from_rows(data, table, list(csv.DictReader(file)))
    elif (data / "videos.txt").is_file() and (data / "prompts.txt").is_file():
        videos, prompts = (
            [line.strip() for line in (data / name).read_text(encoding="utf-8").splitlines()]
            for name in ("videos.txt", "prompts.txt")
        )
        videos = [video for video in videos if video]
        prompts = prompts[: len(videos)]
        if len(videos) != len(prompts):
            raise InvalidInputError(
                f"videos.txt has {len(videos)} lines and prompts.txt {len(prompts)}"
            )
        yield from (Clip(data / v, p) for v, p in zip(videos, prompts, strict=True))
    else:
        videos, labels = data / "videos", data / "labels"
        apart = videos.is_dir() and labels.is_dir()
        root = videos if apart else data
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                relative = path.relative_to(root).with_suffix(".txt")
                text = (labels if apart else root) / relative
                caption = text.read_text(encoding="utf-8-sig").strip() if text.is_file() else ""
                yield Clip(path, " ".join(caption.split()))


def _from_rows(data: Path, source: Path, rows: list[dict]) -> Iterator[Clip]:
    for number, row in enumerate(rows, start=1):
        file = next((row[name] for name in FILES if row.get(name)), None)
        if file is None:
            raise InvalidInputError(f"line {number} of {source} names no file ({', '.join(FILES)})")
        caption = next((row[name] for name in TEXTS if row.get(name)), "")
        yield Clip(data / file, str(caption).strip())


def read_clip(path: Path, shape: Shape) -> np.ndarray:
    """The frames of a clip, uint8 ``[F, H, W, 3]``.

    Memory: the frames that are taken, and one more.

    Raises:
        InvalidInputError: it can't be read, or is too short.
    """
    try:
        with open_input(path) as container:
            if not container.streams.video:
                raise InvalidInputError(f"{path} has no video stream")
            stream = container.streams.video[0]
            packets = container.demux(stream)
            shown = sorted(packet.pts for packet in packets if packet.pts is not None)
            wanted = _pick([float(pts * stream.time_base) for pts in shown], shape, path)
            wanted = [shown[i] for i in wanted]
        with open_input(path) as container:
            return _read(container, wanted, shape, path)
    except FileNotFoundError:
        raise InvalidInputError(f"{path} doesn't exist") from None
    except av.FFmpegError as error:
        raise InvalidInputError(f"{path} can't be read as a video: {error.strerror}") from error


def _pick(times: list[float], shape: Shape, path: Path) -> list[int]:
    """Which of a clip's frames are nearest to the times that are wanted."""
    head, tail = shape.skip
    times = times[head : len(times) - tail]
    picked, i = [], 0
    for count in range(shape.frames):
        time = times[0] + count / shape.fps if times else 0.0
        while i + 1 < len(times) and times[i + 1] - time < time - times[i] - 1e-6:
            i += 1
        last = times[-1] + (times[-1] - times[0]) / max(len(times) - 1, 1) if times else 0.0
        if not times or (time >= last and count > 0):
            raise InvalidInputError(
                f"{path} has {count} frames at {shape.fps:g} a second, and {shape.frames} are "
                "wanted"
            )
        picked.append(head + i)
    return picked


def _read(
    container: av.container.InputContainer, wanted: list[int], shape: Shape, path: Path
) -> np.ndarray:
    frames: dict[int, np.ndarray] = {}
    for frame in container.decode(video=0):
        if frame.pts in wanted or (frame.pts is None and not frames):
            frames[frame.pts if frame.pts is not None else wanted[0]] = _cover(frame, shape)
        if frame.pts is not None and frame.pts >= wanted[-1]:
            break
    if missing := [pts for pts in wanted if pts not in frames]:
        raise InvalidInputError(f"{path} is damaged: {len(missing)} of its frames can't be decoded")
    return np.stack([frames[pts] for pts in wanted])


def _cover(frame: av.VideoFrame, shape: Shape) -> np.ndarray:
    """A frame turned as it is shown, scaled until it covers the shape, and cropped."""
    turns = round(frame.rotation / 90) % 4
    height, width = (shape.width, shape.height) if turns % 2 else (shape.height, shape.width)
    scale = max(height / frame.height, width / frame.width)
    rows, columns = (max(ceil(side * scale - 1e-6), 1) for side in (frame.height, frame.width))
    scaled = frame.reformat(
        width=max(columns, width), height=max(rows, height), format="rgb24", interpolation="BICUBIC"
    )
    pixels = scaled.to_ndarray()
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.rot90(pixels[top : top + height, left : left + width], turns)
