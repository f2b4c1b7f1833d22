"""supabase-py's client, made our way: over our transport, with nothing of its own to close, and nobody else's.

Imported when a client is opened: this is where supabase and httpx are needed.
"""

from http.cookiejar import CookieJar, DefaultCookiePolicy
from inspect import iscoroutinefunction
from typing import NoReturn

import httpx
from pydantic import SecretStr
from supabase import AsyncClient, AsyncClientOptions, create_async_client

from service.database.patience import Patience
from service.database.transport import Transport
from service.errors import ConfigurationError
from service.routes.health import VERSION

_STATELESS = {"close", "get_claims", "get_session", "get_user", "resend"}
"""Methods of `auth` that leave the client as it is. Any other, also one that a later version brings, is refused."""

_OURS = "this client is the service's, for all its callers, who would all become that user"


class Clients:
    """What makes the clients of a process, which speak through one httpx client; made in the running event loop."""

    def __init__(self, url: str, key: SecretStr, schema: str, patience: Patience, connections: int) -> None:
        self._url = url
        self._schema = schema
        self._transport = Transport(url, key, patience, connections)
        self.http = httpx.AsyncClient(
            transport=self._transport,
            timeout=httpx.Timeout(
                connect=patience.connect_s, read=patience.read_s, write=patience.write_s, pool=patience.pool_s
            ),
            follow_redirects=True,  # as supabase's own; the key does not go along to another origin
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one user's are not for the next
        )

    async def of_the_service(self) -> AsyncClient:
        """The client that acts as the service, and can do nothing else."""
        return _guarded(await self._make({"Authorization": self._transport.service}))

    async def of_one_user(self) -> AsyncClient:
        """A client that can sign in, and before that do nothing else."""
        return await self._make({})

    async def _make(self, headers: dict[str, str]) -> AsyncClient:
        options = AsyncClientOptions(
            schema=self._schema,
            headers={"X-Client-Info": f"onequota/{VERSION}", **headers},
            auto_refresh_token=False,
            persist_session=False,
            postgrest_client_retry=False,  # its own repeats wait 1, 2 and 4 s, whatever the deadline
            httpx_client=self.http,
        )
        client = await create_async_client(self._url, self._transport.word, options)
        for owner, name in (client, "channel"), (client.realtime, "connect"):
            _refuse(owner, name, "Realtime sends the key in a URL, where logs keep it; use a client of its own")
        return client


def _guarded(client: AsyncClient) -> AsyncClient:
    """The client, unable to become a user: every later query, of everybody, would be made with that user's token."""
    auth = type(client.auth)
    for name in dir(auth):
        if iscoroutinefunction(getattr(auth, name)) and not name.startswith("_") and name not in _STATELESS:
            _refuse(client.auth, name, f"{_OURS}; use one made for it: `await database.for_one_user()`")
    as_user = 'query as a user with `supabase.schema("public").auth(token).from_(...)`'
    _refuse(client.postgrest, "auth", f"{_OURS}; {as_user}")
    _refuse(client.functions, "set_auth", f"{_OURS}; pass the header to invoke()")
    return client


def _refuse(owner: object, name: str, why: str) -> None:
    def refused(*_: object, **__: object) -> NoReturn:
        raise ConfigurationError(f"supabase {name}(): {why}")

    setattr(owner, name, refused)
