"""What outlives a question, asked of a real service by both clients: reservations, refunds, leases."""

import asyncio
import threading
import time

import pytest
from both import KEY, PATIENT, both, done, opened, passing
from faulty import ALLOWED, LOSE, Answered, closed_port, faulty, problem

from service.client import AsyncClient, Check, Client, DomainCheck, Hold, InvalidInput, OverLimit, ServiceUnavailable
from service.errors import ConfigurationError


def left(client, key, limits="100/hour"):
    return client.peek(key, limits).limits[0].remaining


def free(client, question):
    """How many units of a question's could be held now: taken, and released again."""
    taken = []
    while (lease := client.acquire(question)).allowed:
        taken.append(lease)
    for lease in taken:
        client.release_lease(lease.id)
    return len(taken)


# ── reservations and refunds ─────────────────────────────────────────────────────────────────────────────────────────


@both
@pytest.mark.parametrize(("estimate", "true", "remaining"), [(60, 45, 55), (60, 60, 40), (60, 85, 15), (60, 0, 100)])
def test_an_estimate_becomes_what_is_true(client, kind, estimate, true, remaining):
    key = f"settles {kind} {true}"
    reserved = client.reserve(Check(key, "100/hour", cost=estimate))
    assert (reserved.allowed, reserved.answer.limits[0].remaining, left(client, key)) == (True, 40, 40)
    for _ in range(2):  # once more at the same cost changes nothing
        assert done(client, lambda: reserved.settle(true)).allowed
        assert left(client, key) == remaining
    with pytest.raises(InvalidInput, match="settled before"):
        client.settle(reserved.id, true + 1)
    assert left(client, key) == remaining


@both
def test_what_lacks_is_owed_and_what_finds_no_room_is_refused_and_free(client, kind):
    key = f"owes {kind}"
    reserved = client.reserve(Check(key, "100/hour", cost=90))
    refused = client.reserve(Check(key, "100/hour", cost=11))
    assert (refused.allowed, refused.id, left(client, key)) == (False, "", 10)
    assert client.settle(reserved.id, 250).allowed
    assert left(client, key) == 0


@both
def test_a_reservation_is_released_whole(client, kind):
    key = f"releases {kind}"
    reserved = client.reserve(Check(key, "100/hour", cost=60))
    assert left(client, key) == 40
    assert done(client, reserved.release).limits[0].remaining == 100
    assert left(client, key) == 100


@both
def test_a_refund_gives_back_what_a_check_charged_once_per_key(client, kind):
    key = f"refunds {kind}"
    client.check(key, "100/hour", cost=30)
    assert left(client, key) == 70
    for _ in range(2):
        assert client.refund(Check(key, "100/hour", cost=20), idempotency_key=f"order-7-{kind}").allowed
        assert left(client, key) == 90
    client.refund(Check(key, "100/hour", cost=20))
    assert left(client, key) == 100  # never more than there is


# ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@both
def test_three_are_held_at_once_and_the_fourth_is_refused_with_nothing_held(client, kind):
    three = f"three {kind}", 3
    with client.lease(*three) as one, client.lease(*three) as two, client.lease(*three) as last:
        assert [lease.answer.limits[0].remaining for lease in (one, two, last)] == [2, 1, 0]
        assert one.answer.limits[0].name == "3 at once"
        assert len({one.id, two.id, last.id}) == 3 and one.allowed and one.held
        with pytest.raises(OverLimit, match="3 at once is used up") as caught, client.lease(*three, wait=False):
            pytest.fail("it was let in")
        assert (caught.value.answer.allowed, 0 < caught.value.answer.retry_after <= 60) == (False, True)
        refused = client.acquire(Hold(*three))
        assert (refused.allowed, refused.held, refused.id, done(client, refused.release).allowed) == (
            False, False, "", False,
        )  # fmt: skip
    assert not one.held
    assert free(client, Hold(*three)) == 3


@both
def test_a_lease_is_renewed_while_the_block_runs_and_released_at_its_end(client, kind):
    one = f"long {kind}", 1
    with client.lease(*one, ttl_s=3) as lease:
        for _ in range(5):
            passing(client, 1)
            assert not client.acquire(Hold(*one, ttl_s=3)).allowed
        assert lease.held
    assert client.acquire(Hold(*one, ttl_s=3)).allowed


@both
def test_a_lease_that_nobody_renews_ends(client, kind):
    one = Hold(f"dies {kind}", 1, ttl_s=1)
    began_s = time.monotonic()
    lease = client.acquire(one)
    while not client.acquire(one).allowed:
        assert time.monotonic() - began_s < 20
        passing(client, 0.05)
    assert time.monotonic() - began_s >= 1
    assert not lease.held
    for method in (lease.renew, lease.release):
        with pytest.raises(InvalidInput) as caught:
            done(client, method)
        assert caught.value.field == "id"


@both
def test_a_lease_is_renewed_and_released_by_its_id(client, kind):
    one = Hold(f"ids {kind}", 1)
    lease = client.acquire(one)
    assert done(client, lease.renew).allowed and lease.held
    assert client.renew_lease(lease.id).limits[0].remaining == 0
    assert client.release_lease(lease.id).limits[0].remaining == 1
    assert free(client, one) == 1


@both
def test_an_exception_releases_and_is_the_callers(client, kind):
    one = f"raises {kind}", 1
    with pytest.raises(ZeroDivisionError), client.lease(*one):
        1 / 0  # noqa: B018
    assert free(client, Hold(*one)) == 1


@both
def test_a_unit_that_is_released_within_the_wait_is_had(service, client, kind):
    one = f"waits {kind}", 1
    held = client.acquire(Hold(*one, ttl_s=30))
    began_s = time.monotonic()
    with pytest.raises(OverLimit), client.lease(*one, ttl_s=30, max_wait_s=1.5):
        pytest.fail("it was let in")
    assert time.monotonic() - began_s >= 1
    with Client(service, api_key=KEY, **PATIENT) as elsewhere:
        timer = threading.Timer(0.5, elsewhere.release_lease, (held.id,))
        timer.start()
        with client.lease(*one, ttl_s=30, max_wait_s=25) as lease:  # long before the other lease's 30 s are over
            assert lease.allowed
        timer.join()


@both
def test_limits_beside_a_lease_are_charged_with_it_all_or_nothing_and_stay_charged(client, kind):
    key = f"beside {kind}"
    with client.lease(key, 1, limits="2/hour") as lease:
        assert [limit.remaining for limit in lease.answer.limits] == [0, 1]
        with pytest.raises(OverLimit), client.lease(key, 1, limits="2/hour", wait=False):
            pytest.fail("it was let in")
    assert left(client, key, "2/hour") == 1


@both
def test_a_rule_of_the_catalog_is_held(client, kind):
    job = "chat", {"job": f"of {kind}"}
    with client.lease_domain(*job), client.lease_domain(*job) as second:
        assert (second.answer.limits[0].limit, second.answer.limits[0].remaining) == (2, 0)
        with pytest.raises(OverLimit), client.lease_domain(*job, wait=False):
            pytest.fail("it was let in")
    assert free(client, DomainCheck.of(*job)) == 2
    with client.lease_domain("chat", {"nobody": "x"}) as lease:  # nothing limits that
        assert (lease.allowed, lease.held, lease.answer.limits) == (True, True, ())


@both
def test_what_cannot_be_meant_is_refused_by_name(client, kind):
    for wrong, field in (({"concurrency": 0}, "concurrency"), ({"ttl_s": 0}, "ttl"), ({"limits": "fast"}, "limits")):
        with pytest.raises(InvalidInput) as caught, client.lease(**{"key": "alice", "concurrency": 1, **wrong}):
            pytest.fail("it was let in")
        assert caught.value.field == field
    with pytest.raises(ConfigurationError, match="max_wait_s -1"), client.lease("alice", 1, max_wait_s=-1):
        pytest.fail("it was let in")


async def test_whoever_is_cancelled_holds_nothing_afterwards(service):
    async with AsyncClient(service, api_key=KEY, **PATIENT) as client:
        inside = asyncio.Event()

        async def work():
            async with client.lease("cancelled", 3):
                inside.set()
                await asyncio.sleep(60)

        while_held = asyncio.create_task(work())
        await inside.wait()
        while_held.cancel()
        at_once = [asyncio.create_task(work()) for _ in range(2)]
        await asyncio.sleep(0)
        for task in at_once:  # their questions are under way
            task.cancel()
        for task in (while_held, *at_once):
            with pytest.raises(asyncio.CancelledError):
                await task
    async with AsyncClient(service, api_key=KEY, **PATIENT) as client:
        taken = [await client.acquire(Hold("cancelled", 3)) for _ in range(4)]
        assert [lease.allowed for lease in taken] == [True, True, True, False]


async def test_a_release_goes_on_though_whoever_waits_for_it_is_cancelled_again():
    """As a cancelled scope of anyio does at every await."""
    with faulty() as service:
        async with AsyncClient(service.url, deadline_s=10) as client:
            service.faults.extend([Answered(200, {**ALLOWED, "id": "l1", "expires_in": 60}), LOSE])
            inside = asyncio.Event()

            async def work():
                async with client.lease("alice", 1):
                    inside.set()
                    await asyncio.sleep(60)

            task = asyncio.create_task(work())
            await inside.wait()
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
        assert [method for method, *_ in service.heard] == ["POST", "DELETE", "DELETE"]


# ── a service that is away ───────────────────────────────────────────────────────────────────────────────────────────


@both
def test_units_are_held_in_this_process_while_the_service_is_away(kind):
    two = "alice", 2
    with opened(kind, f"http://127.0.0.1:{closed_port()}") as client:
        with client.lease(*two, limits="3/hour") as lease, client.lease(*two, limits="3/hour"):
            assert (lease.answer.degraded, lease.id, lease.held) == (True, "", True)
            assert [limit.remaining for limit in done(client, lease.renew).limits] == [0]
            with pytest.raises(OverLimit), client.lease(*two, limits="3/hour", wait=False):
                pytest.fail("it was let in")
        with client.lease(*two, limits="3/hour"):
            pass
        with pytest.raises(OverLimit, match="3/hour is used up"), client.lease(*two, limits="3/hour", wait=False):
            pytest.fail("it was let in")
        lease = client.acquire(Hold("dies", 1, ttl_s=1))
        passing(client, 1.1)
        with pytest.raises(InvalidInput):
            done(client, lease.renew)
        for wrong, field in ((Hold("a", "3"), "concurrency"), (Hold("a", 0), "limits"), (Hold("a", 1, 1.5), "ttl")):
            with pytest.raises(InvalidInput) as caught:
                client.acquire(wrong)
            assert caught.value.field == field


@both
@pytest.mark.parametrize(("when_away", "allowed"), [("allow", True), ("deny", False)])
def test_a_block_is_let_in_or_not_as_when_away_says(kind, when_away, allowed):
    with opened(kind, f"http://127.0.0.1:{closed_port()}", when_away=when_away) as client:
        lease = client.acquire(Hold("alice", 1))
        assert (lease.allowed, lease.held, lease.answer.degraded) == (allowed, allowed, True)
        assert done(client, lease.renew) == lease.answer == done(client, lease.release)
        assert not lease.held


@both
def test_raise_raises_on_entering(kind):
    with (
        opened(kind, f"http://127.0.0.1:{closed_port()}", when_away="raise") as client,
        pytest.raises(ServiceUnavailable),
        client.lease("alice", 1),
    ):
        pytest.fail("it was let in")


@both
def test_a_lease_that_cannot_be_renewed_is_lost_and_the_block_runs_on(kind, caplog):
    held = Answered(200, {**ALLOWED, "id": "l/1", "expires_in": 1})
    ended = problem(404, errors=[{"field": "id", "reason": "is of a lease that has ended"}])
    with faulty() as service, opened(kind, service.url, deadline_s=10) as client:
        service.faults.extend([held, problem(503, "60"), ended])
        with client.lease("alice", 1, ttl_s=1) as lease:
            began_s = time.monotonic()
            while not lease._unit.over and time.monotonic() - began_s < 20:
                passing(client, 0.05)
            assert not lease.held
    assert [(method, path) for method, path, _, _ in service.heard] == [
        ("POST", "/v1/leases"), ("PUT", "/v1/leases/l%2F1"), ("PUT", "/v1/leases/l%2F1"),
    ]  # fmt: skip
    assert service.heard[0][3] == {"key": "alice", "concurrency": 1, "ttl": 1}
    assert "lease_not_renewed" in caplog.text and "lease_lost" in caplog.text


@both
def test_a_release_that_fails_is_logged_and_hides_nothing(kind, caplog):
    held = Answered(200, {**ALLOWED, "id": "l1", "expires_in": 60})
    with faulty() as service, opened(kind, service.url, deadline_s=10) as client:
        service.faults.extend([held, problem(503, "60")])
        with pytest.raises(ZeroDivisionError), client.lease("alice", 1):
            1 / 0  # noqa: B018
        service.faults.append(held)
        with client.lease("alice", 1) as lease:
            done(client, lease.release)
    assert [method for method, *_ in service.heard] == ["POST", "DELETE", "POST", "DELETE"]  # what is released is
    assert "lease_not_released" in caplog.text
