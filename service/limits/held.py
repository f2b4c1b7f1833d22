"""Units of concurrency, held while something runs: renewed meanwhile, released with its end.

A request holds its units from its admission until the last piece of its answer is sent, a WebSocket until it is closed;
an exception or a client that left ends both. Whoever dies with units in hand loses them a lease's length later.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from types import TracebackType

from starlette.types import Message, Send

from service.errors import NotAdmitted, StoreUnavailable
from service.limits.decision import CHARGE, GIVE_BACK, Charge, Decision, LeaseAsk
from service.limits.engine import Engine
from service.logs import events

log = events()

RENEWALS = 3
"""How often a lease is renewed in its length: two of them may be lost."""

_BITS = 48


def fresh() -> str:
    """A lease nobody can guess, as an ask carries it: three integers of 48 bits."""
    return " ".join(str(secrets.randbits(_BITS)) for _ in range(3))


class Held:
    """What has been taken under a lease.

    Args:
        engine: That it was taken with.
        charges: The units; all others among them are none of its affair.
        lease: Under which they are held.
    """

    def __init__(self, engine: Engine, charges: Sequence[Charge], lease: str) -> None:
        self._engine = engine
        self._charges = [charge for charge in charges if charge.limit.leases]
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._every_s = min(charge.limit.window_s for charge in self._charges) / RENEWALS
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(self._every_s, self._renew)
        self._renewals: list[asyncio.Future[Decision]] = []

    def _renew(self) -> None:
        """By taking again: what a store forgot is held again, if there still is room.

        Each unit by itself: of several that are taken together none is left if one is refused.
        """
        self._timer = self._loop.call_later(self._every_s, self._renew)
        self._renewals = [one for one in self._renewals if not one.done()]
        for charge in self._charges:
            renewed = self._engine.decide(LeaseAsk([charge], self._lease, CHARGE))
            renewed.add_done_callback(_renewed)
            self._renewals.append(renewed)

    def release(self) -> "asyncio.Future[Decision] | None":
        """Give the units back, at once; the answer to that need not be awaited. None = that has been done before.

        What is being renewed is given back after that: renewed later it would be held without anybody.
        """
        if self._timer is None:
            return None
        self._timer.cancel()
        self._timer = None
        if all(renewal.done() for renewal in self._renewals):
            return _give_back(self._engine, self._charges, self._lease)
        released = self._loop.create_task(self._release_after_renewals())
        released.add_done_callback(lambda task: task.cancelled() or task.exception())  # the log has it
        return released

    async def _release_after_renewals(self) -> Decision:
        await asyncio.wait(self._renewals)
        return await _give_back(self._engine, self._charges, self._lease)

    def until_sent(self, send: Send) -> Send:
        """`send`, releasing just before the last piece of a response: whoever has read it finds the unit free."""

        async def send_and_release(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                released = self.release()
                if released is not None:
                    with contextlib.suppress(StoreUnavailable):  # it ends by itself, and the log tells
                        await asyncio.shield(released)
            await send(message)

        return send_and_release


def _renewed(answer: "asyncio.Future[Decision]") -> None:
    if answer.cancelled():
        return
    if (error := answer.exception()) is not None:
        log.warning("lease_not_renewed", error=error)
    elif not answer.result().allowed:
        log.warning("lease_lost", reason="it had ended, and others hold all units")


def _released(answer: "asyncio.Future[Decision]") -> None:
    if not answer.cancelled() and (error := answer.exception()) is not None:
        log.warning("lease_not_released", error=error)


async def taken(engine: Engine, charges: Sequence[Charge], lease: str) -> Decision:
    """The decision on what is to be held. Whoever is cancelled while he waits for it holds nothing afterwards."""
    asked = engine.decide(LeaseAsk(charges, lease))
    try:
        return await asyncio.shield(asked)
    except asyncio.CancelledError:
        asked.add_done_callback(lambda _: _give_back(engine, charges, lease))
        raise


def _give_back(engine: Engine, charges: Sequence[Charge], lease: str) -> "asyncio.Future[Decision]":
    held = [charge for charge in charges if charge.limit.leases]
    released = engine.decide(LeaseAsk(held, lease, GIVE_BACK))
    released.add_done_callback(_released)
    return released


class Holding:
    """`async with limiter.lease("alice", 3):` holds a unit while the block runs.

    Entering answers the decision. Raises NotAdmitted where no unit is free, and StoreUnavailable where nobody can tell.
    """

    def __init__(self, engine: Engine, charges: Sequence[Charge]) -> None:
        self._engine = engine
        self._charges = charges
        self._held: list[Held] = []

    async def __aenter__(self) -> Decision:
        lease = fresh()
        decision = await taken(self._engine, self._charges, lease)
        if not decision.allowed:
            raise NotAdmitted(decision)
        self._held.append(Held(self._engine, self._charges, lease))
        return decision

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        released = self._held.pop().release()
        if released is not None and kind is None:
            with contextlib.suppress(StoreUnavailable):  # it ends by itself, and the log tells
                await asyncio.shield(released)
