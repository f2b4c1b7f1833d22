"""The parent: starts workers, and replaces those that are due, dead or stuck. It serves nobody, so it never waits.

A worker is replaced in one order, whatever for: start the new one; when it serves, retire the old one; end the old
one if it outlives the drain. Nobody is retired without a successor, and one replacement is made at a time.

    starting ──▶ serving ──▶ retired ──▶ gone          recycle (max_requests), reload (SIGHUP, changed files),
        │           ├──▶ stuck ──▶ retired             handover (SIGUSR2), asked (SIGTERM to the worker)
        ▼           ▼
      failed       died: replaced at once, and ever more slowly if that goes on

Every worker has a slot, a number from 0 on, and its replacement has the same: what belongs to a slot (a share of the
limits while Redis is away) is neither lost nor doubled when processes change.

Both ends of a control socket speak lines of JSON. The worker: {"state", "requests", "due"} every half second,
{"failed": sentence} at its end. The parent: the errand first, {"status"} when it changes, {"retire": {...}}.

Signals: SIGTERM and SIGINT stop (a second SIGINT at once), SIGHUP replaces all workers, SIGUSR2 replaces this very
process as well, SIGTTIN and SIGTTOU add a worker and take one away.
"""

import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from service import logs
from service.child import Inheritance, State, Worker
from service.errors import ConfigurationError
from service.settings import Settings, working_directory
from service.status import Status
from service.systemd import notify
from service.target import Target

STUCK_S = 2.5
"""A worker whose event loop has not beaten for so long is stuck. A wrong guess costs a replacement, no request."""

TICK_S = 0.1
_ABSENT_S = 1.0  # between two ticks
_GRACE_S = 5.0  # for a worker that is found stuck, to come back
_END_S = 2.0  # for an app's lifespan to end, after the drain; when the service stops, a tenth of the drain at most
_UNWANTED_S = (
    5.0  # a start that newer code has overtaken; it is not ended at once, or a storm of changes lets none serve
)
_BRIEF_S = 0.2  # for a request that is on its way
_STOP_LINGER_S = 2.0  # how long an idle connection may still ask a server that stops
_STEADY_S = 10.0  # a worker that lived so long did not die of its start
_SLOWEST_S = 30.0  # between two starts of a worker that does not stay

_BOOT = "import sys; sys.path.insert(0, {root!r}); from service.worker import main; main({control}, {listener}, {grpc})"
_ROOT = str(Path(__file__).parent.parent)

log = logs.events()


class Supervisor:
    """Runs workers until it is told to stop.

    Args:
        settings: Already in this process's environment, where workers read them.
        listener: Bound and listening.
        grpc: The same for gRPC; None = it is not wanted.
        wanted: How many workers, at least 1.
        slots: A directory in which workers leave what those who replace them find; None = they are told no slot.
        watch: Calls its argument, from a thread of its own, when files have changed; None = no reloading.
        inherited: Workers to relieve, after a handover.
        watched: Called with the pid of every child that has ended.
        hand_over: Called after SIGUSR2, when no worker is starting; comes back only if it cannot be done, or if its
            second argument says that a signal wants to be obeyed first.
    """

    def __init__(
        self,
        settings: Settings,
        target: Target,
        listener: socket.socket,
        *,
        grpc: socket.socket | None = None,
        wanted: int,
        slots: str | None = None,
        watch: Callable[[Callable[[], None]], None] | None = None,
        inherited: Inheritance | None = None,
        watched: Callable[[int], None] = lambda _: None,
        hand_over: Callable[[Inheritance, Callable[[], bool]], None] | None = None,
    ) -> None:
        self.settings = settings
        self.target = target
        self.listener = listener
        self.grpc = grpc
        self.wanted = wanted
        self.slots = slots
        self.directory = working_directory()  # now: a link that points elsewhere later is the same name
        self.workers: list[Worker] = []
        self.started_s = inherited.started_s if inherited else time.time()
        self.recycles = inherited.recycles if inherited else 0
        self._watch = watch
        self._watched = watched
        self._hand_over = hand_over
        self._selector = selectors.DefaultSelector()
        self._signals: deque[int] = deque()
        self._queue: deque[tuple[Worker, str]] = deque()
        self._told: Status | None = None
        self._looked_s = 0.0
        self._served = inherited is not None
        self._announced = False
        self._deaths = 0  # one after another, of workers that had not lived long
        self._not_before_s = 0.0
        self._broken = False  # what is on disk does not start: wait for the next change (while reloading)
        self._hands_over = False
        self._changed = threading.Event()
        self._stopping_s: float | None = None
        self._reason: str | None = None
        for legacy in inherited.workers if inherited else ():
            worker = Worker.heir(**legacy)
            self._take(worker)
            self._queue.append((worker, "handover"))

    def run(self) -> None:
        """Until SIGTERM or SIGINT, and the drain.

        Raises:
            ConfigurationError: No worker ever served; the first one's reason.
        """
        for number in SIGNALS:
            signal.signal(number, lambda number, _: self._signals.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked across a handover
        if self._watch is not None:
            threading.Thread(target=self._watch, args=[self._changed.set], daemon=True).start()
        try:
            while self._stopping_s is None or self.workers:
                self._tick()
        finally:
            for worker in self.workers:
                worker.signal(signal.SIGKILL)
        if self._reason is not None:
            raise ConfigurationError(self._reason)

    def _tick(self) -> None:
        self._hear()
        self._obey()
        self._bury()
        if self._stopping_s is None:
            self._maybe_hand_over()
            self._look_for_stuck()
            self._look_for_slow()
            self._fill()
            self._replace_next()
        now_s = time.monotonic()
        for worker in self.workers:
            if worker.end_s is not None and now_s > worker.end_s:
                log.warning("worker_overdue", worker=worker.pid)
                worker.signal(signal.SIGKILL)
                worker.end_s = now_s + 1
        self._tell()

    # What workers say

    def _hear(self) -> None:
        for key, _ in self._selector.select(TICK_S):
            worker: Worker = key.data
            for said in worker.heard():
                worker.beat_s = time.monotonic()
                worker.failed = worker.failed or said.get("failed")
                if worker.stuck:
                    self._came_back(worker)
                if worker.due is None and said.get("due"):
                    worker.due = said["due"]
                    self._queue.append((worker, said["due"]))
                if worker.state is State.STARTING and said.get("state") == "serving":
                    self._now_serving(worker)

    def _came_back(self, worker: Worker) -> None:
        worker.stuck = False
        worker.end_s = None if worker.state is State.SERVING else time.monotonic() + self.settings.drain_s
        log.info("worker_back", worker=worker.pid)

    def _now_serving(self, worker: Worker) -> None:
        worker.state, worker.unwanted = State.SERVING, False
        self._served, self._broken = True, False
        took_s = round(time.monotonic() - worker.born_s, 2)
        log.info("worker_serving", worker=worker.pid, took_s=took_s)
        if self._stopping_s is not None:
            self._retire(worker, "stopping")
        if worker.replaces is not None:
            old, worker.replaces = worker.replaces, None
            self._retire(old, old.due or "replaced")

    def _bury(self) -> None:
        """Reap whoever has ended; as PID 1 of a container that may be strangers, left behind by an app's programs."""
        while True:
            try:
                pid, outcome = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._watched(pid)
            for worker in [worker for worker in self.workers if worker.pid == pid]:
                for said in worker.heard():
                    worker.failed = worker.failed or said.get("failed")
                self._drop(worker)
                self._lament(worker, os.waitstatus_to_exitcode(outcome))

    def _lament(self, worker: Worker, exit_code: int) -> None:
        if worker.state is State.RETIRED or worker.unwanted or self._stopping_s is not None:
            log.info("worker_ended", worker=worker.pid, exit_code=exit_code)
        elif worker.state is State.SERVING:
            self.recycles += 1
            steady = time.monotonic() - worker.born_s > _STEADY_S
            self._deaths = 0 if steady else self._deaths + 1
            log.error("worker_died", worker=worker.pid, exit_code=exit_code, next_try_s=self._pause(self._deaths - 1))
        else:
            reason = worker.failed or f"a worker ended at start-up with exit code {exit_code}"
            self._start_failed(worker.pid, reason)

    def _start_failed(self, pid: int | None, reason: str) -> None:
        if self.target.reload:
            log.error("worker_failed", worker=pid, reason=reason)
            self._broken = True
        elif self._served:
            self._deaths += 1
            log.error("worker_failed", worker=pid, reason=reason, next_try_s=self._pause(self._deaths))
        else:
            self._reason = reason
            self._stop(linger_s=0, at_once=True)
        self._queue.clear()  # what does not start relieves nobody: all others stay
        for other in self.workers:
            other.due, other.stuck = None, False  # and may ask again
            if other.state is State.SERVING:
                other.end_s = None

    def _pause(self, failures: int) -> float:
        """Wait with the next start, after so many that did not last; seconds."""
        pause_s = 0.0 if failures <= 0 else min(_SLOWEST_S, 0.5 * 2 ** min(failures - 1, 10))
        self._not_before_s = time.monotonic() + pause_s
        return pause_s

    # Starting and replacing

    def _fill(self) -> None:
        """See that as many are there as are wanted."""
        actives = [worker for worker in self.workers if worker.state is not State.RETIRED]
        relieving = sum(worker.replaces in actives for worker in actives if worker.replaces is not None)
        missing = self.wanted - (len(actives) - relieving)
        if self._broken or time.monotonic() < self._not_before_s:
            return
        for _ in range(missing):
            self._start()
        for _ in range(-missing):
            idle = [worker for worker in actives if worker.state is State.SERVING]
            if len(idle) > 1:
                last = max(idle, key=lambda worker: worker.slot)  # those that stay have the numbers from 0 on
                self._retire(last, "fewer")
                actives.remove(last)

    def _start(self, replaces: Worker | None = None) -> None:
        try:
            worker = self._spawned()
        except OSError as error:  # no memory, processes or descriptors left
            self._start_failed(None, f"a worker cannot be started: {error.strerror}")
            return
        worker.replaces = replaces
        worker.slot = self._free_slot() if replaces is None else replaces.slot
        self._take(worker)
        errand = {"path": sys.path, "directory": self.directory, "target": asdict(self.target)}
        if self.slots is not None:
            errand["slot"] = {"number": worker.slot, "directory": self.slots}
        worker.tell(**errand, status=self._status().data())

    def _free_slot(self) -> int:
        taken = {worker.slot for worker in self.workers if worker.state is not State.RETIRED}
        return min(set(range(len(taken) + 1)) - taken)

    def _spawned(self) -> Worker:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                theirs.set_inheritable(True)
                self.listener.set_inheritable(True)
                grpc = None
                if self.grpc is not None:
                    self.grpc.set_inheritable(True)
                    grpc = self.grpc.fileno()
                boot = _BOOT.format(root=_ROOT, control=theirs.fileno(), listener=self.listener.fileno(), grpc=grpc)
                # Not multiprocessing: it would import the parent's main module once more, for every worker. -P: the
                # directory somebody stands in must not hide our package; the import path comes with the errand.
                # Ctrl-C reaches the whole group: not before the worker can take it as what it is.
                masked = [signal.SIGINT, signal.SIGHUP]
                command = [sys.executable, "-P", "-c", boot]
                return Worker(os.posix_spawn(sys.executable, command, os.environ, setsigmask=masked), ours)
        except OSError:
            ours.close()
            raise

    def _take(self, worker: Worker) -> None:
        worker.control.setblocking(False)
        self._selector.register(worker.control, selectors.EVENT_READ, worker)
        self.workers.append(worker)

    def _drop(self, worker: Worker) -> None:
        self._selector.unregister(worker.control)
        worker.control.close()
        self.workers.remove(worker)
        for other in self.workers:
            if other.replaces is worker:
                other.replaces = None

    def _replace_next(self) -> None:
        """Begin the next replacement, unless one is under way, or too many of the old ones are still there."""
        if any(worker.state is State.STARTING for worker in self.workers) or time.monotonic() < self._not_before_s:
            return
        retired = sum(worker.state is State.RETIRED for worker in self.workers)
        while self._queue:
            worker, reason = self._queue[0]
            if worker.state is State.SERVING and worker in self.workers:
                if reason == "recycle" and retired >= self.wanted:
                    return
                self._queue.popleft()
                worker.due = reason
                self._start(replaces=worker)
                return
            self._queue.popleft()
        if not self._announced:
            self._announced = True
            notify("READY=1")

    def _retire(self, worker: Worker, reason: str) -> None:
        if worker.state is not State.SERVING:
            return
        worker.state = State.RETIRED
        if self._stopping_s is None:
            self.recycles += 1
        # Half of the drain: what begins then has the other half. Who reloads wants the new code at the next request.
        self._send_away(worker, reason, linger_s=_BRIEF_S if self.target.reload else self.settings.drain_s / 2)

    def _send_away(self, worker: Worker, reason: str, *, linger_s: float) -> None:
        log.info("worker_retired", worker=worker.pid, reason=reason)
        worker.tell(retire={"linger_s": linger_s, "drain_s": self.settings.drain_s, "end_s": _END_S})
        if worker.end_s is None:
            worker.end_s = time.monotonic() + self.settings.drain_s + _END_S

    def _look_for_stuck(self) -> None:
        now_s = time.monotonic()
        before_s, self._looked_s = self._looked_s, now_s
        if now_s - before_s > _ABSENT_S:  # it was this process that slept: hear them first
            for worker in self.workers:
                worker.beat_s = now_s
        if now_s < self._not_before_s:
            return
        stuck = [worker for worker in self.workers if worker.stuck]
        for worker in self.workers:
            if worker.state is not State.SERVING or worker.stuck or now_s - worker.beat_s < STUCK_S:
                continue
            if len(stuck) >= self.wanted:
                return
            stuck.append(worker)
            worker.stuck, worker.due = True, "stuck"
            patience_s = self.settings.request_timeout_s or self.settings.drain_s
            # However short the deadline of a request: it may only be slow, and its replacement is not there yet.
            worker.end_s = max(worker.beat_s + patience_s, now_s + _GRACE_S)
            silent_s, left_s = round(now_s - worker.beat_s, 1), round(worker.end_s - now_s, 1)
            log.error("worker_stuck", worker=worker.pid, for_s=silent_s, ended_in_s=left_s)
            self._start(replaces=worker)

    def _look_for_slow(self) -> None:
        """End a worker that does not come to serve: whoever waits behind it would wait for ever."""
        limit_s = self.settings.start_timeout_s
        for worker in self.workers:
            if worker.state is not State.STARTING or worker.failed is not None:
                continue
            age_s = time.monotonic() - worker.born_s
            if age_s > limit_s > 0 or (worker.unwanted and age_s > _UNWANTED_S):
                worker.failed = f"a worker did not serve within {limit_s:g} s (ONEQUOTA_START_TIMEOUT_S)"
                worker.signal(signal.SIGKILL)

    # What the world says

    def _obey(self) -> None:
        if self._changed.is_set():
            self._changed.clear()
            self._broken = False
            self._replace_all("changed")
        while self._signals:
            number = self._signals.popleft()
            if number == signal.SIGTERM:
                self._stop(linger_s=_STOP_LINGER_S)
            elif number == signal.SIGINT:
                self._stop(linger_s=0, at_once=self._stopping_s is not None)
            elif self._stopping_s is not None:
                continue
            elif number == signal.SIGHUP:
                notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
                self._announced = False
                self._replace_all("reload")
            elif number == signal.SIGUSR2:
                self._hands_over = self._hand_over is not None
            elif number == signal.SIGTTIN:
                self.wanted += 1
            elif number == signal.SIGTTOU:
                self.wanted = max(1, self.wanted - 1)

    def _replace_all(self, reason: str) -> None:
        log.info("reload", reason=reason)
        for worker in self.workers:
            if worker.state is State.STARTING and (worker.replaces is not None or self.target.reload):
                worker.unwanted = True  # it may have loaded what was there before, or hang in it
        queued = {worker for worker, _ in self._queue}
        self._queue.extend(
            (worker, reason)
            for worker in self.workers
            if worker.state is not State.RETIRED and worker not in queued and not worker.stuck
        )

    def _stop(self, *, linger_s: float, at_once: bool = False) -> None:
        if self._stopping_s is None:
            self._stopping_s = time.monotonic()
            if self._reason is None:
                notify("STOPPING=1")
                log.info("stopping", drain_s=self.settings.drain_s)
            self.listener.close()
            if self.grpc is not None:
                self.grpc.close()
            drain_s = self.settings.drain_s
            end_s = min(_END_S, drain_s / 10) or 1.0
            order = {"linger_s": min(linger_s, drain_s / 4), "drain_s": max(0, drain_s - end_s), "end_s": end_s}
            order["stopping"] = True
            for worker in self.workers:
                worker.end_s = self._stopping_s + (drain_s - end_s / 3 if drain_s else end_s)
                if worker.state is State.STARTING:
                    worker.signal(signal.SIGTERM)
                    worker.end_s = self._stopping_s + min(_END_S, drain_s)  # it serves nobody yet
                elif worker.state is State.SERVING:
                    worker.state = State.RETIRED
                worker.tell(retire=order)
        if at_once:
            for worker in self.workers:
                worker.signal(signal.SIGKILL)

    def _tell(self) -> None:
        status = self._status()
        if status != self._told:
            self._told = status
            for worker in self.workers:
                worker.tell(status=status.data())

    def _status(self) -> Status:
        serving = sum(worker.state is State.SERVING for worker in self.workers)
        return Status(workers=self.wanted, serving=serving, recycles=self.recycles, started_s=self.started_s)

    def _maybe_hand_over(self) -> None:
        """Not while a worker is starting: whoever comes after could not tell it from one that serves."""
        starting = any(worker.state is State.STARTING for worker in self.workers)
        if self._hands_over and not starting and self._hand_over is not None:
            self._hand_over(self.inheritance(), lambda: bool(self._signals))
            self._hands_over = bool(self._signals)  # then they come first

    def inheritance(self) -> Inheritance:
        """What a handover leaves."""
        return Inheritance(
            listener=self.listener.fileno(),
            grpc=self.grpc.fileno() if self.grpc is not None else None,
            workers=[worker.legacy() for worker in self.workers],
            started_s=self.started_s,
            recycles=self.recycles,
            slots=self.slots,
        )


SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU")
    if hasattr(signal, name)
]
