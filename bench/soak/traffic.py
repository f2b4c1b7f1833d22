"""Callers of all kinds, for as long as it takes, and what each account was told.

An account is a key and a limit of which nothing comes back within the run. Callers spend it together until it is used
up, and begin another. So for each it is known what must have passed: the limit, to the unit; less only what nobody can
know, that is answers that never came, or came without the store.
"""

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bench.caller import Answer, Caller, LostError
from service.limits.algorithms import ALGORITHMS

UNITS = 400
"""Of an account."""
REFUSALS = 40
"""After so many an account is used up, and what was under way has come."""


@dataclass(slots=True, eq=False)
class Account:
    """One key.

    Attributes:
        admitted: Units that were admitted by the store; a token counts once.
        unknown: Units asked for that the store may or may not have charged: nobody heard what it said.
        refused: Refusals by the store.
        under_way: Asked, and not answered yet.
    """

    key: str
    algorithm: str
    admitted: int = 0
    unknown: int = 0
    refused: int = 0
    under_way: int = 0

    @property
    def used_up(self) -> bool:
        return self.refused >= REFUSALS

    @property
    def exact(self) -> bool:
        return UNITS - self.unknown <= self.admitted <= UNITS

    def body(self) -> dict[str, Any]:
        return {"key": self.key, "limits": f"{UNITS}/year", "algorithm": self.algorithm}


@dataclass(slots=True)
class Seen:
    """What all callers saw together.

    Attributes:
        answers: By question and status.
        wrong: Answers that should not have been, in words; the first few.
        lost: Questions without a whole answer.
        degraded: Decisions without the store.
        done: Accounts that are used up.
        latencies_s: Of all answers.
    """

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    degraded: int = 0
    done: list[Account] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


class Traffic:
    """The callers.

    Args:
        port: Of the service.
        connections: As many callers.
    """

    def __init__(self, port: int, connections: int) -> None:
        self.seen = Seen()
        self._port = port
        self._connections = connections
        self._random = random.Random(17)
        self._numbers = itertools.count()
        self._tokens = itertools.count()
        self._open = {name: self._account(name) for name in ALGORITHMS}
        self._ended = False
        self._kinds = {
            self._spend: 60,
            self._spend_once: 10,
            self._many: 8,
            self._short: 10,
            self._look: 5,
            self._wrong: 4,
            self._health: 3,
        }

    def _account(self, algorithm: str) -> Account:
        return Account(key=f"account-{next(self._numbers)}", algorithm=algorithm)

    async def run(self) -> None:
        """Until `end`."""
        await asyncio.gather(*(self._caller() for _ in range(self._connections)))

    def end(self) -> None:
        self._ended = True

    async def _caller(self) -> None:
        kinds, weights = list(self._kinds), list(self._kinds.values())
        async with Caller(self._port) as caller:
            while not self._ended:
                await self._random.choices(kinds, weights)[0](caller)
                await asyncio.sleep(self._random.random() * 0.01)

    async def _ask(
        self, caller: Caller, kind: str, good: tuple[int, ...], path: str, *more: Any, **named: Any
    ) -> Answer:
        """Raises LostError."""
        try:
            answer = await caller.ask(path, *more, **named)
        except LostError:
            self.seen.lost += 1
            raise
        self.seen.answers[f"{kind} {answer.status}"] += 1
        self.seen.latencies_s.append(answer.seconds)
        if answer.status not in good:
            self._tell(f"{kind}: {answer.status} {answer.body}")
        return answer

    def _tell(self, wrong: str) -> None:
        if len(self.seen.wrong) < 10:
            self.seen.wrong.append(wrong)

    # ── accounts ─────────────────────────────────────────────────────────────────────────────────────────────

    def _pick(self) -> Account:
        name = self._random.choice(list(ALGORITHMS))
        account = self._open[name]
        if account.used_up:
            account = self._open[name] = self._account(name)
        return account

    async def _spend(self, caller: Caller) -> None:
        account = self._pick()
        account.under_way += 1
        try:
            answer = await self._ask(caller, "spend", (200,), "/v1/check", account.body())
        except LostError:
            account.unknown += 1
        else:
            self._put_down(account, answer.body)
        finally:
            self._return(account)

    async def _spend_once(self, caller: Caller) -> None:
        """With a token, until there is an answer: charged once."""
        account, token = self._pick(), {"idempotency-key": f"token-{next(self._tokens)}"}
        account.under_way += 1
        try:
            for _ in range(5):
                try:
                    answer = await self._ask(caller, "token", (200,), "/v1/check", account.body(), headers=token)
                except LostError:
                    continue
                self._put_down(account, answer.body)
                return
            account.unknown += 1
        finally:
            self._return(account)

    def _put_down(self, account: Account, told: dict[str, Any]) -> None:
        if told.get("degraded"):
            self.seen.degraded += 1
            account.unknown += 1
        elif told["allowed"]:
            account.admitted += 1
        else:
            account.refused += 1

    def _return(self, account: Account) -> None:
        account.under_way -= 1
        if account.used_up and account.under_way == 0 and account not in self.seen.done:
            self.seen.done.append(account)

    # ── others ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _many(self, caller: Caller) -> None:
        checks = [{"key": f"many-{self._random.randrange(500)}", "limits": "5/second;100/minute"} for _ in range(20)]
        await self._quietly(caller, "many", (200,), "/v1/check", {"checks": checks})

    async def _short(self, caller: Caller) -> None:
        body = {"key": f"short-{self._random.randrange(200)}", "limits": "3/second;20/minute", "algorithm": "gcra"}
        await self._quietly(caller, "short", (200,), "/v1/check", body)

    async def _look(self, caller: Caller) -> None:
        await self._quietly(caller, "look", (200,), "/v1/check", {**self._pick().body(), "peek": True})

    async def _wrong(self, caller: Caller) -> None:
        body = self._random.choice([{"key": "k", "limits": "1/fortnight"}, {"key": "k", "limits": "1/day", "cost": 2}])
        await self._quietly(caller, "wrong", (422,), "/v1/check", body)

    async def _health(self, caller: Caller) -> None:
        await self._quietly(caller, "health", (200,), "/health")

    async def _quietly(self, caller: Caller, *what: Any) -> None:
        try:
            await self._ask(caller, *what)
        except LostError:
            return
