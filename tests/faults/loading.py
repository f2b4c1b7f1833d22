"""Load that goes on while something is done to Redis, and what its callers saw."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from service.errors import StoreUnavailable
from service.limits import keys
from service.limits.decision import LOOK, Ask, Charge
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.stores import opener

DEADLINE_S = 1.0
"""Of a decision; generous, for the tests' machine is busy."""
SLACK_S = 4.0
"""On top of a promised time, for the same reason."""


def engine_of(url, deadline_s=DEADLINE_S):
    """One that says so when the store does not decide."""
    return Engine(opener(url, timeout_s=deadline_s), deadline_s, fallback=Fallback("deny"))


def key(identity, limit):
    return keys.spell("", identity, "faults", limit.spelling)


def ask(identity, *limits, cost=1):
    return Ask([Charge(limit, key(identity, limit), cost) for limit in limits])


async def answered(engine, what, within_s=10):
    """The decision, as soon as there is one; and the errors until then."""
    errors = []
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await engine.decide(what), errors
            except StoreUnavailable as error:
                errors.append(error)
            await asyncio.sleep(0.02)


async def counted(url, names, *limits):
    """Units charged to each."""
    engine = engine_of(url, 10)
    looks = [Ask(ask(name, *limits, cost=0).charges, LOOK) for name in names]
    found = []
    for look in looks:
        decision, _ = await answered(engine, look)
        found.append(sum(standing.limit.capacity - standing.remaining for standing in decision.standings))
    await engine.aclose()
    return found


@dataclass
class Load:
    """Askers that ask until the end of `async with Load(engines, ask_of, names) as load`.

    Attributes:
        engines: Asked in turn.
        ask_of: Makes the ask of an identity.
        names: The identities, each asked by one asker after the other.
        askers: How many ask at once.
        pause_s: How long one rests after an answer, on average.
        admitted, refused: By identity.
        errors: When, of whom, and what.
        stalls: When this process was not given the CPU for a while: what failed then proves nothing of Redis.
    """

    engines: list
    ask_of: object
    names: list
    askers: int = 16
    pause_s: float = 0.004
    admitted: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    errors: list = field(default_factory=list)
    stalls: list = field(default_factory=list)
    began_s: float = 0.0

    async def __aenter__(self):
        self.began_s = time.monotonic()
        self._over = False
        self._tasks = [asyncio.create_task(self._go(number)) for number in range(self.askers)]
        self._tasks.append(asyncio.create_task(self._beat()))
        return self

    async def __aexit__(self, *_):
        self._over = True  # whoever waits for an answer gets it
        await asyncio.gather(*self._tasks)
        for engine in self.engines:
            await engine.aclose()

    async def _go(self, number):
        dice = random.Random(number)
        while not self._over:
            name = dice.choice(self.names)
            try:
                decision = await self.engines[number % len(self.engines)].decide(self.ask_of(name))
            except StoreUnavailable as error:  # anything else ends the test
                self.errors.append((time.monotonic(), name, error))
            else:
                (self.admitted if decision.allowed else self.refused)[name] += 1
            await asyncio.sleep(dice.uniform(0, 2 * self.pause_s))

    async def _beat(self):
        while not self._over:
            at_s = time.monotonic()
            await asyncio.sleep(0.01)
            if time.monotonic() - at_s > DEADLINE_S / 4:
                self.stalls.append(time.monotonic())

    def unexplained(self, begin=0):
        """Errors from the `begin`th on, but for those while this process stood still, or just had."""
        return [
            one for one in self.errors[begin:] if not any(-0.5 < one[0] - at < DEADLINE_S + 0.5 for at in self.stalls)
        ]

    async def quiet(self, for_s, within_s):
        """Wait until nobody has seen an error for so long. Fails if that does not come."""
        deadline = time.monotonic() + within_s
        since = time.monotonic()
        while time.monotonic() - since < for_s:
            assert time.monotonic() < deadline, f"errors still, as {self.errors[-1][2]}"
            await asyncio.sleep(0.02)
            if self.errors:
                since = max(since, self.errors[-1][0])

    async def until(self, true, within_s=30):
        """Wait for it. Fails if that does not come."""
        async with asyncio.timeout(within_s):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def last_error_s(self, after_s):
        """Seconds from then until the last error; 0 if there was none."""
        return max([at - after_s for at, _, _ in self.errors], default=0.0)

    def words(self):
        return {str(error) for _, _, error in self.errors}
