"""One seed, from the first ask to the last answer."""

import asyncio
import contextlib
import hashlib
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from bench.simulation.faults import Event, Plan, draw
from bench.simulation.fleet import DEADLINE_S, LONG, Fleet, MakeStore, Worker, charge
from bench.simulation.ledger import Ledger
from bench.simulation.loop import StuckError, VirtualLoop, virtual_loop
from bench.simulation.network import Link, Server, SimulatedStore, Wires
from service.limits.fallback import Fallback

TAIL = 40
"""Steps that a report of a failure shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of a seed.

    Attributes:
        broken: The promise that did not hold; None = all did.
        trace: A digest of every step: equal runs, equal traces.
        last: The last steps.
        length_us: Virtual time.
        counts: How often what came to pass.
        events: What went wrong, by name.
    """

    seed: int
    broken: str | None
    trace: str
    last: tuple[str, ...]
    length_us: int
    counts: Counter[str]
    events: Counter[str]

    def text(self) -> str:
        """A failure, for people."""
        return "\n    ".join([f"seed {self.seed}: {self.broken}", *self.last])


def run(seed: int, make_store: MakeStore = SimulatedStore) -> Run:
    """Run a seed. `make_store`: how a worker's store is made; tests plant a bug there."""
    random.seed(seed)  # of which breakers draw when they probe
    with _silence(), virtual_loop() as loop:
        world = _World(seed, loop, make_store)
        broken = world.run()
        return Run(
            seed=seed,
            broken=broken,
            trace=world.digest.hexdigest(),
            last=tuple(world.last) if broken else (),
            length_us=loop.now_us,
            counts=world.ledger.counts,
            events=Counter(event.name for event in world.plan.events),
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Thousands of outages: none is worth a line."""
    log = logging.getLogger("onequota")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class _World:
    def __init__(self, seed: int, loop: VirtualLoop, make_store: MakeStore) -> None:
        drawn = Random(seed)
        self.loop = loop
        self.digest = hashlib.blake2b(digest_size=8)
        self.last: deque[str] = deque(maxlen=TAIL)
        self.plan: Plan = draw(drawn)
        self.ledger = Ledger(loop, DEADLINE_S, shares=self.plan.on_outage == "local")
        self.server = Server(loop, self.ledger, self.trace)
        self._make_store = make_store
        self._wires = Wires(drawn, self.plan.fates, self.plan.delay_us, self.plan.late_us)
        self._fleet = Fleet(self.plan, drawn, loop, self.ledger, self.server, self._open)
        self._retiring: list[asyncio.Task[None]] = []
        self._events: dict[str, Callable[[Event], Callable[[], object] | None]] = {
            "rough": self._rough,
            "sleep": self._sleep,
            "crash": self._crash,
            "partition": self._partition,
            "full": self._full,
            "flush": lambda _: self.server.forget_scripts(),
            "save": lambda _: self.server.save(),
            "clock": lambda event: self.server.set_clock(event.number),
            "kill": lambda event: self._fleet.kill(event.number),
            "retire": self._retire,
        }
        loop.set_exception_handler(self._unhandled)

    def trace(self, step: str) -> None:
        line = f"{self.loop.now_us} {step}"
        self.digest.update(line.encode() + b"\n")
        self.last.append(line)

    def _open(self, name: str, fallback: Fallback) -> Worker:
        link = Link(name, self.loop, self.server, self._wires, self.trace)
        return Worker(name, link, self.ledger, self._make_store, fallback)

    def _unhandled(self, _loop: Any, context: dict[str, Any]) -> None:
        self.ledger.fault(f"nobody handled: {context.get('exception') or context['message']!r}")

    def run(self) -> str | None:
        for event in self.plan.events:
            self.loop.call_at(event.at_us / 1_000_000, self._happen, event)
        try:
            return self.loop.run_until_complete(self._whole())
        except StuckError as error:
            return str(error)

    async def _whole(self) -> str | None:
        everything = asyncio.ensure_future(self._everything())
        self.ledger.broken.add_done_callback(lambda _: everything.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            await everything
        if self.ledger.broken.done():
            return self.ledger.broken.result()
        return None

    async def _everything(self) -> None:
        await self._fleet.run()
        latest_us = max((event.at_us + event.for_us for event in self.plan.events), default=0)
        await asyncio.sleep(max(0, latest_us - self.loop.now_us) / 1_000_000)
        await asyncio.sleep(2)  # what is late still comes
        living = [*self._fleet.workers, *self._fleet.retired]
        await asyncio.gather(*self._retiring)
        for worker in (*living, *self._fleet.killed):
            await worker.engine.aclose()
        await asyncio.sleep(1)
        if self.server.open:
            links = sorted(connection.link.name for connection in self.server.open.values())
            self.ledger.fault(f"engines are closed, connections are left: {', '.join(links)}")
        counters = {worker.name: worker.engine.counters for worker in living}
        self.ledger.closed(counters)
        self._expect(sum(counted.unsettled for counted in counters.values()))

    def _expect(self, unsettled: int) -> None:
        """What is exact: nothing is lost in peace, and a limit that gives nothing back is used up to the last unit."""
        without = self.ledger.counts["unavailable"] + self.ledger.counts["degraded"]
        if self.plan.peaceful and (unsettled or without):
            self.ledger.fault(f"in peace {without} were decided without the server, {unsettled} unsettled")
        for limit in LONG.values() if not self.ledger.losses else ():
            if limit.algorithm == "gcra" and self.server.steps_back:
                continue  # a clock set back by a second takes a second's part of a unit
            units, asks = self.ledger.used(charge("all", limit).key)
            if units != min(limit.capacity, asks):
                self.ledger.fault(f"{units} units of {limit.name} passed, {limit.algorithm}, asked for were {asks}")

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────

    def _happen(self, event: Event) -> None:
        self.trace(f"{event.name} {event.for_us} {event.number} {event.keeps}")
        until = self._events[event.name](event)
        if until is not None:
            self.loop.call_later(event.for_us / 1_000_000, until)

    def _rough(self, event: Event) -> Callable[[], object]:
        self._wires.rough += 1

        def calm() -> None:
            self._wires.rough -= 1

        return calm

    def _sleep(self, event: Event) -> Callable[[], object]:
        self.server.sleep()
        return self.server.wake

    def _crash(self, event: Event) -> Callable[[], object]:
        self.server.crash(event.keeps)
        return self.server.start

    def _partition(self, event: Event) -> Callable[[], object]:
        link = self._fleet.workers[event.number].link
        link.hole = True
        return link.heal

    def _full(self, event: Event) -> Callable[[], object]:
        self.server.full = True

        def empty() -> None:
            self.server.full = False

        return empty

    def _retire(self, event: Event) -> None:
        self._retiring.append(asyncio.ensure_future(self._fleet.retire(event.number)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Many seeds.

    Attributes:
        seeds: How many.
        broken: Seeds in which a promise did not hold.
        length_us: Virtual time of all.
        counts, events: Of all runs together.
    """

    seeds: int
    broken: list[int]
    length_us: int
    counts: Counter[str]
    events: Counter[str]

    def text(self) -> str:
        """Two lines for people."""
        happened = ", ".join(f"{name} {number:,}" for name, number in sorted(self.events.items()))
        became = ", ".join(f"{name} {number:,}" for name, number in sorted(self.counts.items()))
        verdict = f"broken: seeds {', '.join(map(str, self.broken))}" if self.broken else "every promise holds"
        hours = self.length_us / 3_600_000_000
        return f"{self.seeds:,} seeds, {hours:.1f} h of virtual time: {verdict}\nfaults: {happened}\nasks: {became}"

    def data(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "seeds": self.seeds,
            "broken": self.broken,
            "virtual_s": self.length_us // 1_000_000,
            "asks": dict(self.counts),
            "faults": dict(self.events),
        }


def simulate(seeds: Iterable[int], *, tell: Callable[[Run], None] = lambda _: None) -> Report:
    """Run seeds one after the other; `tell` hears of each that is broken at once."""
    report = Report(seeds=0, broken=[], length_us=0, counts=Counter(), events=Counter())
    for seed in seeds:
        one = run(seed)
        if one.broken is not None:
            report.broken.append(seed)
            tell(one)
        report.counts.update(one.counts)
        report.events.update(one.events)
        report = replace(report, seeds=report.seeds + 1, length_us=report.length_us + one.length_us)
    return report
