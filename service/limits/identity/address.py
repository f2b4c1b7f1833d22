"""The client's address. Only configured proxies are believed about somebody else's.

It is the peer's, or, if the peer is a trusted proxy, the rightmost address in X-Forwarded-For (else Forwarded) that is
no trusted proxy: what stands left of it is the client's own word. IPv4-mapped addresses are unwrapped and IPv6 is cut
to its /64, which is what one customer gets.

What cannot be read ends the walk at the last hop that could: nobody gets a quota of his own by writing nonsense. Only
the nearest kilobyte is looked at, and only short chains are remembered.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from starlette.requests import HTTPConnection
from starlette.types import Scope

from service.errors import ConfigurationError
from service.settings import UNIX_PEERS

ADDRESSES = "onequota.addresses"
"""Where an ASGI scope keeps the `Addresses` of the limiter that is at work."""

NOBODY = "local"
"""The identity of a peer without an address: a unix socket, a test."""

LONGEST_CHAIN = 1024
"""Bytes of a forwarding header that are looked at, from its end: a dozen hops of the longest kind."""
LONGEST_KEPT = 256
"""Bytes of those that are remembered: a client writes the rest, and must not fill the memory of a worker."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_ADDRESSED = re.compile(
    r"\[(?P<six>[^\[\]]*)\](?::(?:\d{1,5}|_[A-Za-z0-9._-]+))?|(?P<four>[0-9.]+)(?::(?:\d{1,5}|_[A-Za-z0-9._-]+))?"
)


class Hop(NamedTuple):
    """Somebody on the way.

    Attributes:
        name: The identity: "203.0.113.7", "2001:db8:1:2::/64" or NOBODY.
        trusted: A proxy that is believed.
        address: Whole; None without one.
    """

    name: str
    trusted: bool
    address: Address | None


class Addresses:
    """Client addresses, seen from behind known proxies.

    Args:
        trusted: Networks of the proxies, as CIDRs or single addresses, or "unix:" for whoever connects by a unix
            socket; "*" is refused.

    Raises:
        ConfigurationError: An entry is no network.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        entries = [text.strip() for text in trusted]
        self._unix = UNIX_PEERS in entries
        self._networks = [_network(text) for text in entries if text != UNIX_PEERS]
        self._peer = lru_cache(maxsize=8192)(self._read_peer)
        self._kept = lru_cache(maxsize=8192)(self._walk)

    @property
    def trusting(self) -> bool:
        """Whether there is any proxy that is believed."""
        return self._unix or bool(self._networks)

    def of(self, scope: Scope) -> str:
        """The identity of whoever sent the request with this ASGI scope."""
        client = scope.get("client")
        if not client:
            return self._behind("", scope).name if self._unix else NOBODY
        name, trusted, _ = self._peer(client[0])
        return self._behind(client[0], scope).name if trusted else name

    def address(self, scope: Scope) -> Address | None:
        """The whole address of whoever sent the request; None if none can be known."""
        client, peer = scope.get("client"), self.peer(scope)
        return self._behind(client[0] if client else "", scope).address if peer.trusted else peer.address

    def peer(self, scope: Scope) -> Hop:
        """Who is at the other end of the connection."""
        client = scope.get("client")
        return self._peer(client[0]) if client else Hop(NOBODY, self._unix, None)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def _read_peer(self, host: str) -> Hop:
        address = _parse(host)
        return _LOCAL if address is None else Hop(_name(address), self._trusts(address), address)

    def _behind(self, host: str, scope: Scope) -> Hop:
        """The client, as the headers of the trusted peer at `host` tell."""
        chain = b",".join([value for header, value in scope["headers"] if header == b"x-forwarded-for"])
        forwarded = not chain
        if forwarded:
            chain = b",".join([value for header, value in scope["headers"] if header == b"forwarded"])
        if len(chain) <= LONGEST_KEPT:
            return self._kept(host, chain, forwarded)
        if len(chain) > LONGEST_CHAIN:
            chain = chain[-LONGEST_CHAIN:].partition(b",")[2]  # from the first whole entry on
        return self._walk(host, chain, forwarded)

    def _walk(self, host: str, chain: bytes, forwarded: bool) -> Hop:
        """From the nearest hop outwards, up to the first that is no proxy; what cannot be read ends it."""
        nearest, text = self._peer(host), chain.decode("latin-1")
        for entry in _hops(text) if forwarded else reversed(text.split(",")):
            address = _parse_entry(entry.strip(" \t"))
            if address is None:
                break
            nearest = Hop(_name(address), self._trusts(address), address)
            if not nearest.trusted:
                break
        return nearest


def client_address(request: HTTPConnection) -> str:
    """Key function: the client's address, seen from behind `Limiter(trusted_proxies=...)`."""
    return addresses_of(request).of(request.scope)


def addresses_of(connection: HTTPConnection) -> Addresses:
    """What the limiter that is at work knows of proxies; without one, what the app's does."""
    addresses = connection.scope.get(ADDRESSES)
    if addresses is None:  # asked outside of a limiter's work
        state = getattr(connection.scope.get("app"), "state", None)
        addresses = getattr(getattr(state, "limiter", None), "addresses", None)
    return addresses if isinstance(addresses, Addresses) else _UNTRUSTING


def _network(text: str) -> Network:
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


def _parse(text: str) -> Address | None:
    if ":" in text:
        text = text.partition("%")[0]  # the zone of a link-local address is ours, not the client's
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _parse_entry(entry: str) -> Address | None:
    """An address as proxies write it: also "192.0.2.1:4711" and "[2001:db8::1]:4711"."""
    found = _ADDRESSED.fullmatch(entry)
    if found is None:
        return _parse(entry) if ":" in entry else None
    if found["four"] is not None:
        return _parse(found["four"])
    return _parse(found["six"]) if ":" in found["six"] else None


def _name(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def _hops(text: str) -> Iterator[str]:
    """RFC 7239's `for=` of each element, nearest first; "" where it is missing, or comes twice."""
    for element in _split(text, ","):
        found = [value for name, value in map(_pair, _split(element, ";")) if name == "for"]
        yield found[0] if len(found) == 1 else ""


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    value = value.strip(" \t")
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return name.strip(" \t").lower(), value


def _split(text: str, mark: str) -> Iterator[str]:
    """The parts between marks outside of quotes, from the right.

    From the right, because that end was written by the proxy: a quote that a client left open to its left hides
    nothing, and a comma in the quoted `host` that the proxy tells, which is the client's word, divides nothing.
    """
    end, quoted = len(text), False
    for at in range(len(text) - 1, -1, -1):
        if text[at] == '"' and not _escaped(text, at):
            quoted = not quoted
        elif text[at] == mark and not quoted:
            yield text[at + 1 : end]
            end = at
    yield text[:end]


def _escaped(text: str, at: int) -> bool:
    before = at
    while before and text[before - 1] == "\\":
        before -= 1
    return (at - before) % 2 == 1


_LOCAL = Hop(NOBODY, False, None)
_UNTRUSTING = Addresses()
