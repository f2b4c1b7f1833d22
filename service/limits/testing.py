"""A pytest plugin for apps that use the limiter: no Redis to start, no time to wait for.

    # conftest.py
    pytest_plugins = ["service.limits.testing"]

    # test_chat.py; starlette's TestClient needs httpx2
    from fastapi.testclient import TestClient
    from chat import app

    def test_a_spent_quota_is_told(onequota):
        client = TestClient(app, client=("203.0.113.7", 50000))
        onequota.attach(app)                       # fakeredis behind app.state.limiter, until the test ends
        onequota.exhaust("203.0.113.7")            # what the key function answers
        wait_s = onequota.assert_limited(client.post("/chat"))
        onequota.clock.advance(wait_s)
        assert client.post("/chat").status_code == 200

The script that decides is the real one, on fakeredis; a test that must hold on a real server needs a real server.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from service.limits import keys
from service.limits.decision import CHARGE, LOOK, Ask
from service.limits.limiter import Limiter
from service.limits.stores.fake import FakeServerOpener, FakeStore
from service.limits.stores.memory import wall_clock_us


class Clock:
    """The limiter's clock in a test: stands still until it is moved."""

    def __init__(self) -> None:
        self.now_us = wall_clock_us()

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`, 0 or more."""
        if seconds < 0:
            raise ValueError(f"advance {seconds}: the clock only moves on")
        self.now_us += round(seconds * 1_000_000)


class Onequota:
    """What the fixture gives.

    Attributes:
        clock: The time limiters see while attached.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self._server = FakeServerOpener(lambda: self.clock.now_us)
        self._attached: list[tuple[Limiter, Any]] = []
        self._marks: list[bytes] = []
        self._spent: set[bytes] = set()

    def attach(self, target: Any) -> Limiter:
        """Put fakeredis behind a limiter, or behind the one of an app, until the test ends."""
        limiter = target if isinstance(target, Limiter) else getattr(target.state, "limiter", None)
        if not isinstance(limiter, Limiter):
            raise TypeError(f"attach takes a service.limits.Limiter or an app with app.state.limiter, not {target!r}")
        self._attached.append((limiter, limiter.engine.open_store))
        limiter.engine.use(self._open)
        return limiter

    def exhaust(self, key: str | None = None) -> None:
        """Spend all that is left of every limit of this identity; None: of everybody."""
        self._marks.append(b"" if key is None else b":{" + keys.who(key) + b"}:")
        self._spent.clear()

    @staticmethod
    def assert_limited(response: Any, name: str | None = None) -> int:
        """The response is an honest refusal (by the limit `name`, if given). Answers its Retry-After, seconds."""
        assert response.status_code == 429, f"expected 429, got {response.status_code}"
        wait = response.headers.get("retry-after", "")
        assert wait.isdigit() and int(wait) >= 1, f"expected whole seconds in Retry-After, got {wait!r}"
        if name is not None:
            policies = response.json().get("violated-policies", [])
            assert name in policies, f"expected a refusal by {name!r}, got {policies}"
        return int(wait)

    def detach(self) -> None:
        """Give every limiter its own store back; the fixture does so."""
        while self._attached:
            limiter, open_store = self._attached.pop()
            limiter.engine.use(open_store)

    def _open(self) -> FakeStore:
        return _Exhaustible(self, self._server())

    def wants_spent(self, key: bytes) -> bool:
        """Whether a counter is to be exhausted and has not been since."""
        if key in self._spent or not any(mark in key for mark in self._marks):
            return False
        self._spent.add(key)
        return True


class _Exhaustible(FakeStore):
    """Spends what `exhaust` names just before it is asked for, in the store itself: headers and waits are real."""

    def __init__(self, harness: Onequota, store: FakeStore) -> None:
        super().__init__(store.client, store.clock)
        self._harness = harness

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        for charge in [charge for ask in asks if ask.kind in (CHARGE, LOOK) for charge in ask.charges]:
            if self._harness.wants_spent(charge.key):
                look = await super().decide([Ask([charge], LOOK)])
                await super().decide([Ask([charge._replace(cost=look[1])])])
        return await super().decide(asks)


@pytest.fixture
def onequota() -> Iterator[Onequota]:
    """Fakeredis behind your limiters, a clock to move, `exhaust(key)`, `assert_limited(response)`."""
    harness = Onequota()
    yield harness
    harness.detach()
