"""Connections of clients that send the head of a request too slowly, or never."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LONGEST_HEAD = 20.0
"""Seconds in which the head of a request must come."""


class PromptHeads(H11Protocol):
    """HTTP/1.1 that closes a connection on which the head of a request doesn't come in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(LONGEST_HEAD, self._end)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        # A connection that waits for its next request has a shorter time limit of its own.
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
