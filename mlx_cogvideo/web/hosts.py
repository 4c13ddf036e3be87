"""The names under which a server may be reached, against names that change their meaning."""

import contextlib
import ipaddress
import re
import socket
from dataclasses import dataclass

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")


@dataclass(frozen=True)
class Hosts:
    """The names under which the server may be reached.

    Attributes:
        names: in lower case, IPv6 addresses in brackets.
        addresses: whether any address is one. No page of another server has an address as its name
            that becomes this machine's.
    """

    names: frozenset[str]
    addresses: bool = False

    def allow(self, host: str) -> bool:
        """Whether a ``Host`` header names this server; its port doesn't matter behind a tunnel."""
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        return found[1] in self.names or (self.addresses and _is_address(found[1]))


def is_loopback(host: str) -> bool:
    """Whether a server on this address or name is reached from this machine alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host.lower() == "localhost"


def own_address() -> str | None:
    """This machine's address in its network, if it has one. Nothing is sent to find it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address for documentation
        return probe.getsockname()[0]
    return None


def hosts_of(host: str) -> Hosts:
    """The names of a server on an address or a name."""
    names = {"localhost", "127.0.0.1", "[::1]"}
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        if address.is_unspecified:
            own = socket.gethostname().lower()
            return Hosts(frozenset(names | {own, f"{own.removesuffix('.local')}.local"}), True)
        host = f"[{address}]" if address.version == 6 else str(address)
    return Hosts(frozenset(names | {host.lower()}))


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    return False
