"""Reads tables of clips: CSV as programs and spreadsheets write it, JSON, JSON lines, lists."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..files import read_text
from .captions import joined

TABLES = (".jsonl", ".json", ".csv", ".tsv")

FILES = (
    *("file_name", "file", "filename", "file_path", "filepath", "path"),
    *("video", "videos", "video_path", "video_file", "video_name", "media_path"),
    *("image", "image_path"),
)
TEXTS = ("text", "caption", "prompt", "captions", "prompts", "description", "cap")
"""Names of the columns, in lower case; the first that a row fills counts."""

STARTS = ("start", "start_time", "start_seconds", "start_sec")
ENDS = ("end", "end_time", "end_seconds", "end_sec")
"""Names of columns with the part of a clip, in seconds."""

MISSING = {"", "nan", "none", "null"}
"""What programs write for a field without a value."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A clip as a table lists it.

    Attributes:
        where: the row's place, for messages.
        start, end: the part of the clip, in seconds.
    """

    where: str
    file: str
    caption: str
    start: float = 0.0
    end: float | None = None


def read_table(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a table, and the names of columns that have no meaning here.

    Raises:
        InvalidInputError: it isn't a table of clips, or a row is wrong.
    """
    is_json = path.suffix.lower() in (".json", ".jsonl")
    records = list(_json_records(path) if is_json else _csv_records(path))
    if not records:
        raise InvalidInputError(f"{path} has no rows")
    rows = [_row(where, record) for where, record in records]
    columns = list(dict.fromkeys(name for _, record in records for name in record))
    if not set(columns) & set(TEXTS):
        raise InvalidInputError(
            f"{path} has no captions (text, caption, prompt, ...); it has {', '.join(columns)}"
        )
    return rows, [name for name in columns if name not in (*FILES, *TEXTS, *STARTS, *ENDS)]


def read_lists(files: Path, captions: Path) -> list[Row]:
    """The rows of two files, a clip and its caption in each of their lines.

    Raises:
        InvalidInputError: they don't fit together, or aren't text.
    """
    names, texts = _lines(files), _lines(captions)
    if len(names) != len(texts):
        raise InvalidInputError(f"{files} has {len(names)} lines and {captions.name} {len(texts)}")
    rows = []
    for number, (name, text) in enumerate(zip(names, texts, strict=True), start=1):
        if text and not name:
            raise InvalidInputError(f"line {number} of {files} is empty")
        if name:
            rows.append(Row(f"line {number} of {files}", name, joined(text)))
    return rows


def _lines(path: Path) -> list[str]:
    """The lines of a file without empty lines at its end."""
    return [line.strip() for line in read_text(path).rstrip().split("\n")]


def _row(where: str, record: Record) -> Row:
    file, caption = _first(record, FILES), _first(record, TEXTS, "")
    if file is None:
        raise InvalidInputError(
            f"{where} names no file (file_name, file, path, video, ...); it has {', '.join(record)}"
        )
    if not _is_text(file) or not _is_text(caption):
        raise InvalidInputError(f"{where}: a file and its text are strings of Unicode")
    start = _seconds(where, _first(record, STARTS)) or 0.0
    end = _seconds(where, _first(record, ENDS))
    if end is not None and end <= start:
        raise InvalidInputError(f"{where}: the end, {end:g} s, must be after the start, {start:g}")
    return Row(where, file.strip(), joined(caption), start, end)


def _first(record: Record, names: Iterable[str], default: Any = None) -> Any:
    """The first value that isn't missing."""
    return next((record[name] for name in names if not _is_missing(record.get(name))), default)


def _is_text(value: Any) -> bool:
    """Whether a value is a string without NUL or half a surrogate pair, which JSON can write."""
    return isinstance(value, str) and not re.search("[\\0\ud800-\udfff]", value)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or value != value  # NaN


def _seconds(where: str, value: Any) -> float | None:
    """Seconds of a number, or of a text like 1.5, 1,5 or 0:01:30."""
    if value is None:
        return None
    try:
        parts = [float(part) for part in str(value).replace(",", ".").split(":")]
    except ValueError:
        parts = []
    seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    if not parts or len(parts) > 3 or min(parts) < 0 or not isfinite(seconds):
        raise InvalidInputError(
            f"{where}: start and end are seconds, or hours:minutes:seconds; got {value!r}"
        )
    return seconds


def _named(columns: Iterable[str]) -> list[str]:
    """The names of columns as they are looked up."""
    return [name.strip().lower().replace(" ", "_").replace("-", "_") for name in columns]


def _json_records(path: Path) -> Iterator[tuple[str, Record]]:
    text = read_text(path).strip()
    first = text.partition("\n")[0].strip()
    is_lines = first.endswith(("]", "}")) and "\n" in text
    if path.suffix.lower() == ".jsonl" and not first.startswith("["):
        is_lines = True
    for where, value in (_json_lines if is_lines else _json_list)(path, text):
        if not isinstance(value, dict):
            raise InvalidInputError(f"{where} isn't an object with a file and a text")
        yield where, dict(zip(_named(value), value.values(), strict=True))


def _json_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    content = _parsed(str(path), text)
    if not isinstance(content, list):
        raise InvalidInputError(f"{path} isn't a list of objects, each with a file and a text")
    for number, value in enumerate(content, start=1):
        yield f"entry {number} of {path}", value


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"line {number} of {path}"
            yield where, _parsed(where, line)


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where} isn't JSON: {error}") from None


def _csv_records(path: Path) -> Iterator[tuple[str, Record]]:
    text = read_text(path)
    first, _, rest = text.partition("\n")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    if first.lower().startswith("sep=") and len(first) == 5:  # of Excel; a line to count
        delimiter, text = first[4], f"\n{rest}"
    lines = StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] = []
    begin = 1
    try:
        for row in reader:
            begin = reader.line_num + 1
            if not any(field.strip() for field in row):
                continue
            where = f"line {reader.line_num} of {path}"
            if not header:
                header = _header(where, row)
            elif len(row) != len(header):
                commas = {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter, delimiter)
                raise InvalidInputError(
                    f"{where} has {len(row)} fields and the header {len(header)}: put a text with "
                    f"{commas} in double quotes"
                )
            else:
                record = zip(header, row, strict=True)
                yield where, {name: field for name, field in record if name}
    except csv.Error as error:
        raise InvalidInputError(f"the row in line {begin} of {path}: {error}") from None


def _header(where: str, row: Sequence[str]) -> list[str]:
    header = _named(row)
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise InvalidInputError(f"{where} names the column {twice[0]} twice")
    return header


def _delimiter(text: str) -> str:
    """The character between the fields of a table, by its header.

    Spreadsheets write semicolons where the comma is the decimal mark.
    """
    header = text.lstrip().partition("\n")[0]
    for delimiter in ",;\t":
        if set(FILES) & {name.strip('"') for name in _named(header.split(delimiter))}:
            return delimiter
    return ","
