"""A worker process, as its parent knows it, and what a parent leaves to itself across exec."""

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where a worker is on its way."""

    STARTING = "starting"
    SERVING = "serving"
    RETIRED = "retired"


@dataclass(eq=False)
class Worker:
    """A worker process, as its parent knows it.

    Attributes:
        pid: A child of this process.
        control: The parent's end of the control socket, not blocking.
        slot: Its number among those that serve; whoever replaces it has the same.
        replaces: Whom it will relieve when it serves.
        beat_s: When it was last heard, monotonic seconds.
        end_s: When it is ended if it is still there; None = it has a right to live.
        due: Why it asks to be replaced.
        failed: Why it could not serve.
        unwanted: Newer code is there, and it does not serve yet: it may fail, and nobody minds.
    """

    pid: int
    control: socket.socket
    slot: int = 0
    state: State = State.STARTING
    replaces: "Worker | None" = None
    born_s: float = field(default_factory=time.monotonic)
    beat_s: float = field(default_factory=time.monotonic)
    end_s: float | None = None
    due: str | None = None
    stuck: bool = False
    failed: str | None = None
    unwanted: bool = False
    received: bytes = b""

    def tell(self, **message: Any) -> None:
        """Never blocks: who does not read, as one that is stuck, will find it later."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode() + b"\n")

    def legacy(self) -> dict[str, Any]:
        """What a parent needs to go on with this worker after exec: children stay children."""
        known = {"pid": self.pid, "control": self.control.fileno(), "slot": self.slot}
        return known | {"state": self.state, "end_s": self.end_s}

    @classmethod
    def heir(cls, *, pid: int, control: int, slot: int = 0, state: str, end_s: float | None) -> "Worker":
        """The worker of a `legacy`."""
        os.set_inheritable(control, False)
        return cls(pid, socket.socket(fileno=control), slot, State(state), end_s=end_s)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def heard(self) -> list[dict[str, Any]]:
        """What it has said since."""
        with contextlib.suppress(OSError):
            while received := self.control.recv(65536):
                self.received += received
        *lines, self.received = self.received.split(b"\n")
        said = []
        for line in lines:
            with contextlib.suppress(ValueError):  # half a line, cut by a handover
                said.append(json.loads(line))
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Inheritance:
    """What a parent leaves to itself across exec: descriptors stay open, children stay children.

    Attributes:
        listener: Descriptor.
        workers: Of each, what `Worker.legacy` says.
        started_s, recycles: As in `Status`.
        redis: What the embedded Redis needs to be known again; None = there is none.
        grpc: Descriptor of its listener; None = there is none.
        kept: Where the last good catalog is; None = nowhere.
        slots: The directory of `status.Slot`.
    """

    listener: int
    workers: list[dict[str, Any]]
    started_s: float
    recycles: int
    redis: dict[str, Any] | None = None
    grpc: int | None = None
    kept: str | None = None
    slots: str | None = None
