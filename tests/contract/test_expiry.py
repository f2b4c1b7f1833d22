"""What a twin cannot see: every key expires in time, and no counter grows without bound. On a real Redis."""

import pytest
import redis
from servers import RedisServer

from service.limits.algorithms import ALGORITHMS, script
from service.limits.limit import Limit

NOW_US = 1_790_000_000_123_457


def call(client, limit, cost, now_us, kind=0):
    head = f"1 {kind} 1" if kind != 2 else f"1 {kind} 1 {now_us}"
    return client.eval(script(), 1, "k", now_us, f"{head} {limit.words} {cost}")


@pytest.mark.parametrize("window_s", [1, 60, 86_400])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_counter_expires_when_it_weighs_nothing_and_within_two_windows(
    redis_server: RedisServer, algorithm, window_s
):
    limit = Limit(amount=5, window_s=window_s, algorithm=algorithm)
    with redis_server.client() as client:
        for cost in (1, 4):
            _, _, reset_us, _, _ = call(client, limit, cost, NOW_US)
            left_ms = client.pttl("k")
            assert left_ms >= reset_us / 1000 - 100, "gone before its time"
            assert left_ms <= 2 * window_s * 1000 + 1000


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_counter_of_a_new_window_has_a_whole_life_again(redis_server: RedisServer, algorithm):
    """By the clock that is passed in; by its own, the key is about to expire."""
    limit = Limit(amount=5, window_s=60, algorithm=algorithm)
    with redis_server.client() as client:
        call(client, limit, 1, NOW_US)
        client.pexpire("k", 1_000)
        _, _, reset_us, _, _ = call(client, limit, 1, NOW_US + 61_000_000)
        assert client.pttl("k") >= reset_us / 1000 - 100


def test_a_period_that_is_far_in_the_future_is_no_reason_to_live_longer(redis_server: RedisServer):
    limit = Limit(amount=5, window_s=60, since_s=NOW_US // 1_000_000 + 10**9)
    with redis_server.client() as client:
        call(client, limit, 1, NOW_US)
        assert client.pttl("k") <= 121_000


@pytest.mark.parametrize(
    "words",
    [
        "1 0 1 1 10.0 60000000 0 0 0 1",  # seven numbers became eight
        "1 0 1 1 10 60000000 0 0 0",
        "2 0 1 1 10 60000000 0 0 0 1",
        "1 0 2 1 10 60000000 0 0 0 1",
        "311040000000000 0 0",
        "1 0 1 1 10 60000000 0 0 0 1 311040000000000 0 0",  # would go on for weeks
        "",
    ],
)
def test_words_that_are_no_asks_are_an_error_and_nothing_is_written(redis_server: RedisServer, words):
    with redis_server.client() as client:
        with pytest.raises(redis.ResponseError):
            client.eval(script(), 1, "k", NOW_US, words)
        assert client.keys() == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_looking_writes_nothing(redis_server: RedisServer, algorithm):
    limit = Limit(amount=5, window_s=60, algorithm=algorithm)
    with redis_server.client() as client:
        call(client, limit, 1, NOW_US, kind=1)
        call(client, limit, 0, NOW_US)
        assert client.keys() == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_counter_that_owes_expires_within_two_windows_too(redis_server: RedisServer, algorithm):
    """A billion units on a limit of 5: the key lives as long as they weigh, and no longer."""
    limit = Limit(amount=5, window_s=60, algorithm=algorithm)
    with redis_server.client() as client:
        _, remaining, reset_us, _, _ = call(client, limit, 10**9, NOW_US, kind=3)
        assert remaining == 0
        assert reset_us / 1000 - 100 <= client.pttl("k") <= 121_000


@pytest.mark.parametrize("amount", [10, 1024, 100_000])
def test_debits_beyond_the_limit_make_a_moving_window_hold_at_most_1025_entries_more(redis_server: RedisServer, amount):
    """On a limit that is long used up, in steps smaller than the grid, through more than a window."""
    limit = Limit(amount=amount, window_s=60, algorithm="moving-window")
    with redis_server.client() as client:
        call(client, limit, amount, NOW_US)
        for step in range(5000):
            now_us = NOW_US + step * 13_000
            call(client, limit, amount, now_us, kind=3)
        entries = (client.llen("k") - 1) // 2
        assert 1000 < entries <= min(amount, 1025) + 1025
        assert client.memory_usage("k") < 120_000


@pytest.mark.parametrize("amount", [10, 1024, 100_000])
def test_a_moving_window_holds_at_most_1025_entries(redis_server: RedisServer, amount):
    """Twice through the window in steps smaller than the grid: entries that have left are cut off."""
    limit = Limit(amount=amount, window_s=60, algorithm="moving-window")
    with redis_server.client() as client:
        now_us = NOW_US
        for _ in range(5000):
            now_us += 24_000
            call(client, limit, 1, now_us)
        entries = (client.llen("k") - 1) // 2
        assert entries <= min(amount, 1025)
        assert client.memory_usage("k") < 60_000


def test_a_moving_window_that_never_rests_starts_its_totals_again(redis_server: RedisServer):
    """Totals grow while a key lives; near 2^50 they are taken back, and the count stays right."""
    limit = Limit(amount=10, window_s=60, algorithm="moving-window")
    big = 2**51
    with redis_server.client() as client:
        client.rpush("k", big, NOW_US - 1000, big + 3, NOW_US - 500, big + 5)
        assert call(client, limit, 2, NOW_US)[1] == 3
        assert [int(part) for part in client.lrange("k", 0, -1)] == [0, NOW_US - 1000, 3, NOW_US - 500, 5, NOW_US, 7]
        assert call(client, limit, 4, NOW_US)[1:4] == [3, 60_000_000, 60_000_000 - 1000]


def test_redis_keeps_the_time_when_nobody_passes_one(redis_server: RedisServer):
    import time

    limit = Limit(amount=5, window_s=60)
    with redis_server.client() as client:
        now_us = call(client, limit, 1, 0)[0]
        assert abs(now_us / 1e6 - time.time()) < 60
