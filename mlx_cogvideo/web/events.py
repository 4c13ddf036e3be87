"""Server-sent events about a job, for any number of listeners without a thread for each."""

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from anyio import to_thread

from .jobs import UnknownJobError

_PAUSE = 0.25
_SILENCE = 15.0
"""Seconds after which a comment shows that the connection still stands."""
_OVER = ("completed", "failed")


async def events_of(look: Callable[[], dict[str, Any]]) -> AsyncIterator[str]:
    """The events of a video until it is over or deleted.

    Args:
        look: the video as the API gives it; called in a thread.
    """
    before, said = None, time.monotonic()
    while True:
        try:
            video = await to_thread.run_sync(look)
        except UnknownJobError:
            yield _event("end", {"status": "deleted"})
            return
        if video["status"] in _OVER:
            yield _event("end", video)
            return
        if video != before:
            yield _event("progress", video)
            before, said = video, time.monotonic()
        elif time.monotonic() > said + _SILENCE:
            yield ": still here\n\n"
            said = time.monotonic()
        await anyio.sleep(_PAUSE)


def _event(name: str, value: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"
