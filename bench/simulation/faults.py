"""What goes wrong in a run, and when: drawn from its seed. One run in eight is left in peace."""

from dataclasses import dataclass
from random import Random

from bench.simulation.network import Fate
from service.limits.limit import ON_OUTAGE, OnOutage

SECOND_US = 1_000_000

FOR_US = {
    "rough": (200_000, 2_000_000),
    "sleep": (50_000, 1_500_000),
    "crash": (10_000, 1_000_000),
    "partition": (100_000, 1_500_000),
    "full": (50_000, 500_000),
}
"""How long each lasts, least and most; what is not here happens in an instant."""

EVENTS = (*FOR_US, "flush", "save", "clock", "kill", "retire")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happens.

    Attributes:
        at_us: When.
        name: One of `EVENTS`.
        for_us: How long it lasts.
        number: Which worker, or by how many microseconds a clock is set.
        keeps: What a crash leaves: "all", "saved", "nothing".
    """

    at_us: int
    name: str
    for_us: int = 0
    number: int = 0
    keeps: str = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run.

    Attributes:
        workers, clients: Of each kind, a worker.
        length_us: How long clients ask.
        delay_us, late_us: A message's way, least and most.
        fates: Shares of messages, while it is rough.
        leaving: Share of callers who may leave before they are answered.
        on_outage: What is answered while the server is away.
        events: In order of time.
    """

    workers: int
    clients: int
    length_us: int
    delay_us: tuple[int, int]
    late_us: tuple[int, int]
    fates: dict[Fate, float]
    leaving: float
    on_outage: OnOutage
    events: tuple[Event, ...]

    @property
    def peaceful(self) -> bool:
        """Nothing goes wrong; callers may leave."""
        return not self.events


def draw(random: Random) -> Plan:
    """The plan of a seed."""
    length_us = random.randint(3, 8) * SECOND_US
    workers = random.randint(1, 5)
    events: list[Event] = []
    if random.random() > 1 / 8:
        kinds = random.sample(EVENTS, random.randint(1, 5))
        for kind in kinds:
            for _ in range(random.randint(1, 3)):
                events.append(_event(random, kind, length_us, workers))
    fates: dict[Fate, float] = {fate: random.choice((0, 0.02, 0.1)) for fate in Fate if fate is not Fate.FINE}
    return Plan(
        workers=workers,
        clients=random.randint(1, 2),
        length_us=length_us,
        delay_us=random.choice([(30, 200), (100, 5_000), (500, 10_000)]),
        late_us=(50_000, 900_000),
        fates=fates,
        leaving=random.choice([0, 0.1, 0.3]),
        on_outage=random.choice(ON_OUTAGE),
        events=tuple(sorted(events, key=lambda event: event.at_us)),
    )


def _event(random: Random, name: str, length_us: int, workers: int) -> Event:
    number = random.randrange(workers)
    if name == "clock":
        size = random.choice([1_000, 100_000, SECOND_US, 10 * SECOND_US, 100 * SECOND_US])
        number = random.choice([-1, 1]) * random.randint(1, size)
    return Event(
        at_us=random.randint(0, length_us),
        name=name,
        for_us=random.randint(*FOR_US.get(name, (0, 0))),
        number=number,
        keeps=random.choice(["all", "all", "saved", "nothing"]),
    )
