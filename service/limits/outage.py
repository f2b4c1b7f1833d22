"""Whether the store is asked at all. One breaker an event loop, which is one a worker.

    closed   every ask goes to the store; two calls in a row that it does not answer open the breaker
    open     no user's request is sent, each is answered at once (`fallback.py`); once a second, jittered, this worker
             probes: it charges a counter of its own where the last call failed, by the same script over the same
             connection. What is answered closes the breaker

So a store that is away costs a worker two calls, then one connection a second; when it comes back, its workers
return one by one within 1.5 s, each with one call at a time.
"""

import asyncio
import contextvars
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service.errors import StoreUnavailable
from service.limits import keys
from service.limits.decision import Ask, Charge
from service.limits.limit import Limit
from service.limits.stores.faults import LOCKED_OUT, REFUSED
from service.logs import events

OPENED_BY = 2
"""Calls in a row without an answer."""

PROBE_S = (1.0, 1.5)
"""Between two probes of a worker, seconds; uniformly at random."""

_PROBED = Limit(amount=10**9, window_s=1, name="probe")
_log = events()


@dataclass(slots=True)
class Breaker:
    """Open or closed. Pure: time comes from outside, seconds of a clock that only moves on.

    Attributes:
        open: Whether the store is away.
        since_s: When it opened last.
        failures: Calls in a row without an answer.
    """

    open: bool = False
    since_s: float = 0.0
    failures: int = 0

    def failed(self, now_s: float) -> bool:
        """A call was not answered. Whether that has opened it."""
        self.failures += 1
        if self.open or self.failures < OPENED_BY:
            return False
        self.open, self.since_s = True, now_s
        return True

    def answered(self) -> bool:
        """A call was answered. Whether that has closed it."""
        was_open = self.open
        self.open, self.failures = False, 0
        return was_open


class Outage:
    """The breaker of one event loop, its probes, and a line in the log each time it changes.

    Args:
        loop: Running.
        call: Asks the store, within the deadline. Raises StoreUnavailable.
        changed: Called with true when it opens, and with false when it closes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[Ask], Awaitable[object]],
        changed: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._call = call
        self._changed = changed
        self._breaker = Breaker()
        self._context = contextvars.Context()
        self._timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._probe = Ask([Charge(_PROBED, b"", 1)])
        self._reason = ""
        self._closed = False
        self.open = False

    def failed(self, error: StoreUnavailable, key: bytes) -> None:
        """A call for this key, among others, was not answered."""
        if error.reason == REFUSED or self._closed:  # it is there, whatever it says
            return
        now_s = self._loop.time()
        if self._breaker.failed(now_s):
            self.open = True
            self._probe = Ask([Charge(_PROBED, keys.probe(key), 1)])
            self._say("outage_began", error)
            self._changed(True)
            self._wait()
        elif not self.open:
            _warn(error)

    def answered(self) -> None:
        """A call was answered."""
        if not self._breaker.failures:
            return
        if self._breaker.answered():
            self.open = False
            if self._timer is not None:
                self._timer.cancel()
            lasted_s = round(self._loop.time() - self._breaker.since_s, 1)
            _log.warning("outage_over", lasted_s=lasted_s)
            self._changed(False)

    def close(self) -> "asyncio.Task[None] | None":
        """Probe no more; an outage is over for whoever counts them. What is under way, cancelled, to be awaited."""
        if self.open and not self._closed:
            self._changed(False)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._probing is not None:
            self._probing.cancel()
        return self._probing

    def _say(self, event: str, error: StoreUnavailable) -> None:
        self._reason = error.reason
        if error.reason in LOCKED_OUT:
            hint = "Redis does not let this client in; this does not pass by itself: mend REDIS_URL or the ACL"
            _log.error(event, reason=error.reason, error=error, hint=hint)
        else:
            _log.warning(event, reason=error.reason, error=error)

    def _wait(self) -> None:
        if not self._closed:
            self._timer = self._loop.call_later(random.uniform(*PROBE_S), self._begin, context=self._context)

    def _begin(self) -> None:
        self._probing = self._loop.create_task(self._look(), context=self._context)

    async def _look(self) -> None:
        try:
            await self._call(self._probe)
        except StoreUnavailable as error:
            if error.reason == REFUSED:
                self.answered()
                return
            if error.reason in LOCKED_OUT and error.reason != self._reason:
                self._say("outage_goes_on", error)
            self._wait()
        except Exception as error:  # a store's bug must not leave the breaker open for good
            _log.error("probe_failed", error=error)
            self._wait()
        else:
            self.answered()
        finally:
            self._probing = None


_warned_s = 0.0


def _warn(error: StoreUnavailable) -> None:
    """Of a call that failed and opened nothing; one line a second and process."""
    global _warned_s  # noqa: PLW0603
    if time.monotonic() - _warned_s > 1:
        _warned_s = time.monotonic()
        _log.warning("store_unavailable", reason=error.reason, error=error)
