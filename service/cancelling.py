"""Cancelling what runs in an anyio scope: once, and again each second, not at every turn of the event loop."""

import asyncio
from typing import Any

import anyio


class TaskScope:
    """As an anyio scope, for work that waits for no threads; a third of its time.

    Args:
        loop: The running one.
    """

    __slots__ = ("_called", "_loop", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._called = 0

    def __enter__(self) -> None:
        self._task = asyncio.current_task(self._loop)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> bool:
        task, self._task = self._task, None
        if not self._called or task is None:
            return False
        others = 0
        for _ in range(self._called):
            others = task.uncancel()
        return kind is asyncio.CancelledError and not others

    def cancel(self) -> None:
        """Cancel what runs within; again, if it went on."""
        if self._task is not None:
            self._called += 1
            self._task.cancel()


Scope = anyio.CancelScope | TaskScope


def is_cancelled() -> bool:
    """Whether somebody cancelled this very task."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def cancel(scope: Scope) -> None:
    """Cancel once what runs in `scope`; what waits for a thread, when that is back.

    anyio goes on cancelling at every turn of the loop. Then no `finally:` could await, and work that swallows
    the cancellation would keep a core busy for as long as it lasts. Should anyio's insides move, it does that again.
    """
    scope.cancel()
    if isinstance(scope, TaskScope):
        return
    _calm(scope)
    asyncio.get_running_loop().call_soon(_calm, scope)  # for work that was not waiting just now


def cancel_again(scope: Scope) -> None:
    if isinstance(scope, TaskScope):
        scope.cancel()
        return
    deliver = getattr(scope, "_deliver_cancellation", None)
    if deliver is not None:
        _calm(scope)
        deliver(scope)
        _calm(scope)


def _calm(scope: anyio.CancelScope) -> None:
    """No further cancelling, if the task has heard of it."""
    host, handle = getattr(scope, "_host_task", None), getattr(scope, "_cancel_handle", None)
    if handle is not None and (host is None or host.cancelling()):
        handle.cancel()
