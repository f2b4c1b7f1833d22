"""Cancelling what runs in an anyio scope: once, and again each second, not at every turn of the event loop."""

import asyncio

import anyio


def is_cancelled() -> bool:
    """Whether somebody cancelled this very task."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def cancel(scope: anyio.CancelScope) -> None:
    """Cancel once what runs in `scope`; what waits for a thread, when that is back.

    anyio goes on cancelling at every turn of the loop. Then no `finally:` could await, and work that swallows
    the cancellation would keep a core busy for as long as it lasts. Should anyio's insides move, it does that again.
    """
    scope.cancel()
    _calm(scope)
    asyncio.get_running_loop().call_soon(_calm, scope)  # for work that was not waiting just now


def cancel_again(scope: anyio.CancelScope) -> None:
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
