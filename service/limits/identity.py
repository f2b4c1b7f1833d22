"""Who asks. Only configured proxies are believed about somebody else's address.

A key function takes the request (or nothing) and answers a non-empty string; it may be a coroutine function.
`client_address` is the one to start with: the peer's address, or, if the peer is a trusted proxy, the rightmost address
in X-Forwarded-For (else Forwarded) that is no trusted proxy. IPv4-mapped addresses are unwrapped and IPv6 is cut to
its /64, which is what one customer gets.
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from service.errors import ConfigurationError

ADDRESSES = "onequota.addresses"
"""Where an ASGI scope keeps the `Addresses` of the limiter that is at work."""

NOBODY = "local"
"""The identity of a peer without an address: a unix socket, a test."""


class Addresses:
    """Client addresses, seen from behind known proxies.

    Args:
        trusted: Networks of the proxies, as CIDRs or single addresses; "*" is refused.

    Raises:
        ConfigurationError: An entry is no network.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._networks = [_network(text) for text in trusted]
        self._peer = lru_cache(maxsize=8192)(self._read_peer)
        self._behind = lru_cache(maxsize=8192)(self._read_chain)

    def of(self, scope: Scope) -> str:
        """The identity of whoever sent the request with this ASGI scope."""
        client = scope.get("client")
        if not client:
            return NOBODY
        name, trusted = self._peer(client[0])
        if not trusted:
            return name
        chain = b",".join(value for header, value in scope["headers"] if header == b"x-forwarded-for")
        if not chain:
            chain = _forwarded(b",".join(value for header, value in scope["headers"] if header == b"forwarded"))
        return self._behind(name, chain) if chain else name

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)

    def _read_peer(self, host: str) -> tuple[str, bool]:
        address = _parse(host)
        return (NOBODY, False) if address is None else (_name(address), self._trusts(address))

    def _read_chain(self, nearest: str, chain: bytes) -> str:
        """Walk from the nearest hop outwards; what cannot be read ends the walk at the last hop that could."""
        for entry in reversed(chain.decode("latin-1").split(",")):
            address = _parse(_bare(entry.strip()))
            if address is None:
                break
            nearest = _name(address)
            if not self._trusts(address):
                break
        return nearest


def client_address(request: HTTPConnection) -> str:
    """Key function: the client's address, seen from behind `Limiter(trusted_proxies=...)`."""
    addresses = request.scope.get(ADDRESSES)
    if addresses is None:  # asked outside of a limiter's work
        state = getattr(request.scope.get("app"), "state", None)
        addresses = getattr(getattr(state, "limiter", None), "addresses", None)
    return (addresses if isinstance(addresses, Addresses) else _UNTRUSTING).of(request.scope)


def _network(text: str) -> IPv4Network | IPv6Network:
    text = text.strip()
    try:
        network = None if text == "*" else ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigurationError(f'trusted_proxies "{text}": {error}; write e.g. "10.0.0.0/8"') from None
    if network is None or network.prefixlen == 0:
        raise ConfigurationError(
            f'trusted_proxies "{text}" would let every client choose its own address; '
            'name your proxies, e.g. "10.0.0.0/8"'
        )
    return network


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address: Any = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address  # type: ignore[no-any-return]


def _name(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def _bare(entry: str) -> str:
    """An entry without its port: "192.0.2.1:4711", "[2001:db8::1]:4711"."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _forwarded(value: bytes) -> bytes:
    """RFC 7239's `for=` parameters as a list in X-Forwarded-For's form."""
    hops = []
    for element in value.split(b","):
        found = b""
        for pair in element.split(b";"):
            name, _, token = pair.strip().partition(b"=")
            if name.strip().lower() == b"for":
                found = token.strip().strip(b'"')
        hops.append(found)
    return b",".join(hops) if value else b""


_UNTRUSTING = Addresses()
