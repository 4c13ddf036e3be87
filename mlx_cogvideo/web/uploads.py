"""Uploads: forms and data URLs, which are written to files as they come."""

import base64
import binascii
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..files import remove_temporary
from .home import Home
from .media import Media, check_media
from .refusals import Refusal

_LONGEST_PAUSE = 600.0
"""Seconds after its last byte in which an upload may go on."""
_MOST_PARTS, _MOST_TEXT, _MOST_HEADER = 200, 32 * 2**20, 8 * 1024


def clear_uploads(home: Home) -> None:
    """Makes the folder of uploads anew, without what an ended server has left."""
    shutil.rmtree(home.uploads, ignore_errors=True)
    home.uploads.mkdir(mode=0o700, exist_ok=True)


def remove_cut_off(folder: Path) -> None:
    """Removes what Gradio leaves of uploads whose client has gone: files of no upload under way."""
    oldest = time.time() - _LONGEST_PAUSE
    for path in folder.glob("tmp*"):
        with suppress(OSError):
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()


def new_upload(folder: Path) -> Path:
    """A new empty file for its owner alone, under a name of ours."""
    path = folder / secrets.token_hex(16)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return path


def named_by_kind(path: Path) -> tuple[Path, Media]:
    """Checks an uploaded file and gives its name the right ending; see `check_media`."""
    media = check_media(path)
    return path.rename(path.with_suffix(media.suffix)), media


def write_data_url(url: str, folder: Path) -> Path:
    """Writes the contents of a ``data:`` URL to a new file. No other URL is ever opened.

    Raises:
        Refusal: it is another kind of URL.
    """
    head, comma, text = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise Refusal(
            400,
            "image_url must be a data: URL in base64: no URL is downloaded, so send the file",
            param="input_reference",
        )
    try:
        contents = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "image_url isn't base64", param="input_reference") from None
    path = new_upload(folder)
    path.write_bytes(contents)
    return path


@dataclass
class Form:
    """A multipart form.

    Attributes:
        fields: the texts of each name, in order.
        files: the uploaded file of each name.
    """

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def remove(self) -> None:
        """Removes the files that are still there."""
        for path in self.files.values():
            remove_temporary(path)


async def read_form(content_type: str, stream: AsyncIterator[bytes], folder: Path) -> Form:
    """Reads a multipart form; files go to new ones in the folder, as they come.

    Raises:
        Refusal: it isn't one, has too many parts, or was cut off.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise Refusal(400, "the form has no boundary in its Content-Type", code="bad_form")
    reader = _FormReader(boundary, folder)
    try:
        async for chunk in stream:
            if chunk:
                await to_thread.run_sync(reader.write, chunk)
        reader.finish()
    except BaseException:
        reader.close()
        reader.form.remove()
        raise
    return reader.form


class _FormReader:
    """What python-multipart calls for each part of a form."""

    def __init__(self, boundary: bytes, folder: Path):
        self.form, self._folder = Form(), folder
        self._parts = self._text_size = 0
        self._complete = False
        self._file = None
        callbacks: dict[str, Callable] = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finished,
        }
        self._parser = MultipartParser(boundary, callbacks)

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _bad_form() from None
        except OSError as error:
            raise Refusal(507, f"the upload can't be kept: {error.strerror}") from None

    def finish(self) -> None:
        if not self._complete:
            raise _bad_form()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise Refusal(400, f"the form has more than {_MOST_PARTS} parts", code="bad_form")
        self._headers: dict[bytes, bytes] = {}
        self._key, self._value = b"", b""
        self._name, self._text = "", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._key) + len(self._value) > _MOST_HEADER or len(self._headers) > 20:
            raise _bad_form()

    def _header_end(self) -> None:
        self._headers[self._key.lower()] = self._value
        self._key, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if not self._name:
            raise _bad_form()
        if b"filename" in options:
            if self._name in self.form.files:
                raise Refusal(400, f"{self._name} is given twice", param=self._name[:80])
            self.form.files[self._name] = new_upload(self._folder)
            self._file = self.form.files[self._name].open("wb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._text_size += end - start
        if self._text_size > _MOST_TEXT:
            raise Refusal(413, "the texts of the form are too long", code="too_large")
        self._text += data[start:end]

    def _end(self) -> None:
        if self._file is not None:
            self.close()
            return
        try:
            text = self._text.decode()
        except UnicodeDecodeError:
            raise Refusal(400, f"{self._name[:80]} isn't UTF-8 text") from None
        self.form.fields.setdefault(self._name, []).append(text)

    def _finished(self) -> None:
        self._complete = True


def _bad_form() -> Refusal:
    return Refusal(400, "the form is damaged or was cut off", code="bad_form")
