"""What blocking and awaited clients share in carrying a call: its deadline, its attempts, what httpx is told."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx

from service.client import wire
from service.client.attempts import Attempts, Rest
from service.client.wire import Call, Unanswered
from service.errors import AccessDenied, ConfigurationError, InvalidInput
from service.settings import api_key_from_env, service_url_from_env

IDLE_S = 30.0
"""How long an idle connection is kept: shorter than the service keeps it (75 s), so that it is we who close it."""

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)


class Carriage:
    """How calls travel.

    Args:
        url: Of the service, `http://HOST:PORT` or `https://HOST`; None = ONEQUOTA_URL.
        api_key: None = the one in the URL (`https://KEY@HOST`), else ONEQUOTA_API_KEY, else none.
        deadline_s: Seconds a call may take, all attempts together; above 0.
        attempts: How often it is sent at most; 1 = never again.
        connections: How many are open at once at most.
        verify: For https: False, or an `ssl.SSLContext`.

    Raises:
        ConfigurationError: An argument cannot be meant.
    """

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        deadline_s: float,
        attempts: int,
        connections: int,
        verify: Any = True,
    ) -> None:
        url = url or service_url_from_env()
        if url is None:
            raise ConfigurationError(
                "no service to ask: pass its URL, for example http://127.0.0.1:8000, or set ONEQUOTA_URL"
            )
        if not 0 < deadline_s <= 3600:
            raise ConfigurationError(f"deadline_s {deadline_s}: use more than 0 and at most 3600 seconds")
        if attempts < 1 or connections < 1:
            raise ConfigurationError(f"attempts {attempts}, connections {connections}: use at least 1 of each")
        self.address = wire.address(url, api_key)
        if self.address.api_key is None:
            self.address = wire.address(self.address.url, api_key_from_env())
        self.deadline_s = deadline_s
        self._most = attempts
        self._rest = Rest(time.monotonic)
        self.options: dict[str, Any] = {
            "base_url": self.address.url,
            "headers": self.address.headers,
            "limits": httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=IDLE_S
            ),
            "verify": verify if self.address.url.startswith("https:") else False,  # to load certificates takes a while
            "trust_env": False,
        }

    @contextlib.contextmanager
    def attempts(self, call: Call[Any]) -> Iterator[Attempts]:
        """The attempts of a call that begins now. Raises Unanswered at once where the service is left alone."""
        if self._rest.resting():
            raise Unanswered(
                f"{self.address.url} does not answer and is left alone for a moment", sent=False, again=False
            )
        try:
            yield Attempts(call, time.monotonic() + self.deadline_s, self._most, time.monotonic)
        except Unanswered:
            self._rest.failed()
            raise
        except (InvalidInput, AccessDenied):
            self._rest.answered()
            raise
        self._rest.answered()

    def told(self, error: httpx.RequestError) -> Unanswered:
        """What became of a request, in our words: httpx's error holds the request, API key included."""
        sent = not isinstance(error, _NEVER_SENT)
        where = self.address.url
        if isinstance(error, httpx.TimeoutException):
            words = f"{where} did not answer within {self.deadline_s:g} s"
            return Unanswered(words, sent=sent, again=False, reason="timeout")
        reason = str(error) or type(error).__name__
        words = f"the connection to {where} broke: {reason}" if sent else f"{where} cannot be reached: {reason}"
        return Unanswered(words, sent=sent, again=True, reason="connection")

    def late(self) -> Unanswered:
        """The deadline came."""
        return self.told(httpx.ReadTimeout(""))


def request(call: Call[Any], left_s: float) -> dict[str, Any]:
    """As httpx builds it."""
    return {
        "method": call.method,
        "url": call.path,
        "content": call.body,
        "headers": dict(call.headers),
        "timeout": left_s,
    }
