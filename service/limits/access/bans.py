"""Bans: whoever is refused too often is refused everything, for a while.

    refused      counted by this worker, and charged to a counter of all workers a few times a second
    one too many that counter is used up: the ban is marked in the store, which fixes its end, and posted on a board
    banned       each worker that has heard of it refuses by itself, without asking the store
    over         at the end that all know

So every refusal of every worker counts once, and a flood costs a worker at most 50 calls a second until it is banned,
and none afterwards. A ban holds in the worker that found it at once, and in the others as soon as they read the board.
Refusals by the ban itself do not prolong it; those by counters that several newcomers share ban nobody, nor do those
that were decided without the store.
"""

import asyncio
import contextlib
import contextvars
import itertools
from dataclasses import dataclass, field

from service.errors import ConfigurationError, InvalidLimit, StoreUnavailable
from service.limits import keys
from service.limits.board import Board
from service.limits.decision import DEBIT, Ask, Charge, Decision, Standing
from service.limits.engine import Engine
from service.limits.limit import Limit
from service.logs import events

log = events()

COUNT_EVERY_S = 0.02
"""Between two calls that charge refusals."""
TELL_EVERY_S = 1.0
"""Between two lines in the log about bans."""
MOST_AT_ONCE = 512
"""Identities whose refusals are charged together: requests wait behind them."""
MOST_NOTED = 65_536
"""Identities refused between two calls; more are not counted."""
MOST_KNOWN = 65_536
"""Bans a worker knows; beyond, those it has known longest are forgotten."""

EVERYBODY = b"*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """When somebody is banned, and for how long.

    Attributes:
        after: So many refusals; at least 1.
        within_s: Within so many seconds from the first.
        for_s: Banned for so many seconds; at least `within_s`.
        limit: The same as a limit, called "ban": what headers and answers show.
        mark: The limit whose used-up counter says that the ban has begun, and when it ends.
    """

    after: int
    within_s: int = 60
    for_s: int = 600
    limit: Limit = field(init=False, compare=False)
    mark: Limit = field(init=False, compare=False)

    def __post_init__(self) -> None:
        try:
            for name, amount, window_s in (("limit", self.after, self.within_s), ("mark", 1, self.for_s)):
                # nothing is counted by this worker alone while the store is away
                object.__setattr__(self, name, Limit(amount=amount, window_s=window_s, name="ban", on_outage="deny"))
        except (InvalidLimit, TypeError) as error:
            raise ConfigurationError(
                f"ban after {self.after} in {self.within_s} s, for {self.for_s} s: {error}"
            ) from None
        if self.for_s < self.within_s:
            raise ConfigurationError(
                f"ban: for_s {self.for_s} is less than within_s {self.within_s}: it would begin again when it ends"
            )

    @classmethod
    def parse(cls, text: str, for_s: int) -> "Ban":
        """A rule as settings have it: refusals as a limit, and for how long. Raises ConfigurationError."""
        limits = Limit.parse(text)
        if len(limits) != 1:
            raise ConfigurationError(f'ban "{text}": write one limit, such as "100/minute"')
        return cls(after=limits[0].amount, within_s=limits[0].window_s, for_s=for_s)


class Bans:
    """The bans of a limiter.

    Args:
        ban: The rule.
        engine: Counts refusals.
        prefix: Of the keys.
    """

    def __init__(self, ban: Ban, engine: Engine, prefix: str) -> None:
        self.ban = ban
        self._engine = engine
        self._refused = keys.around(prefix, "b.refused", ban.limit.spelling)
        self._marked = keys.around(prefix, "b.banned", ban.mark.spelling)
        self.board = Board(engine, keys.board(prefix, "bans"), ban.for_s, self._heard)
        self._until_us: dict[bytes, int] = {}
        self._noted: dict[bytes, int] = {}
        self._counting: set[asyncio.Task[None]] = set()
        self._told_s = -TELL_EVERY_S
        self._untold = 0

    def refusal(self, who: bytes) -> Decision | None:
        """The refusal of somebody who is banned; None of anybody else."""
        until_us = self._until_us.get(who)
        if until_us is None:
            return None
        now_us = self.board.now_us()
        left_us = until_us - now_us
        if left_us <= 0:
            self._until_us.pop(who, None)
            return None
        return Decision(False, now_us, (Standing(self.ban.limit, 1, 0, left_us, left_us, left_us),))

    def note(self, who: bytes) -> None:
        """Count a refusal; soon, and nobody waits for it."""
        if who not in self._noted and len(self._noted) >= MOST_NOTED:
            return
        self._noted[who] = self._noted.get(who, 0) + 1
        if not self._counting:
            self._begin()

    async def counted(self) -> None:
        """Until all refusals noted so far are counted. For tests, and before the end."""
        while self._counting:
            await asyncio.gather(*self._counting, return_exceptions=True)

    async def lift(self, who: bytes = EVERYBODY) -> None:
        """Tell all workers that somebody is banned no more; the counters are the caller's to forget."""
        self.lift_here(who)
        await self.board.post(b"0 " + who)

    def lift_here(self, who: bytes = EVERYBODY) -> None:
        """The same, in this worker."""
        for noted in (self._until_us, self._noted):
            if who == EVERYBODY:
                noted.clear()
            else:
                noted.pop(who, None)

    def _begin(self) -> None:
        task = asyncio.get_running_loop().create_task(self._count(), context=contextvars.Context())
        self._counting.add(task)
        task.add_done_callback(self._counting.discard)

    async def _count(self) -> None:
        while self._noted:
            noted = dict(itertools.islice(self._noted.items(), MOST_AT_ONCE))
            for who in noted:
                del self._noted[who]
            asks = [_ask(self._refused, self.ban.limit, who, times) for who, times in noted.items()]
            answers = await asyncio.gather(*map(self._engine.decide, asks), return_exceptions=True)
            for who, answer in zip(noted, answers, strict=True):
                if isinstance(answer, Decision) and answer.standings[0].remaining == 0:
                    with contextlib.suppress(StoreUnavailable):  # then the next refusal bans
                        await self._start(who)
            await asyncio.sleep(COUNT_EVERY_S)

    async def _start(self, who: bytes) -> None:
        """Mark the ban, which two workers may do at once: the first one's end holds."""
        decision = await self._engine.decide(_ask(self._marked, self.ban.mark, who, 1))
        until_us = decision.at_us + decision.standings[0].reset_us
        await self.board.post(b"%d %s" % (until_us, who))
        self._tell(who)

    def _heard(self, message: bytes, now_us: int) -> None:
        until, _, who = message.partition(b" ")
        until_us = int(until)
        if until_us == 0:
            self.lift_here(who)
        elif until_us > now_us:
            if len(self._until_us) >= MOST_KNOWN and who not in self._until_us:
                del self._until_us[next(iter(self._until_us))]
            self._until_us[who] = until_us

    def _tell(self, who: bytes) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s < TELL_EVERY_S:  # a flood is one line a second
            self._untold += 1
            return
        log.warning("banned", identity=who.decode(), for_s=self.ban.for_s, others=self._untold)
        self._told_s, self._untold = now_s, 0


def _ask(around: tuple[bytes, bytes], limit: Limit, who: bytes, cost: int) -> Ask:
    return Ask([Charge(limit, around[0] + who + around[1], cost)], DEBIT)
