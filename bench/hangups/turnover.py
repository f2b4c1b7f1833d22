"""Workers come and go under load: recycling, SIGHUP, handover, kill -9, a stuck event loop, SIGTERM."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from bench.hangups.client import Crew, InconclusiveError, Tally
from bench.hangups.report import Fact, Row, no_errors, row
from bench.hangups.servers import Kind, Options, alive
from bench.hangups.stage import Held, Size, Stage, now_ms, sorted_out, stage
from bench.hangups.watch import Watch
from bench.promises import Check, at_least, at_most, exactly

THINKERS = Crew(
    name="thinkers", clients=32, every=((3, "GET /work"),), think_ms=(0, 1_200), spread_ms=1_200, own_connections=True
)
"""Users with a connection each, which is idle most of the time."""

STREAMS = Crew(name="streams", clients=12, wish="GET /stream?chunks=20&every_ms=100")
"""Two seconds each; another is opened when one is whole, on the same connection if it is still there."""

DRAIN_S = 8
"""In the first half of it every user comes back once, and a stream that is then opened anew ends before it is over."""

SHORT_DRAIN_S = 4
"""The same without streams."""


def _open_to_strangers(watch: Watch, size: Size, *, but: int = 0) -> list[Check]:
    return [
        at_most("new connections refused or reset", watch.refused, but),
        at_most("longest time in which nobody answered", watch.silence_s, 2 * size.patience, " s"),
    ]


def recycle(kind: Kind, size: Size, workers: int) -> Row:
    """Workers are replaced after so many requests."""
    recycles = size.share(20, least=3)
    most = max(20, int(size.requests / (recycles + workers) / 1.1))
    options = Options(workers=workers, max_requests=most, drain_s=SHORT_DRAIN_S)
    with stage(kind, options, size.load, THINKERS) as on:

        def replaced() -> int:
            return len(on.client.progress("load").answered_by) - workers

        start = time.monotonic()
        on.client.answered("load", size.requests, within_s=size.cap_s)
        with contextlib.suppress(InconclusiveError):  # the check below says it
            on.client.until(lambda: replaced() >= recycles, within_s=size.cap_s, what="recycles")
        took_s, found = time.monotonic() - start, replaced()
        tallies = on.client.stop()
        silence_s = on.watch.silence_s
        checks = [
            no_errors(*tallies.values()),
            exactly("answers 200", sum(tally.answers(200) for tally in tallies.values()), _requests(tallies)),
            at_least("workers replaced", found, recycles),
            *_open_to_strangers(on.watch, size),
        ]
    facts: dict[str, Fact] = {
        "recycles": found,
        "took_s": took_s,
        **_usual(tallies["load"]),
        "longest_silence_s": silence_s,
    }
    return row(f"recycle-{workers}", on.server, tallies.values(), checks=checks, facts=facts)


def _usual(load: Tally) -> dict[str, Fact]:
    share = load.requests / load.opened if load.opened else 0
    return {"requests_a_connection": round(share)}


def hup(kind: Kind, size: Size) -> Row:
    """Rolling replacement of all workers."""
    return _turned("hup", kind, size, size.share(4, least=2), lambda on: on.server.signal(signal.SIGHUP))


def hup_streams(kind: Kind, size: Size) -> Row:
    """The same with streams open, all of which shall come whole."""
    times = size.share(4, least=1)
    return _turned("hup-streams", kind, size, times, lambda on: on.server.signal(signal.SIGHUP), STREAMS)


def handover(kind: Kind, size: Size) -> Row:
    """The whole service is replaced, behind the same socket where the server can do that."""
    times = size.share(2, least=1)
    found = _turned("handover", kind, size, times, lambda on: on.server.hand_over())
    itself = exactly("times the parent replaced itself", found.events.get("handover", 0), times)
    return replace(found, checks=(*found.checks, itself)) if kind is Kind.OURS else found


def _turned(name: str, kind: Kind, size: Size, times: int, event: Callable[[Stage], None], *beside: Crew) -> Row:
    drain_s = DRAIN_S if beside else SHORT_DRAIN_S
    options = Options(workers=size.workers or 2, drain_s=drain_s)
    took: list[float | None] = []
    with stage(kind, options, size.load, THINKERS, *beside) as on:
        for number in range(times):
            on.client.answered("load", size.requests * (number + 1) // (times + 1), within_s=size.cap_s)
            for crew in beside:
                _all_open(on, crew)
            took.append(on.turn(lambda: event(on), on.workers, within_s=size.cap_s))
        on.client.answered("load", size.requests, within_s=size.cap_s)
        former = set(on.watch.first) - set(sorted(on.watch.first, key=on.watch.first.__getitem__)[-on.workers :])
        gone = on.gone(former, within_s=(drain_s + 10) * size.patience)
        running = on.server.running
        tallies = on.client.stop()
        load = tallies["load"]
        checks = [
            no_errors(*tallies.values()),
            exactly("answers 200", sum(tally.answers(200) for tally in tallies.values()), _requests(tallies)),
            exactly("turnovers that brought new workers", sum(s is not None for s in took), times),
            exactly("former workers ended", gone is not None, True),
            exactly("the parent runs", running, True),
            *_open_to_strangers(on.watch, size),
        ]
        facts: dict[str, Fact] = {"times": times, "new_workers_after_s": max(s or 0.0 for s in took), **_usual(load)}
        facts["longest_silence_s"] = on.watch.silence_s
    for crew in beside:
        facts[f"{crew.name}_whole"] = f"{tallies[crew.name].answers(200)} of {tallies[crew.name].requests}"
    return row(name, on.server, tallies.values(), checks=checks, facts=facts)


def _all_open(on: Stage, crew: Crew) -> None:
    on.client.until(
        lambda: on.client.progress(crew.name).open >= crew.clients, within_s=30, what=f"{crew.clients} open {crew.name}"
    )


def _requests(tallies: dict[str, Tally]) -> int:
    return sum(tally.requests for tally in tallies.values())


def kill9(kind: Kind, size: Size) -> Row:
    """One of the workers is killed."""
    options = Options(workers=size.workers or 4)
    slow = replace(size.load, every=((2, "GET /work?ms=50"),))  # so that there is something under way
    with stage(kind, options, slow) as on:
        on.client.answered("load", size.requests // 2, within_s=size.cap_s)
        mark = on.client.mark()["load"]
        victim = max((pid for pid in mark.connections if pid), key=lambda pid: mark.connections[pid])
        gone_ms: list[int] = []
        replaced_s = on.turn(lambda: gone_ms.append(_killed(victim)), 1, within_s=size.cap_s)
        on.client.answered("load", size.requests, within_s=size.cap_s)
        load = on.client.stop()["load"]
        held = mark.connections[victim] + mark.connections.get(None, 0)
        lost, others = sorted_out(load.failures, victim, gone_ms[0])
        late = sum(failure.started_ms > gone_ms[0] for failure in lost)
        checks = [
            exactly("errors on other workers", len(others), 0),
            at_most("requests lost with the worker", len(lost), held),
            exactly("answers other than 200", load.requests - load.answers(200) - load.errors, 0),
            at_most("replacement serving", replaced_s, 1.5 * size.patience, " s"),
            *_open_to_strangers(on.watch, size, but=1),  # the one it may just have accepted
        ]
    facts: dict[str, Fact] = {"connections_it_held": held, "under_way": mark.underway.get(victim, 0)}
    facts |= {"lost": len(lost), "of_these_sent_after_its_end": late, "replacement_after_s": replaced_s}
    return row("kill9", on.server, [load], checks=checks, facts=facts)


def _killed(pid: int) -> int:
    """Kill a process: when it was gone, Unix time in ms. Its connections live until then, and are sent to."""
    os.kill(pid, signal.SIGKILL)
    while alive(pid):
        time.sleep(0.0005)
    return now_ms()


def stuck(kind: Kind, size: Size, *, block_s: float = 12) -> Row:
    """A coroutine blocks the loop of a worker for a while."""
    options = Options(workers=size.workers or 4, request_timeout_s=30, drain_s=SHORT_DRAIN_S)
    with stage(kind, options, size.load) as on:
        on.client.answered("load", size.requests // 4, within_s=size.cap_s)
        with Held(on.server.port, f"/block?s={block_s:g}") as blocked:
            replaced_s = on.turn(lambda: None, 1, within_s=block_s + 5)
            fate = blocked.settled(within_s=block_s + 30)
            gone_s = on.gone({blocked.worker}, within_s=(SHORT_DRAIN_S + 10) * size.patience if replaced_s else 0)
        on.client.answered("load", size.requests, within_s=size.cap_s)
        load = on.client.stop()["load"]
        checks = [
            no_errors(load),
            exactly("answers 200", load.answers(200), load.requests),
            at_most("replacement serving", replaced_s, 5 * size.patience, " s"),
            Check(promise="the blocked request is answered", held=fate in {"200", "504"}, found=fate),
            exactly("the stuck worker ended after it came back", gone_s is not None, True),
        ]
    facts = _of_stuck(load, blocked.worker, replaced_s)
    return row("stuck", on.server, [load], checks=checks, facts={**facts, "blocked_request": fate})


def stuck_forever(kind: Kind, size: Size, *, request_timeout_s: float = 8) -> Row:
    """A coroutine blocks the loop of a worker for good."""
    options = Options(workers=size.workers or 4, request_timeout_s=request_timeout_s, drain_s=SHORT_DRAIN_S)
    if kind is Kind.STOCK:
        options = replace(options, request_timeout_s=None)
    load_crew = replace(size.load, timeout_ms=round(request_timeout_s * 1000 * (1 + size.patience)))
    with stage(kind, options, load_crew) as on:
        on.client.answered("load", size.requests // 4, within_s=size.cap_s)
        held = on.client.mark()["load"].connections
        with Held(on.server.port, "/block?s=3600") as blocked:
            start = time.monotonic()
            limit_s = request_timeout_s + 5
            replaced_s = on.turn(lambda: None, 1, within_s=limit_s * size.patience)
            on.gone({blocked.worker}, within_s=start + limit_s * size.patience - time.monotonic())
            ended_s = None if alive(blocked.worker) else time.monotonic() - start
            ended_ms = now_ms()
            on.client.answered("load", size.requests, within_s=size.cap_s)
            load = on.client.stop()["load"]
        lost, others = sorted_out(load.failures, blocked.worker, ended_ms)
        checks = [
            exactly("errors on other workers", len(others), 0),
            at_most("requests lost with the worker", len(lost), held.get(blocked.worker, 0) + held.get(None, 0)),
            exactly("answers other than 200", load.requests - load.answers(200) - load.errors, 0),
            at_most("replacement serving", replaced_s, 5 * size.patience, " s"),
            at_most("the stuck worker ended", ended_s, limit_s * size.patience, " s"),
        ]
    facts = _of_stuck(load, blocked.worker, replaced_s)
    facts |= {"connections_it_held": held.get(blocked.worker, 0), "lost": len(lost), "ended_after_s": ended_s}
    return row("stuck-forever", on.server, [load], checks=checks, facts=facts)


def _of_stuck(load: Tally, worker: int, replaced_s: float | None) -> dict[str, Fact]:
    slowest = max((ms for pid, ms in load.slowest_ms.items() if pid != worker), default=0)
    return {"replacement_after_s": replaced_s, "slowest_answer_of_others_s": slowest / 1000}


def sigterm_streams(kind: Kind, size: Size) -> Row:
    """The service is told to stop while streams are open: the short ones come whole, the endless are cut."""
    drain_s = 3
    short = Crew(name="short", clients=6, requests=6, wish="GET /stream?chunks=15&every_ms=100")
    endless = Crew(name="endless", clients=6, requests=6, wish="GET /stream?chunks=100000&every_ms=100")
    options = Options(workers=size.workers or 2, drain_s=drain_s if kind is Kind.OURS else None)
    with stage(kind, options, short, endless) as on:
        _all_open(on, short)
        _all_open(on, endless)
        workers = on.watch.alive()
        on.server.signal(signal.SIGTERM)
        took_s = on.server.ended(within_s=(drain_s + 5) * size.patience)
        left = sum(alive(pid) for pid in workers)
        on.server.close()
        tallies = on.client.stop()
    checks = [
        at_most("the end", took_s, drain_s + 1.5 * size.patience, " s"),
        exactly("workers left behind", left, 0),
        exactly("short streams whole", tallies["short"].answers(200), 6),
        exactly("endless streams cut", tallies["endless"].errors, 6),
    ]
    facts: dict[str, Fact] = {"drain_cap": f"{options.drain_s or 'no'} s", "ended_after_s": took_s}
    facts["short_streams_whole"] = f"{tallies['short'].answers(200)} of 6"
    return row("sigterm-streams", on.server, tallies.values(), checks=checks, facts=facts)
