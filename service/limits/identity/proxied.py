"""What a gateway says of its caller, in a header of its own. Believed from trusted proxies only."""

import re

from starlette.requests import HTTPConnection

from service.errors import ConfigurationError
from service.limits.identity.address import addresses_of
from service.limits.identity.resolver import Answer, Resolver, Vouched, named, single

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def header(header: str, *, name: str | None = None) -> "Header":
    """Key function: who a trusted proxy says it is, such as `x-user`.

    The proxy must set the header on every request, or take the client's out: what a client writes there reaches us as
    the proxy's word. A header that comes twice names nobody.

    Args:
        header: Its name.
        name: What its identities begin with; by default the header's name: `x-user/alice`.

    Raises:
        ConfigurationError: That cannot be the name of a header.
    """
    if not _TOKEN.fullmatch(header):
        raise ConfigurationError(f'identity.header("{header}"): that cannot be the name of a header')
    return Header(header.lower(), named(header.lower() if name is None else name))


class Header(Resolver):
    """See `header`."""

    needs_proxies = True

    def __init__(self, header: str, name: str) -> None:
        self.name = name
        self.means = (Header, header)
        self._header = header.encode()

    def __call__(self, connection: HTTPConnection) -> Answer:
        if not addresses_of(connection).peer(connection.scope).trusted:
            return None
        value = single(connection, self._header)
        return None if value is None else Vouched(f"{self.name}/{value.decode('latin-1')}")
