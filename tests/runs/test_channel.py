"""Connections beside MLX's own: messages and signs of life."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mlx_cogvideo import InvalidInputError, PeerLostError
from mlx_cogvideo.distributed import Distributed
from mlx_cogvideo.runs import channel
from mlx_cogvideo.runs.channel import Channel


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(channel, "SILENCE", 1.0)


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    """The channels of a main process and of one more."""
    ours, theirs = socket.socketpair()
    made = Channel({1: (ours, "mac-two")}), Channel({0: (theirs, "mac-one")})
    yield made
    for each in made:
        each.close()


def wait_for(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_messages_arrive_in_order_however_large_they_are(pair):
    main, other = pair
    large = bytes(range(256)) * 2**14
    threading.Thread(target=lambda: [main.send("a", large, number=i) for i in range(5)]).start()
    for i in range(5):
        assert other.receive() == ({"kind": "a", "number": i}, large)
    other.send("b")
    assert main.receive(1) == ({"kind": "b"}, b"")


def test_silence_isnt_a_loss_while_there_are_signs_of_life(pair):
    time.sleep(1.5)
    assert [each.lost for each in pair] == [None, None]
    for each in pair:
        each.check()


def test_a_process_that_is_busy_is_waited_for_longer_than_silence_may_last(pair):
    main, other = pair
    large = bytes(2**20)
    sender = threading.Thread(target=lambda: [other.send("tile", large) for _ in range(20)])
    sender.start()
    time.sleep(2)
    assert sender.is_alive() and main.lost is other.lost is None
    for _ in range(20):
        assert main.receive(1)[1] == large
    sender.join(5)
    assert not sender.is_alive()


def test_a_silent_process_is_lost():
    ours, _theirs = socket.socketpair()
    alone, told = Channel({1: (ours, "mac-two")}), []
    alone.on_lost = lambda *reason: told.append(reason)
    wait_for(lambda: told)
    assert told == [("process 1 on mac-two has been silent for 1 s", False)]
    with pytest.raises(PeerLostError, match="silent for 1 s"):
        alone.check()
    with pytest.raises(PeerLostError, match="silent for 1 s"):
        alone.receive(1)
    with pytest.raises(PeerLostError, match="silent for 1 s"):
        alone.receive(1)


def test_a_closed_connection_is_a_loss_at_once():
    ours, theirs = socket.socketpair()
    main = Channel({1: (ours, "mac-two")})
    theirs.close()
    wait_for(lambda: main.lost)
    assert main.lost == "process 1 on mac-two has ended" and not main.announced
    with pytest.raises(PeerLostError, match="mac-two has ended"):
        for _ in range(3):
            main.send("a")


def test_a_process_that_fails_says_why(pair):
    main, other = pair
    other.fail("memory ran out")
    other.close()
    for peer in other._peers.values():
        peer.connection.close()
    wait_for(lambda: main.lost)
    assert "process 1 on mac-two" in main.lost
    with pytest.raises(PeerLostError, match=r"process 1 on mac-two failed: memory ran out\)"):
        main.receive(1)


def test_the_end_of_the_main_process_is_no_loss_that_has_to_be_said(pair):
    main, other = pair
    main.close()
    assert other.receive() == ({"kind": "end"}, b"")
    wait_for(lambda: other.lost)
    assert other.announced


class Group(Distributed):
    """One of two processes in this one: threads, which take turns at all_gather."""

    barrier, given = threading.Barrier(2), {}

    def __init__(self, rank: int):
        super().__init__()
        self.rank, self.size = rank, 2

    def all_gather(self, array):
        Group.given[self.rank] = array
        Group.barrier.wait(5)
        return [Group.given[rank] for rank in range(2)]


def test_processes_connect_and_strangers_are_turned_away(monkeypatch):
    monkeypatch.setattr(channel, "_main_addresses", lambda: ["127.0.0.1"])
    create, strangers = socket.create_server, []

    def with_stranger(*args, **options):
        server = create(*args, **options)
        stranger = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
        stranger.sendall(b"GET / HTTP/1.1\r\n".ljust(1024))
        strangers.append(stranger)
        return server

    monkeypatch.setattr(socket, "create_server", with_stranger)
    made = {}
    threads = [
        threading.Thread(target=lambda rank=rank: made.update({rank: Channel.open(Group(rank))}))
        for rank in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    made[1].send("hello")
    assert made[0].receive(1)[0]["kind"] == "hello"
    assert strangers[0].recv(1) == b"", "the stranger was turned away"
    for each in made.values():
        each.close()


def test_a_process_that_doesnt_connect_is_named(monkeypatch):
    monkeypatch.setattr(channel, "CONNECT", 0.2)
    monkeypatch.setattr(channel, "_tell", lambda distributed, hello: hello)
    monkeypatch.setattr(channel, "_main_addresses", lambda: ["192.168.2.1"])
    with pytest.raises(InvalidInputError, match=r"process 1 hasn't connected to 192\.168\.2\.1"):
        Channel.open(Group(0))


def test_the_addresses_are_those_that_mlx_uses(monkeypatch, tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["10.0.0.1:500", "10.0.1.1:501"], ["10.0.0.2:502"]]')
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    monkeypatch.setenv("MLX_JACCL_COORDINATOR", "10.0.2.1:32323")
    assert channel._main_addresses()[:3] == ["10.0.2.1", "10.0.0.1", "10.0.1.1"]
    hosts.write_text("{broken")
    assert channel._main_addresses()[0] == "10.0.2.1"
