"""Connections between processes beside MLX's own, for messages and signs of life.

A process inside an exchange of MLX doesn't notice that another one is stopped, or that its machine
is gone, and waits for ever. Therefore the main process has a TCP connection to each of the others.
Threads send a sign of life over it now and then, and notice when there is none any more.

Messages take the same way. Unlike in an exchange of MLX, a process that waits for one handles
signals, and needs no processor.
"""

import json
import os
import platform
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, Self

import mlx.core as mx
import numpy as np

from ..distributed import Distributed
from ..errors import InvalidInputError, PeerLostError

SILENCE = 60.0
"""Seconds without a sign of life after which a process counts as gone."""
BEATS = 10
"""Signs of life in that time."""
CONNECT = 20.0
"""Seconds that connecting may take."""
WAITING = 2
"""Messages of a process that wait to be taken; while there are so many, the sender waits."""
MESSAGE_BYTES = 2**31
"""Most bytes of a message."""

_END, _ERROR = "end", "error"
_TOKEN_BYTES = 16
_HELLO_BYTES = 1024
_ADDRESSES = 8

Fields = dict[str, Any]


@dataclass
class _Peer:
    """Another process, as the threads of this one know it."""

    rank: int
    connection: socket.socket
    name: str
    messages: Queue = field(default_factory=lambda: Queue(WAITING))
    lock: threading.Lock = field(default_factory=threading.Lock)
    end: Fields | None = None

    def __str__(self) -> str:
        return f"process {self.rank} on {self.name}"


class Channel:
    """This process's connections: of the main process to all others, of these to the main one.

    Attributes:
        lost: who is gone, and why, in words; None while all are there.
        announced: whether that is the main process, and it has said before that it ends.
        on_lost: called by a thread when that happens, with `lost` and `announced`.
    """

    def __init__(self, peers: Mapping[int, tuple[socket.socket, str]]):
        """`peers` are connections, and the names of the machines at their other ends."""
        self._peers = {rank: _Peer(rank, *peer) for rank, peer in peers.items()}
        self._closed = threading.Event()
        self.lost: str | None = None
        self.announced = False
        self.on_lost: Callable[[str, bool], None] = lambda reason, announced: None
        for peer in self._peers.values():
            peer.connection.settimeout(SILENCE / BEATS)
            threading.Thread(target=self._read, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    @classmethod
    def open(cls, distributed: Distributed) -> Self:
        """Connects the main process with all others.

        Raises:
            InvalidInputError: they can't reach each other.
        """
        return cls(_accept(distributed) if distributed.is_main else _connect(distributed))

    @property
    def names(self) -> dict[int, str]:
        """The names of the other machines, by the ranks of their processes."""
        return {rank: peer.name for rank, peer in self._peers.items()}

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        """Sends a message to all others.

        Args:
            kind: what it is.
            data: a large part that isn't JSON.
            fields: the rest, fit for JSON.

        Raises:
            PeerLostError: one of them is gone.
        """
        head = json.dumps({"kind": kind, **fields}).encode()
        body = struct.pack(">I", len(head)) + head + data
        for peer in self._peers.values():
            try:
                with peer.lock:
                    _send_all(peer.connection, struct.pack(">Q", len(body)) + body, self._waits)
            except OSError:
                raise self._gone(peer) from None

    def receive(self, rank: int = 0) -> tuple[Fields, bytes]:
        """Waits for the next message of a process; returns its fields and its data.

        Raises:
            PeerLostError: the process is gone.
        """
        peer = self._peers[rank]
        message = peer.messages.get()
        if message is None:
            peer.messages.put(None)
            raise self._gone(peer)
        if message[0]["kind"] == _ERROR:
            self.lost = self.lost or f"{peer} failed: {message[0]['text']}"
            raise self._gone(peer)
        return message

    def check(self) -> None:
        """Raises PeerLostError if another process is gone."""
        if self.lost is not None:
            raise PeerLostError(f"another process is gone ({self.lost})")

    def close(self) -> None:
        """Tells the others that this process ends, which isn't an error then."""
        self._closed.set()
        with suppress(PeerLostError):
            self.send(_END)
        for peer in self._peers.values():
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)

    def fail(self, error: str) -> None:
        """Tells the others that this process ends because of an error."""
        with suppress(PeerLostError):
            self.send(_ERROR, text=error)

    @property
    def main_has_ended(self) -> bool:
        """Whether the main process has said that it ends."""
        return 0 in self._peers and (self._peers[0].end or {}).get("kind") == _END

    def _waits(self) -> bool:
        """Whether all are there, and this process isn't about to end."""
        return self.lost is None and not self._closed.is_set()

    def _gone(self, peer: _Peer) -> PeerLostError:
        reason = self.lost or f"{peer} has ended"
        return PeerLostError(f"another process is gone ({reason})")

    def _read(self, peer: _Peer) -> None:
        """Takes what a process sends, until it ends or is silent for long."""
        try:
            while True:
                (length,) = struct.unpack(">Q", self._exactly(peer, 8))
                if length == 0:  # a sign of life
                    continue
                if length > MESSAGE_BYTES:
                    raise OSError(f"a message of {length} bytes")
                body = self._exactly(peer, length)
                (count,) = struct.unpack(">I", body[:4])
                fields, data = json.loads(body[4 : 4 + count]), bytes(body[4 + count :])
                if fields["kind"] in (_END, _ERROR):
                    peer.end = peer.end or fields
                peer.messages.put((fields, data))
        except EOFError:
            self._lose(peer, "has ended")
        except TimeoutError:
            self._lose(peer, f"has been silent for {SILENCE:g} s")
        except (OSError, ValueError, KeyError) as error:
            self._lose(peer, f"can't be read: {error}")

    def _exactly(self, peer: _Peer, count: int) -> bytearray:
        """Reads so many bytes.

        Pauses are counted, not measured: where this process itself was stopped for a time, there
        was one, and not silence.
        """
        data, done, pauses = bytearray(count), 0, 0
        view = memoryview(data)
        while done < count:
            try:
                received = peer.connection.recv_into(view[done:])
            except TimeoutError:
                pauses += 1
                if pauses >= BEATS:
                    raise
                continue
            if not received:
                raise EOFError
            done, pauses = done + received, 0
        return data

    def _lose(self, peer: _Peer, why: str) -> None:
        end = peer.end or {}
        if end.get("kind") == _ERROR:
            why = f"failed: {end['text']}"
        if not self._closed.is_set():
            self.announced = end.get("kind") == _END and peer.rank == 0
            self.lost = self.lost or f"{peer} {why}"
            self.on_lost(self.lost, self.announced)
        peer.messages.put(None)

    def _beat(self) -> None:
        """Sends the signs of life."""
        while not self._closed.wait(SILENCE / BEATS):
            for peer in self._peers.values():
                if peer.lock.acquire(blocking=False):  # else a message is on its way
                    try:
                        with suppress(OSError):
                            peer.connection.sendall(bytes(8))
                    finally:
                        peer.lock.release()


def _send_all(connection: socket.socket, data: bytes, waits: Callable[[], bool]) -> None:
    """Sends everything.

    Args:
        waits: whether to go on while the other side takes nothing, as long as it works on
            something else; asked now and then.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[connection.send(view) :]
        except TimeoutError:
            if not waits():
                raise


def _accept(distributed: Distributed) -> dict[int, tuple[socket.socket, str]]:
    """Opens a port, tells the others where it is, and waits for their connections."""
    token, peers = secrets.token_bytes(_TOKEN_BYTES), {}
    addresses = _main_addresses()
    with socket.create_server(("", 0), backlog=distributed.size) as server:
        hello = {
            "addresses": addresses,
            "port": server.getsockname()[1],
            "token": token.hex(),
            "name": platform.node(),
        }
        _tell(distributed, hello)
        end = time.monotonic() + CONNECT
        while len(peers) < distributed.size - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = sorted(set(range(1, distributed.size)) - peers.keys())
                raise InvalidInputError(
                    f"process {missing[0]} hasn't connected to {' or '.join(addresses)}: it has "
                    "ended, or this Mac's firewall must let Python accept connections"
                ) from None
            if greeting := _greeting(connection, token):
                rank, name = greeting
                peers[rank] = connection, name
            else:
                connection.close()
    return peers


def _greeting(connection: socket.socket, token: bytes) -> tuple[int, str] | None:
    """The rank and the machine of a process that connects; None is a stranger."""
    connection.settimeout(1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    greeting, end = b"", time.monotonic() + 5
    try:
        while len(greeting) < _HELLO_BYTES:
            if time.monotonic() > end:
                return None
            received = connection.recv(_HELLO_BYTES - len(greeting))
            if not received:
                return None
            greeting += received
    except OSError:
        return None
    if not secrets.compare_digest(greeting[:_TOKEN_BYTES], token):
        return None
    known = _unpadded(greeting[_TOKEN_BYTES:])
    return known["rank"], known["name"]


def _connect(distributed: Distributed) -> dict[int, tuple[socket.socket, str]]:
    """Connects to the main process."""
    hello = _tell(distributed, None)
    about = {"rank": distributed.rank, "name": platform.node()}
    token = bytes.fromhex(hello["token"])
    greeting = token + _padded(about, _HELLO_BYTES - _TOKEN_BYTES)
    for address in hello["addresses"]:
        with suppress(OSError):
            connection = socket.create_connection(
                (address, hello["port"]), CONNECT / 2 / len(hello["addresses"])
            )
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(greeting)
            return {0: (connection, hello["name"])}
    raise InvalidInputError(
        f"process {distributed.rank} can't reach {' or '.join(hello['addresses'])} over TCP: let "
        "Python accept incoming connections in that Mac's firewall"
    )


def _tell(distributed: Distributed, hello: Fields | None) -> Fields:
    """Gives what the main process says to all."""
    padded = _padded(hello or {}, _HELLO_BYTES)
    gathered = distributed.all_gather(mx.array(np.frombuffer(padded, np.uint8)))
    return _unpadded(np.array(gathered[0]).tobytes())


def _padded(fields: Fields, count: int) -> bytes:
    return json.dumps(fields).encode().ljust(count)[:count]


def _unpadded(data: bytes) -> Fields:
    return json.loads(data.decode())


def _main_addresses() -> list[str]:
    """Addresses of the main process's machine, the ones that MLX uses itself first."""
    return list(dict.fromkeys([*_known_addresses(), socket.gethostname()]))[:_ADDRESSES]


def _known_addresses() -> Iterator[str]:
    if address := os.environ.get("NCCL_HOST_IP"):
        yield address
    if address := os.environ.get("MLX_JACCL_COORDINATOR"):
        yield address.rsplit(":", 1)[0]
    if file := os.environ.get("MLX_HOSTFILE"):
        with suppress(OSError, ValueError, LookupError, AttributeError):
            hosts: Sequence[Any] = json.loads(Path(file).read_text(encoding="utf-8"))
            yield from (address.rsplit(":", 1)[0] for address in hosts[0])
