"""`envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`: Envoy's messages, read, asked and answered.

| status              | when                                                                                   |
|---------------------|----------------------------------------------------------------------------------------|
| INVALID_ARGUMENT    | no domain, no descriptors, a value that cannot be meant; names the field               |
| UNAUTHENTICATED     | the metadata bear no API key that is known, `authorization: Bearer …` or `x-api-key`   |
| PERMISSION_DENIED   | the key may not ask this domain, or the address is denied                              |
| RESOURCE_EXHAUSTED  | too many calls without a good key                                                      |
| UNAVAILABLE         | Redis is away, or more calls are under way than `ONEQUOTA_MAX_IN_FLIGHT`               |
"""

import time
from collections.abc import Callable
from typing import Any

import grpc
from envoy.service.ratelimit.v3 import rls_pb2
from google.protobuf.message import DecodeError

from service import status
from service.callers import Caller, Callers
from service.errors import InvalidInput, StoreUnavailable
from service.limits.catalog import Catalog
from service.limits.engine import Engine
from service.limits.envoy import UNITS, Answer, Descriptor, Override, Question, Told, answer, question
from service.limits.identity import NOBODY
from service.limits.policy import decide, plan
from service.logs import events

NAME = "envoy.service.ratelimit.v3.RateLimitService"

_OK, _OVER = rls_pb2.RateLimitResponse.OK, rls_pb2.RateLimitResponse.OVER_LIMIT
_log = events()


class RateLimit:
    """The service.

    Args:
        engine: Of the counters.
        catalog: Says which one is in force.
        callers: Who may ask.
        address: Who a peer is, as the library names it.
        denied: Whether that is never let in.
        max_in_flight: Calls at once; more are refused; 0 = any.
        clock: Microseconds since the epoch.
    """

    def __init__(
        self,
        engine: Engine,
        catalog: Callable[[], Catalog],
        callers: Callers,
        *,
        address: Callable[[str], str] = lambda _: NOBODY,
        denied: Callable[[str], bool] = lambda _: False,
        max_in_flight: int = 0,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._callers = callers
        self._address = address
        self._denied = denied
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._clock = clock

    async def should_rate_limit(self, data: bytes, context: Any) -> bytes:
        """The method: RateLimitRequest → RateLimitResponse, serialized both."""
        status.count()
        try:
            return await self._answer(data, context)
        except _Refused as refused:
            code, details = refused.code, refused.details
        except InvalidInput as error:
            code, details = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except StoreUnavailable:
            code, details = grpc.StatusCode.UNAVAILABLE, "rate limits cannot be checked at the moment"
        except Exception:  # the library would tell the caller what it was
            _log.exception("grpc_call_failed")
            code, details = grpc.StatusCode.INTERNAL, "internal error"
        await context.abort(code, details)
        raise AssertionError("abort raises")

    async def _answer(self, data: bytes, context: Any) -> bytes:
        if 0 < self._max_in_flight <= self._in_flight:
            raise _Refused(grpc.StatusCode.UNAVAILABLE, "too many requests are under way; try again in a second")
        self._in_flight += 1
        try:
            caller = await self._caller(context)
            asked = read(data)
            if not caller.may(asked.domain):
                reason = f'domain: key "{caller.name}" may not ask domain "{asked.domain}"'
                raise _Refused(grpc.StatusCode.PERMISSION_DENIED, reason)
            planned = plan(
                self._catalog(), asked.domain, asked.wanted, now_us=self._clock(), cost=asked.cost, strict=False
            )
            return written(answer(asked, await decide(self._engine, planned)))
        finally:
            self._in_flight -= 1

    async def _caller(self, context: Any) -> Caller:
        if self._denied(context.peer()):
            raise _Refused(grpc.StatusCode.PERMISSION_DENIED, "calls from here are not accepted")
        sent: list[tuple[bytes, bytes]] = []
        if not self._callers.open:
            sent = [(name.encode(), _bytes(value)) for name, value in context.invocation_metadata() or ()]
        caller = self._callers.of(sent)
        if caller is not None:
            return caller
        retry_after = await self._callers.missed(self._address(context.peer()))
        if retry_after is None:
            reason = "an API key that is known here is needed: send authorization: Bearer SECRET"
            raise _Refused(grpc.StatusCode.UNAUTHENTICATED, reason)
        reason = f"too many calls without a valid API key; try again in {retry_after} s"
        raise _Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)


class _Refused(Exception):
    """This call has no answer but a status."""

    def __init__(self, code: Any, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def read(data: bytes) -> Question:
    """A RateLimitRequest. Raises InvalidInput."""
    try:
        request = rls_pb2.RateLimitRequest.FromString(data)
    except DecodeError:
        raise InvalidInput("RateLimitRequest", "this is no such message") from None
    return question(request.domain, map(_descriptor, request.descriptors), request.hits_addend)


def _descriptor(message: Any) -> Descriptor:
    override = None
    if message.HasField("limit"):
        unit = message.limit.unit
        named = UNITS[unit] if 0 <= unit < len(UNITS) else str(unit)
        override = Override(message.limit.requests_per_unit, named)
    hits = message.hits_addend.value if message.HasField("hits_addend") else None
    return Descriptor(tuple((entry.key, entry.value) for entry in message.entries), hits, override)


def written(told: Answer) -> bytes:
    """A RateLimitResponse."""
    response = rls_pb2.RateLimitResponse(overall_code=_OVER if told.over else _OK)
    for each in told.statuses:
        _write(each, response.statuses.add())
    for name, value in told.headers:
        response.response_headers_to_add.add(key=name.decode(), value=value.decode())
    data: bytes = response.SerializeToString()
    return data


def _write(told: Told, message: Any) -> None:
    message.code = _OVER if told.over else _OK
    message.limit_remaining = told.remaining
    if told.limit is not None:
        requests, unit, name = told.limit
        message.current_limit.requests_per_unit = requests
        message.current_limit.unit = UNITS.index(unit)
        message.current_limit.name = name
    if told.reset_s is not None:
        message.duration_until_reset.seconds = told.reset_s
