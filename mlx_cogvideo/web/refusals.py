"""Answers that refuse a request, in the form of OpenAI's API, without any path of this machine."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from ..errors import CogVideoXError, ModelNotFoundError, OutputError
from .jobs import QueueFullError, UnknownJobError

RETRY_SECONDS = 10
"""When a client may try again that was refused because there is no room."""
_NAME = r"""[^\s/'"`()\[\]{}<>,;:|*?]+"""
_PATH = re.compile(
    rf"(?:file://|(?<![\w/])(?:~[\w.-]*|\.\.?)?)(?:/{_NAME})*/({_NAME})/?"
    rf"|(?:\.\./)+(?:{_NAME}/)*({_NAME})/?"
)
_folders = {str(Path(__file__).parents[1]), str(Path.home()), tempfile.gettempdir()}
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


@dataclass
class Refusal(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        message: what is wrong and what to do.
        param: the field that is wrong.
        code: a word for programs.
        headers: of the answer.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> JSONResponse:
        """The answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error: dict[str, Any] = {
            "message": without_paths(self.message),
            "type": _KINDS.get(self.status, kind),
            "param": self.param,
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.status, dict(self.headers))


def no_room(message: str, code: str) -> Refusal:
    """The refusal of what may be tried again later."""
    return Refusal(429, message, code=code, headers={"Retry-After": str(RETRY_SECONDS)})


def refusal_of(error: CogVideoXError, conflict: bool = False) -> Refusal:
    """How an error of this package is answered.

    Args:
        conflict: whether wrong input means that a job's state doesn't allow what is asked for.
    """
    if isinstance(error, UnknownJobError):
        return Refusal(404, str(error), code="not_found")
    if isinstance(error, QueueFullError):
        return no_room(str(error), "queue_full")
    if isinstance(error, ModelNotFoundError):
        return Refusal(400, str(error), param="model", code="model_not_found")
    if isinstance(error, ValueError):  # of input or a model folder
        return Refusal(
            409 if conflict else 400, str(error), code="wrong_state" if conflict else None
        )
    if isinstance(error, OutputError):
        return Refusal(507, str(error), code="cannot_write")
    return Refusal(500, str(error))


def hide(folder: Path) -> None:
    """Has `without_paths` know a folder, the path of which may hold spaces and other characters."""
    _folders.add(str(folder))


def without_paths(text: str) -> str:
    """A text in which the last name stands for each absolute path and each that leads upwards."""
    for folder in sorted(_folders, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder, "/" + folder.rsplit("/", 1)[-1].replace(" ", "_"))
    return _PATH.sub(lambda found: found[1] or found[2], text)
