"""The Supabase client of a process: made once, in its event loop, and closed at the end.

    from service import database
    from service.database import get_supabase

    app = FastAPI(lifespan=database.lifespan)

    @app.get("/messages")
    async def messages(supabase: Annotated[AsyncClient, Depends(get_supabase)]) -> list[dict[str, Any]]:
        return (await supabase.table("messages").select("*").execute()).data

An app with a lifespan of its own says there: `async with Supabase.from_env() as app.state.supabase: yield`.

Routes write plain supabase code. When Supabase does not answer they get `DatabaseUnavailable`, an HTTPException too: an
app answers it with 503 without being told how, and with 504 when it was too slow. Only where an answer has begun, in a
stream or an accepted WebSocket, there is nothing to answer with: catch it there.

    address.py     · what the two variables may say
    patience.py    · how long a call may take
    client.py        supabase-py's client, made our way; what would make it somebody else's is refused
    transport.py     deadlines, repeated calls, errors in our words, and the only place that fills in the key
    connections.py   HTTP/1.1, kept while they are young

Needs `pip install 'onequota[supabase]'`, which is imported when a client is opened and not before.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

from pydantic import SecretStr
from starlette.requests import HTTPConnection

from service.database import address
from service.database.patience import Patience
from service.errors import ConfigurationError, DatabaseTimeout, DatabaseUnavailable
from service.logs import events
from service.settings import supabase_from_env

if TYPE_CHECKING:
    from supabase import AsyncClient

    from service.database.client import Clients

__all__ = ["Patience", "Supabase", "get_supabase", "idempotent", "insert_once", "lifespan"]

log = events()

PING_S = 1.5
"""How long a ping may take."""

PING_EVERY_S = 1.0
"""How often Supabase is pinged at most, however often `/ready` is asked."""


class Supabase:
    """The process's client, open between `async with` and its end.

    Without `url` and `key` it is not configured: it opens and closes all the same, and who asks for its client gets
    `DatabaseUnavailable`.

    Args:
        url: The project's URL, `https://PROJECT.supabase.co`.
        key: Its secret (service) key.
        schema: The Postgres schema of `table()` and `rpc()`.
        patience: How long each call may take.
        connections: How many there may be to Supabase at once; further calls wait for one.

    Raises:
        ConfigurationError: An argument cannot be meant, only one of url and key is given, or supabase is not installed.
    """

    def __init__(
        self,
        url: str | None,
        key: str | None,
        *,
        schema: str = "public",
        patience: Patience | None = None,
        connections: int = 40,
    ) -> None:
        if connections < 1:
            raise ConfigurationError(f"connections={connections}: wanted at least 1")
        self.url = address.checked(url, key)
        self._key = SecretStr(key or "")
        self._schema = schema
        self._patience = patience or Patience()
        self._connections = connections
        self._clients: Clients | None = None
        self._client: AsyncClient | None = None
        self._pinging = asyncio.Lock()
        self._pinged_s = -math.inf
        self._silence: DatabaseUnavailable | None = None
        if self.url is not None and not (find_spec("supabase") and find_spec("tenacity")):
            raise ConfigurationError(
                f"{address.URL} is set, and supabase is not installed: pip install 'onequota[supabase]'"
            )

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """The Supabase of SUPABASE_URL and SUPABASE_SERVICE_KEY; options as of the class."""
        return cls(*supabase_from_env(), **options)

    @property
    def configured(self) -> bool:
        """Whether there is a Supabase to call."""
        return self.url is not None

    @property
    def client(self) -> "AsyncClient":
        """The one client of this process. It acts as the service, to whom row-level security does not apply.

        Raises:
            DatabaseUnavailable: Supabase is not configured, or this is not open.
        """
        if self._client is None:
            raise _none("this is not open" if self.configured else f"{address.URL} and {address.KEY} are not set")
        return self._client

    async def for_one_user(self) -> "AsyncClient":
        """A client that signs a user in and then acts as that user: one per request, which needs no closing.

        Its session is its own; connections, deadlines and the hidden key are shared.
        """
        if self._clients is None:
            return self.client  # which raises, and says what is missing
        return await self._clients.of_one_user()

    async def ping(self) -> None:
        """Ask whether Supabase answers and takes the key; of the calls within a second one asks, and all learn.

        Raises:
            DatabaseUnavailable: It does not; also when it is not configured.
        """
        _ = self.client
        async with self._pinging:
            if time.monotonic() - self._pinged_s >= PING_EVERY_S:
                self._silence = await self._ask()
                self._pinged_s = time.monotonic()
            if self._silence is not None:
                raise type(self._silence)(str(self._silence))  # one each: an exception carries a traceback

    async def _ask(self) -> DatabaseUnavailable | None:
        assert self._clients is not None
        try:
            async with asyncio.timeout(PING_S):
                # PostgREST's root. Whatever it answers, it is PostgREST that answers; when it can, from the database.
                response = await self._clients.http.head(f"{self.url}/rest/v1/", headers=self.client.options.headers)
        except TimeoutError:
            return DatabaseTimeout(f"supabase ping: no answer within {PING_S:g} s")
        except DatabaseUnavailable as error:
            return type(error)(f"supabase ping: {str(error).partition(': ')[2]}")
        if response.status_code in {401, 403}:
            return DatabaseUnavailable(f"supabase ping: it refuses {address.KEY} ({response.status_code})")
        if response.status_code >= 500:
            return DatabaseUnavailable(f"supabase ping: it answered {response.status_code}")
        return None

    async def __aenter__(self) -> Self:
        if self.url is not None:
            from service.database.client import Clients  # noqa: PLC0415  0.5 s: only who has a Supabase pays

            for doubt in address.doubts(self.url, self._key.get_secret_value()):
                log.warning("supabase_doubtful", reason=doubt)
            self._clients = Clients(self.url, self._key, self._schema, self._patience, self._connections)
            self._client = await self._clients.of_the_service()
            self._pinging, self._pinged_s = asyncio.Lock(), -math.inf
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Calls that are under way fail; there is nothing to close twice."""
        clients, self._clients, self._client = self._clients, None, None
        if clients is not None:
            await clients.http.aclose()

    def __repr__(self) -> str:
        state = "open" if self._client else "closed" if self.configured else "not configured"
        return f"<Supabase {self.url or ''} {state}>"


def _none(why: str) -> DatabaseUnavailable:
    return DatabaseUnavailable(f"no Supabase: {why}", detail="No database is configured", retry_after_s=None)


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    """The lifespan of an app that opens nothing else: `FastAPI(lifespan=database.lifespan)`."""
    async with Supabase.from_env() as database:
        app.state.supabase = database
        yield {"supabase": database}  # so that an app mounted in this one finds it as well


def get_supabase(connection: HTTPConnection) -> "AsyncClient":
    """For `Depends`, in HTTP and WebSocket routes: the process's client.

    It is the one of the `Supabase` that a lifespan put into `app.state.supabase`, or yielded as `supabase`.

    Raises:
        DatabaseUnavailable: There is none; the caller is answered with 503.
    """
    database = getattr(connection.state, "supabase", None) or getattr(connection.app.state, "supabase", None)
    if database is None:
        raise _none("no lifespan has set app.state.supabase; FastAPI(lifespan=database.lifespan) does")
    client: AsyncClient = database.client
    return client


Query = TypeVar("Query")


def idempotent(query: Query) -> Query:
    """`query`, a built supabase query, marked as one that may be sent again when its answer was lost.

    The mark, an `Idempotency-Key`, is for our transport; PostgREST does not look at it. What makes a second run
    harmless must be in the query: an upsert on an id of yours, an update to a fixed value, a function that knows it.
    """
    query.request.headers["Idempotency-Key"] = uuid4().hex  # type: ignore[attr-defined]
    return query


async def insert_once(
    supabase: "AsyncClient", table: str, row: Mapping[str, Any], *, unique: str = "id"
) -> dict[str, Any]:
    """Insert `row` exactly once, however often a connection breaks; returns it as it is stored.

    It can be sent again because the id is made here, not by the database: the insert says `ON CONFLICT DO NOTHING` for
    it, so the second finds the row of the first and leaves it. Who wants to call this again after
    `DatabaseUnavailable`, or lets a browser do so, puts the id into `row`: two calls with one id store one row, the
    first, and both get it, so an id is not for others to guess.

    Args:
        supabase: From `get_supabase`.
        table: Its name.
        row: The columns; `unique` is added, a random UUID, if it is missing or None.
        unique: A column with a unique constraint, or the primary key, that can hold the id.
    """
    row = {**row, unique: str(uuid4()) if row.get(unique) is None else row[unique]}
    query = supabase.table(table).upsert(row, on_conflict=unique, ignore_duplicates=True)
    stored: Any = (await idempotent(query).execute()).data
    if not stored:  # it was there already: an earlier attempt had come through
        stored = (await supabase.table(table).select("*").eq(unique, row[unique]).execute()).data
    return dict(stored[0]) if stored else row  # neither: somebody has deleted it since
