"""Who is never let in, and who is always: networks and identities. Pure.

Whoever is allowed is not counted, not refused, not banned; it goes before a denial. An entry that looks like an address
is a network; anything else is an identity as key functions spell it, such as `jwt/3f0c8a52-…` or `key/@acme`.
"""

import ipaddress
import re
from collections.abc import Iterable

from service.errors import ConfigurationError
from service.limits import keys
from service.limits.identity.address import Address

_ADDRESS_LIKE = re.compile(r"(?:\d+\.)+\d+(?:/.*)?|[0-9a-fA-F]*:[0-9a-fA-F:.]*(?:/.*)?")


class Lists:
    """Both lists.

    Args:
        deny: Networks as CIDRs, addresses, identities.
        allow: The same.

    Raises:
        ConfigurationError: An entry cannot be meant.
    """

    def __init__(self, deny: Iterable[str], allow: Iterable[str]) -> None:
        self._allowed, self._denied = _List("allow", allow), _List("deny", deny)

    def address(self, address: Address | None) -> bool | None:
        """True: always let in; false: never; None: as everybody."""
        if address is None:
            return None
        return True if address in self._allowed else False if address in self._denied else None

    def identity(self, who: bytes) -> bool | None:
        """The same of an identity as keys carry it."""
        return True if who in self._allowed.who else False if who in self._denied.who else None


class _List:
    """Networks by their length: as many look-ups as there are different lengths, however long the list."""

    def __init__(self, name: str, entries: Iterable[str]) -> None:
        self.who: set[bytes] = set()
        self._networks: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for entry in entries:
            self._add(name, entry.strip())

    def _add(self, name: str, entry: str) -> None:
        if entry in ("", "*"):
            raise ConfigurationError(f'{name} "{entry}": name networks or identities; everybody is 0.0.0.0/0 and ::/0')
        if not _ADDRESS_LIKE.fullmatch(entry):
            self.who.add(keys.who(entry))
            return
        try:
            network = ipaddress.ip_network(entry)
        except ValueError as error:
            raise ConfigurationError(f'{name} "{entry}": {error}; write e.g. "203.0.113.0/24"') from None
        if (
            isinstance(network, ipaddress.IPv6Network)
            and network.network_address.ipv4_mapped
            and network.prefixlen > 95
        ):
            raise ConfigurationError(f'{name} "{entry}": mapped addresses are seen as IPv4; write "{_mapped(network)}"')
        shift = network.max_prefixlen - network.prefixlen
        self._networks[network.version].setdefault(shift, set()).add(int(network.network_address) >> shift)

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return any(number >> shift in found for shift, found in self._networks[address.version].items())


def _mapped(network: ipaddress.IPv6Network) -> str:
    return f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}"
