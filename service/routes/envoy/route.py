"""The route: from the request to its answer."""

import time
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.callers import Callers, forbidden
from service.errors import InvalidInput, StoreUnavailable
from service.limits.catalog import Catalog
from service.limits.engine import Engine
from service.limits.envoy import answer
from service.limits.passage import fault, problem_response
from service.limits.policy import decide, plan
from service.routes.envoy.message import read, written
from service.routes.raw import Answered, ClientLeft, body_of, check_method, json_of

LARGEST_BODY_BYTES = 1 << 20


class Envoy:
    """The hot route. Whatever its Content-Type, the body is JSON: curl's `--data` says that it is a form.

    Args:
        engine: Of the counters.
        catalog: Says which one is in force.
        callers: Who may ask.
        clock: Microseconds since the epoch.
    """

    def __init__(
        self,
        engine: Engine,
        catalog: Callable[[], Catalog],
        callers: Callers,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._callers = callers
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(scope, receive)
        except Answered as other:
            response = other.response
        except InvalidInput as error:
            extra = {"errors": [{"field": error.field, "reason": error.reason}]}
            response = problem_response(400, str(error), extra=extra)
        except StoreUnavailable as error:
            response = fault(error)
        except ClientLeft:
            return
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        check_method(scope, "POST")
        caller = self._callers.of(scope["headers"])
        if caller is None:
            return await self._callers.unknown(scope)
        asked = read(json_of(await body_of(receive, LARGEST_BODY_BYTES)))
        if not caller.may(asked.domain):
            return forbidden(caller, asked.domain)
        planned = plan(self._catalog(), asked.domain, asked.wanted, now_us=self._clock(), cost=asked.cost, strict=False)
        verdict = await decide(self._engine, planned)
        headers = {"cache-control": "no-store"}
        if verdict.retry_after is not None:
            headers["retry-after"] = str(verdict.retry_after)
        body = written(answer(asked, verdict))
        return Response(body, 200 if verdict.allowed else 429, headers, media_type="application/json")
