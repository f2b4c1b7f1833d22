"""What is decided without the store: each policy, several in one ask, and what every kind of ask comes to."""

import pytest
from driving import START_US, Clock, by_user, client_of, gated, limiter_of, statuses
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidInput, InvalidLimit, StoreUnavailable
from service.limits import Limiter
from service.limits.algorithms import ALGORITHMS
from service.limits.decision import CHARGE, DEBIT, GIVE_BACK, LOOK, RENEW, Ask, Charge, LeaseAsk, TokenAsk
from service.limits.fallback import AGAIN_US, Fallback
from service.limits.limit import Limit
from service.limits.share import Place
from service.limits.spent import Spent
from service.limits.token import token

AWAY = StoreUnavailable("away", reason="connection")
GONE = "unix:///nonexistent/redis.sock"


def limit(text="10/minute", on_outage=None, **how):
    return Limit.parse(text, on_outage=on_outage, **how)[0]


def ask(*limits, kind=CHARGE, cost=1, at_us=0):
    return Ask([Charge(one, b"k%d" % number, cost) for number, one in enumerate(limits)], kind, at_us)


def fallback(on_outage="local", clock=None, **place):
    return Fallback(on_outage, spent=Spent(clock=clock or Clock()), place=lambda: Place(**place))


def admitted(found, question, times=50):
    return sum(found.decide(question, AWAY).allowed for _ in range(times))


# ── policies ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_deny_says_that_nobody_can_decide():
    with pytest.raises(StoreUnavailable, match="away") as caught:
        fallback("deny").decide(ask(limit()), AWAY)
    assert caught.value is not AWAY, "an exception carries a traceback: one each"
    assert caught.value.reason == "connection"


def test_allow_lets_everything_pass_and_counts_nothing():
    found = fallback("allow")
    for _ in range(20):
        decision = found.decide(ask(limit()), AWAY)
        assert (decision.allowed, decision.degraded) == (True, True)
        assert decision.standings[0].remaining == 10


def test_local_admits_this_workers_share():
    found = fallback(slot=1, workers=4)
    decisions = [found.decide(ask(limit()), AWAY) for _ in range(4)]
    assert [decision.allowed for decision in decisions] == [True, True, False, False]
    assert all(decision.degraded for decision in decisions)
    standing = decisions[2].standings[0]
    assert standing.limit is not None
    assert (standing.limit.name, standing.limit.capacity, standing.remaining) == ("10/minute", 10, 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_who_waits_as_told_passes_here_too(algorithm):
    """Retry-After of a refusal by the share, to the microsecond."""
    clock = Clock()
    found = fallback(clock=clock, slot=1, workers=4)
    question = ask(limit("100/minute", algorithm=algorithm), cost=7)
    assert admitted(found, question) == 3  # of 25
    wait_us = found.decide(question, AWAY).retry_us
    clock.now_us += wait_us - 1
    assert not found.decide(question, AWAY).allowed
    clock.now_us += 1
    assert found.decide(question, AWAY).allowed


def test_a_share_of_nothing_refuses_until_the_store_is_looked_for_again():
    decision = fallback(slot=1, workers=4).decide(ask(limit("3/minute")), AWAY)
    assert (decision.allowed, decision.retry_us, decision.retry_after) == (False, AGAIN_US, 1)
    assert decision.standings[0].remaining == 0


def test_a_cost_beyond_the_share_is_refused_and_charges_nothing():
    found = fallback(slot=1, workers=4)
    decision = found.decide(ask(limit("100/minute"), cost=26), AWAY)
    assert (decision.allowed, decision.retry_us) == (False, AGAIN_US)
    assert decision.standings[0].remaining == 25
    assert found.decide(ask(limit("100/minute"), cost=25), AWAY).allowed


COMBINED = [
    # engine's default, each limit's own, what the ask comes to
    ("local", ["deny", None], "deny"),
    ("local", ["allow", "deny"], "deny"),
    ("allow", [None, "deny", "local"], "deny"),
    ("deny", ["allow", "local"], "local"),
    ("deny", ["allow", "allow"], "allow"),
    ("deny", ["allow", None], "deny"),
    ("allow", ["local", None], "local"),
]


@pytest.mark.parametrize(("default", "own", "comes_to"), COMBINED)
def test_of_several_policies_the_strictest_decides(default, own, comes_to):
    found = fallback(default, slot=0, workers=2)
    question = ask(*(limit(f"{10 + number}/minute", policy) for number, policy in enumerate(own)))
    assert found.policy(question) == comes_to
    if comes_to == "deny":
        with pytest.raises(StoreUnavailable):
            found.decide(question, AWAY)
        return
    assert found.decide(question, AWAY).allowed
    assert admitted(found, question) < 50 or comes_to == "allow"


def test_local_limits_decide_all_or_nothing_and_allowed_ones_are_not_counted():
    found = fallback(slot=0, workers=1)
    question = ask(limit("2/minute"), limit("5/hour"), limit("1/minute", "allow"))
    assert admitted(found, question, 9) == 2
    look = found.decide(ask(limit("2/minute"), limit("5/hour"), kind=LOOK), AWAY)
    assert [standing.remaining for standing in look.standings] == [0, 3]


def test_a_denied_ask_spends_no_share():
    found = fallback(slot=0, workers=1)
    with pytest.raises(StoreUnavailable):
        found.decide(ask(limit("2/minute"), limit("5/hour", "deny")), AWAY)
    assert found.decide(ask(limit("2/minute"), kind=LOOK), AWAY).standings[0].remaining == 2


@given(
    workers=st.integers(1, 9),
    amount=st.integers(1, 40),
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    turns=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), max_size=120),
)
def test_the_workers_of_a_host_together_admit_at_most_the_limit(workers, amount, algorithm, turns):
    """Any costs, in any order, to any worker."""
    clock = Clock()
    fleet = [fallback(clock=clock, slot=slot, workers=workers) for slot in range(workers)]
    one = limit(f"{amount}/hour", algorithm=algorithm)
    total = 0
    for worker, wanted in turns:
        cost = min(wanted, amount)
        total += cost * fleet[worker % workers].decide(ask(one, cost=cost), AWAY).allowed
    assert total <= amount


# ── kinds of asks ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_look_spends_nothing():
    found = fallback(slot=0, workers=2)
    for _ in range(9):
        assert found.decide(ask(limit(), kind=LOOK), AWAY).standings[0].remaining == 5


def test_what_was_charged_here_is_given_back_here():
    found = fallback(slot=0, workers=2)
    at_us = [found.decide(ask(limit()), AWAY).at_us for _ in range(5)][-1]
    assert not found.decide(ask(limit()), AWAY).allowed
    found.decide(ask(limit(), kind=GIVE_BACK, at_us=at_us), AWAY, here=True)
    assert admitted(found, ask(limit())) == 1


@pytest.mark.parametrize("policy", ["local", "allow", "deny"])
def test_what_the_store_has_charged_is_not_given_back_here(policy):
    """It would make room that nobody has given."""
    found = fallback(policy, slot=0, workers=1)
    if policy == "local":
        assert admitted(found, ask(limit())) == 10
    with pytest.raises(StoreUnavailable):
        found.decide(ask(limit(), kind=GIVE_BACK, at_us=START_US), AWAY)
    if policy == "local":
        assert admitted(found, ask(limit())) == 0


@pytest.mark.parametrize("workers", [1, 2, 40])
def test_a_debit_is_never_refused(workers):
    found = fallback(slot=1 % workers, workers=workers)
    assert found.decide(ask(limit(), kind=DEBIT, cost=50), AWAY).allowed
    assert admitted(found, ask(limit())) == 0


def test_a_token_is_known_again_by_the_worker_that_saw_it():
    found = fallback(slot=0, workers=1)
    charges = [Charge(limit(), b"k", 4)]
    once = token("retry-1", b"content", owner="o")
    for _ in range(3):
        assert found.decide(TokenAsk(charges, once), AWAY).standings[0].remaining == 6
    with pytest.raises(InvalidInput, match="Idempotency-Key"):
        found.decide(TokenAsk(charges, token("retry-1", b"other", owner="o")), AWAY)


def lease(name, kind=CHARGE, text="4/minute"):
    return LeaseAsk([Charge(limit(text, algorithm="concurrency"), b"k", 1)], name, kind)


def test_leases_that_are_taken_here_are_renewed_and_released_here():
    """Of 4 at once this worker has 2."""
    clock = Clock()
    found = fallback(clock=clock, slot=1, workers=2)
    assert [found.decide(lease(f"l{n}"), AWAY).allowed for n in range(3)] == [True, True, False]
    clock.forward(40)
    assert found.decide(lease("l0", RENEW), AWAY, here=True).allowed
    clock.forward(40)  # l1 has ended
    assert not found.decide(lease("l1", RENEW), AWAY, here=True).allowed
    assert [found.decide(lease(f"l{n}"), AWAY).allowed for n in (3, 4)] == [True, False]
    found.decide(lease("l0", GIVE_BACK), AWAY, here=True)
    assert found.decide(lease("l4"), AWAY).allowed


def test_a_lease_that_is_held_here_is_known_without_being_told():
    """A request that took a unit of the share releases it: `Held` need not know who decided."""
    found = fallback(slot=1, workers=2)
    for _ in range(9):
        assert found.decide(lease("l"), AWAY).allowed
        assert found.decide(lease("l", RENEW), AWAY).allowed
        found.decide(lease("l", GIVE_BACK), AWAY)
    assert found.decide(lease("other"), AWAY).standings[0].remaining == 1
    assert fallback("allow").decide(lease("l", GIVE_BACK), AWAY).allowed


@pytest.mark.parametrize("kind", [RENEW, GIVE_BACK])
def test_a_lease_that_the_store_has_is_neither_renewed_nor_released_here(kind):
    """It ends by itself; nobody is told that it was lost."""
    with pytest.raises(StoreUnavailable):
        fallback(slot=0, workers=1).decide(lease("l", kind), AWAY)


def test_without_a_share_no_lease_is_renewed():
    assert not fallback(slot=7, workers=8).decide(lease("l", RENEW), AWAY, here=True).allowed


# ── spelled where limits are declared ────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_policy_is_refused_where_it_is_written():
    for make in (
        lambda: Limit.parse("1/minute", on_outage="panic"),
        lambda: Limiter(by_user, storage_uri="memory://", on_outage="panic"),
        lambda: limiter_of().limit("1/minute", on_outage="panic")(by_user),
        lambda: limiter_of().quota("1/minute", on_outage="panic"),
    ):
        with pytest.raises(InvalidLimit, match="on_outage 'panic': use allow, deny, local"):
            make()


def test_a_policy_is_no_part_of_the_key():
    """Changing it moves no counter."""
    assert limit("5/minute", "deny").spelling == limit("5/minute").spelling


def test_the_environment_says_it_for_limiters_that_do_not(monkeypatch):
    monkeypatch.setenv("ONEQUOTA_ON_OUTAGE", "Deny")
    assert Limiter(by_user, storage_uri=GONE).engine.fallback.on_outage == "deny"
    assert Limiter(by_user, storage_uri=GONE, on_outage="allow").engine.fallback.on_outage == "allow"
    monkeypatch.setenv("ONEQUOTA_ON_OUTAGE", "panic")
    with pytest.raises(InvalidLimit, match="on_outage 'panic'"):
        Limiter(by_user, storage_uri=GONE)


def test_hosts_divide_and_are_checked(monkeypatch):
    from service.errors import ConfigurationError

    monkeypatch.setenv("ONEQUOTA_HOSTS", "5")
    client = client_of(route_app("10/hour"))
    assert statuses(client, "/", 4) == [200, 200, 429, 429]
    monkeypatch.setenv("ONEQUOTA_HOSTS", "none")
    with pytest.raises(ConfigurationError, match='ONEQUOTA_HOSTS="none": wanted a whole number from 1 to 10000'):
        Limiter(by_user, storage_uri=GONE)
    with pytest.raises(ConfigurationError, match="hosts 0"):
        Limiter(by_user, storage_uri=GONE, hosts=0)


def route_app(text, *, options=None, **declared):
    limiter = Limiter(by_user, storage_uri=GONE, **(options or {}))
    app = FastAPI()

    @app.get("/")
    @limiter.limit(text, **declared)
    async def index():
        return {}

    return gated(app, limiter)


DECLARED = [
    # limiter's, limit's, what three requests to "2/hour" are answered
    ({}, {}, [200, 200, 429]),
    ({}, {"on_outage": "allow"}, [200, 200, 200]),
    ({}, {"on_outage": "deny"}, [503, 503, 503]),
    ({"on_outage": "allow"}, {}, [200, 200, 200]),
    ({"on_outage": "allow"}, {"on_outage": "local"}, [200, 200, 429]),
    ({"on_outage": "deny"}, {}, [503, 503, 503]),
    ({"on_outage": "deny"}, {"on_outage": "local"}, [200, 200, 429]),
]


@pytest.mark.parametrize(("options", "declared", "answers"), DECLARED)
@pytest.mark.parametrize("dynamic", [False, True], ids=["string", "function"])
def test_a_limit_says_it_else_the_limiter_does(options, declared, answers, dynamic):
    text = (lambda: "2/hour") if dynamic else "2/hour"
    assert statuses(client_of(route_app(text, options=options, **declared)), "/", 3) == answers


def test_one_counter_declared_twice_goes_by_the_stricter_policy():
    limiter = Limiter(by_user, storage_uri=GONE)
    app = FastAPI()

    @app.get("/")
    @limiter.shared_limit("2/hour", scope="s", on_outage="allow")
    @limiter.shared_limit("2/hour", scope="s", on_outage="deny")
    async def index():
        return {}

    assert statuses(client_of(gated(app, limiter)), "/", 2) == [503, 503]


# ── what a client sees ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{}, {"headers_enabled": True}], ids=["draft", "slowapi"])
def test_while_degraded_no_header_tells_what_nobody_knows(options):
    """RateLimit and X-RateLimit-* are absent; a refusal still says when to come again, and may not be cached."""
    client = client_of(route_app("1/hour", options=options))
    passed = client.get("/")
    assert passed.status_code == 200
    refused = client.get("/")
    assert refused.status_code == 429
    for answer in (passed, refused):
        assert [name for name in answer.headers if "ratelimit" in name] == []
    assert "retry-after" not in passed.headers
    assert 3599 <= int(refused.headers["retry-after"]) <= 3600
    assert refused.headers["cache-control"] == "no-store"
    assert refused.json()["degraded"] is True


def test_slowapis_own_handler_writes_no_figures_while_degraded():
    from service.limits import RateLimitExceeded, _rate_limit_exceeded_handler

    app = route_app("1/hour", options={"headers_enabled": True})
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    client = client_of(app)
    client.get("/")
    refused = client.get("/")
    assert refused.status_code == 429
    assert [name for name in refused.headers if "ratelimit" in name] == []
    assert int(refused.headers["retry-after"]) >= 3599


async def test_a_check_outside_a_request_says_that_it_is_degraded():
    limiter = Limiter(by_user, storage_uri=GONE)
    decisions = [await limiter.check("alice", "2/hour") for _ in range(4)]
    assert [decision.allowed for decision in decisions] == [True, True, False, False]
    assert all(decision.degraded for decision in decisions)
    assert limiter.engine.counters.degraded == {"allow": 0, "deny": 0, "local": 4}
    await limiter.aclose()


def test_a_unit_that_deduct_when_returns_is_returned_where_it_was_charged():
    limiter = Limiter(by_user, storage_uri=GONE)
    app = FastAPI()

    @app.get("/")
    @limiter.limit("2/hour", deduct_when=lambda response: response.status_code == 401)
    async def index():
        return {}

    assert statuses(client_of(gated(app, limiter)), "/", 5) == [200] * 5
