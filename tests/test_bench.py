"""The measurements measure: both generators, what a report says, and a tenth of `bench exact`."""

import json

import pytest
from servers import needs

from bench import asked, exact, tax
from bench.generator import Result, Task, percentile
from bench.load import Seen, bundled, read_wrk, seen, wrk
from bench.processes import worker
from bench.redises import RedisServer

ALGORITHMS = ("fixed-window", "moving-window", "sliding-window-counter", "gcra")

WRK_REPORT = """\
Running 2s test @ http://127.0.0.1:1/item
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.41ms  590.00us  11.20ms   80.00%
    Req/Sec    13.20k     0.90k   14.10k    70.00%
  Latency Distribution
     50%  980.00us
     75%    2.50ms
     90%    3.10ms
     99%    1.25s
  26410 requests in 2.00s, 4.10MB read
  Socket errors: connect 0, read 2, write 0, timeout 1
  Non-2xx or 3xx responses: 10
Requests/sec:  13205.00
"""


def test_exactly_the_limit_is_admitted_by_eight_processes_for_every_algorithm():
    needs("redis-server")
    counts = exact.exact(requests=2_000, limit=500, workers=8)
    assert [count.algorithm for count in counts] == list(ALGORITHMS)
    for count in counts:
        assert (count.admitted, count.refused, count.errors) == (500, 1_500, 0), count.text()
        assert count.busy_workers > 1, "one process proves nothing"


def test_a_run_with_fewer_requests_than_the_limit_is_no_test():
    with pytest.raises(ValueError, match="send more than the limit"):
        exact.exact(requests=10, limit=10, workers=1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_expected_number_is_the_limit_as_long_as_the_twin_gives_nothing_back(algorithm):
    limit = exact.Limit.parse("10/hour", algorithm=algorithm)[0]
    interval_us = 360 * 1_000_000 if algorithm == "gcra" else 3600 * 1_000_000
    assert exact._expected(limit, 10**15, 10**15 + interval_us - 1) == 10
    with pytest.raises(exact.InconclusiveError, match="units came back"):
        exact._expected(limit, 10**15, 10**15 + 3 * 3600 * 1_000_000)


def test_a_count_that_is_one_off_or_has_an_error_is_not_exact():
    fields = {"algorithm": "gcra", "limit": "5/year", "refused": 5, "expected": 5, "busy_workers": 2}
    assert exact.Count(admitted=5, errors=0, **fields).exact
    assert not exact.Count(admitted=6, errors=0, **fields).exact
    assert not exact.Count(admitted=4, errors=0, **fields).exact
    assert not exact.Count(admitted=5, errors=1, **fields).exact


@pytest.mark.parametrize("with_wrk", [False, True], ids=["bundled", "wrk"])
def test_every_counted_request_was_charged_and_every_server_cost_something(with_wrk):
    needs("redis-server")
    if with_wrk:
        needs("wrk")
    report = tax.measure(rounds=1, requests=300, connections=4, with_wrk=with_wrk)
    [one] = report.rounds
    for name in ("stock", "ours"):  # `measure` itself raises if they differ by one
        assert one[name].charged == one[name].served >= one[name].seen >= 300
        assert one[name].redis_us > 0
        assert 0 < one[name].p50_us <= one[name].p99_us
    assert one["none"].worker_us > 0
    assert json.loads(json.dumps(report.data()))["generator"] == ("wrk" if with_wrk else "bundled generator")
    assert "ours / stock = 1/" in report.text()


@pytest.mark.parametrize("with_wrk", [False, True], ids=["bundled", "wrk"])
def test_every_check_that_was_answered_was_charged_and_the_report_says_what_holds(with_wrk):
    needs("redis-server")
    if with_wrk:
        needs("wrk")
    report = asked.measure(rounds=1, requests=500, bodies=2, connections=4, with_wrk=with_wrk)
    [one] = report.rounds
    for load in ("one", "domain", "many"):  # `measure` itself raises if a unit is missing
        assert one[load].decided >= (2_000 if load == "many" else 500)
        assert one[load].worker_us > 0 and one[load].redis_us > 0
    assert one["bare"].worker_us > 0
    figures = json.loads(json.dumps(report.data()))
    assert figures["of_bare"] == pytest.approx(one["bare"].cpu_us / one["one"].cpu_us, abs=0.001)
    assert figures["of_one"] == pytest.approx(one["one"].cpu_us / one["many"].cpu_us, abs=0.01)
    assert "promised: 0.35" in report.text() and "promised: 8" in report.text()


@pytest.mark.parametrize(("one_us", "many_us", "holds"), [(28, 3.5, True), (28.7, 3.5, False), (28, 3.51, False)])
def test_the_service_costs_what_is_promised_or_it_does_not(one_us, many_us, holds):
    """10 µs of a bare handler are 0.35 of 28.57; 28 are 8 times 3.5."""
    costs = {"bare": 10, "one": one_us, "domain": 30, "many": many_us}
    samples = {load: asked.Sample(worker_us=us, redis_us=0, decided=1) for load, us in costs.items()}
    report = asked.Report(generator="wrk", connections=1, cpus=asked.Cpus.ANY, rounds=[samples])
    assert report.holds is holds


def test_a_check_that_is_answered_and_not_charged_stops_the_measurement():
    bench = asked._Bench(None, {}, requests=100, bodies=1, connections=4, use_wrk=False)
    fine = Seen(ok=100, bad=0, p50_us=1, p99_us=1)
    assert bench._decided("one", fine, charged=100) == 100
    assert bench._decided("many", fine, charged=100_000) == 100_000
    for load, found, charged in [
        ("one", fine, 99),
        ("one", fine, 101),
        ("many", fine, 99_999),
        ("one", Seen(ok=100, bad=1, p50_us=1, p99_us=1), 100),
    ]:
        with pytest.raises(tax.InexactError):
            bench._decided(load, found, charged=charged)


def test_requests_that_were_not_charged_stop_the_measurement():
    bench = tax._Bench(None, requests=100, connections=4, use_wrk=False)
    fine = Seen(ok=100, bad=0, p50_us=1, p99_us=1)
    bench._check("ours", fine, served=100, charged=100)
    for found, served, charged in [
        (fine, 100, 99),
        (fine, 101, 101),
        (fine, 99, 99),
        (Seen(ok=100, bad=1, p50_us=1, p99_us=1), 100, 100),
    ]:
        with pytest.raises(tax.InexactError):
            bench._check("ours", found, served=served, charged=charged)


def test_both_generators_see_what_the_server_served():
    needs("redis-server")
    needs("wrk")
    with RedisServer() as redis, worker("none", redis.socket) as server:
        found = seen(bundled(Task(port=server.port, path="/item", requests=101, connections=8)))
        assert (found.ok, found.bad) == (101, 0)
        assert tax._served(server) == 101
        found = wrk(server.port, "/item", seconds=1, connections=8)
        assert found.bad == 0
        assert found.ok <= tax._served(server) - 101 <= found.ok + 8
        lost = seen(bundled(Task(port=server.port, path="/nowhere", requests=10, connections=2)))
        assert (lost.ok, lost.bad) == (0, 10)


def test_requests_without_an_answer_are_errors_and_are_not_sent_again():
    result = bundled(Task(port=1, requests=5, connections=2))  # nothing listens on port 1
    assert (result.answers, result.errors) == ({}, 5)


def test_a_report_of_wrk_is_read():
    assert read_wrk(WRK_REPORT) == Seen(ok=26_400, bad=13, p50_us=980, p99_us=1_250_000)
    with pytest.raises(ValueError, match="no report"):
        read_wrk("unable to connect")


def test_percentiles_and_statuses_of_the_bundled_generator():
    assert percentile([], 0.5) == 0
    assert [percentile(list(range(100)), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 99]
    result = Result(answers={"200": 3, "429": 2}, errors=1, latencies_us=[5, 7, 9])
    assert seen(result) == Seen(ok=3, bad=3, p50_us=7, p99_us=9)
