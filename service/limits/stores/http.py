"""Counters that a onequota service keeps: what a batch asks is one POST, sent at most once.

Whoever may bring limits along may keep counters there (`@inline`, or `*`); they are this key's, and meet nobody else's.
The API key is in the URL (`https://KEY@HOST`), in `storage_options={"api_key": ...}` or in ONEQUOTA_API_KEY.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import httpx2 as httpx

from service.client import wire
from service.client.carrying import Carriage, request
from service.client.wire import Call, Unanswered
from service.errors import AccessDenied, ConfigurationError, InvalidInput, StoreUnavailable
from service.limits import asks as travelling
from service.limits.decision import Ask

T = TypeVar("T")


class HttpStore:
    """Counters in a service, asked over kept connections. Belongs to one event loop."""

    far = False  # the service repeats refusals: twice would be twice as stale

    def __init__(self, carriage: Carriage) -> None:
        self._carriage = carriage
        self._http = httpx.AsyncClient(**carriage.options)

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        def read(said: Any) -> Sequence[int]:
            return travelling.numbers(asks, said)

        return await self._call(Call(path="/v1/asks", document=travelling.document(asks), read=read))

    async def ping(self) -> str:
        store = await self._call(Call(method="GET", path="/ready", read=lambda said: str(said["store"])))
        return f"onequota at {self._carriage.address.url} ({store})"

    async def doubts(self) -> list[str]:
        return []  # the service tells its own

    async def forget(self, prefix: str, identity: str | None) -> int:
        wanted = {"prefix": prefix or "", "identity": identity}
        return await self._call(Call(path="/v1/asks/forget", document=wanted, read=lambda said: int(said["forgotten"])))

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        look = travelling.look(key, after, message, keep_ms, most)
        return await self._call(Call(path="/v1/asks/board", document=look, read=travelling.read_seen))

    async def _call(self, call: Call[T]) -> T:
        try:
            response = await self._http.request(**request(call, self._carriage.deadline_s))
        except httpx.RequestError as error:
            unavailable = _told(self._carriage.told(error))
        else:
            try:
                return wire.result(call, response.status_code, response.headers, response.content)
            except AccessDenied as error:
                unavailable = StoreUnavailable(str(error), reason="permission", maybe_done=False)
            except InvalidInput as error:
                unavailable = StoreUnavailable(f"the service refused: {error}", reason="refused", maybe_done=False)
            except Unanswered as error:
                unavailable = _told(error)
        raise unavailable  # out here, so that it does not carry httpx's, which holds the API key

    async def aclose(self) -> None:
        await self._http.aclose()


def _told(error: Unanswered) -> StoreUnavailable:
    return StoreUnavailable(str(error), reason=error.reason, maybe_done=error.sent)


class HttpOpener:
    """Opens connections to a service, per event loop.

    Args:
        url: http:// or https://, perhaps with the API key in it.
        options: `api_key`, and `verify` for https: an `ssl.SSLContext`, or False.
        timeout_s: Seconds one call may take.

    Raises:
        ConfigurationError: The URL or an option cannot be meant.
    """

    def __init__(self, url: str, options: dict[str, Any], timeout_s: float) -> None:
        unknown = set(options) - {"api_key", "verify"}
        if unknown:
            raise ConfigurationError(f"storage_options {', '.join(sorted(unknown))}: here are only api_key and verify")
        key, verify = options.get("api_key"), options.get("verify", True)
        self._carriage = Carriage(url, key, timeout_s, 1, 4, verify)

    def __call__(self) -> HttpStore:
        return HttpStore(self._carriage)
