"""A task's scope swallows its own cancellations, however many, and nobody else's."""

import asyncio
import contextlib

import pytest

from service.cancelling import TaskScope, cancel, cancel_again


async def begun(work):
    """A task that runs `work` within a scope, at its first wait; and the scope."""
    scope = TaskScope(asyncio.get_running_loop())

    async def run():
        with scope:
            await work()
        return asyncio.current_task().cancelling()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    return task, scope


async def stubborn():
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def test_its_own_cancellation_ends_at_the_scope():
    task, scope = await begun(asyncio.Event().wait)
    cancel(scope)
    assert await task == 0


async def test_work_that_needs_two_leaves_none_behind():
    task, scope = await begun(stubborn)
    cancel(scope)
    await asyncio.sleep(0)
    cancel_again(scope)
    assert await task == 0


async def test_work_that_swallows_it_and_ends_leaves_none_behind():
    async def work():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task, scope = await begun(work)
    cancel(scope)
    assert await task == 0


async def test_a_cancellation_from_outside_goes_through():
    task, scope = await begun(stubborn)
    cancel(scope)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_goes_through():
    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError from None

    task, scope = await begun(work)
    cancel(scope)
    with pytest.raises(KeyError):
        await task


async def test_when_it_is_over_nothing_is_cancelled():
    task, scope = await begun(lambda: asyncio.sleep(0))
    await asyncio.sleep(0)
    cancel(scope)
    assert await task == 0
