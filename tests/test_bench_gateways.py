"""A tenth of `bench gateways`."""

import pytest
from servers import needs

from bench import gateways
from bench.gateways import Mixed, Way


def test_callers_over_grpc_and_http_share_one_counter_exactly() -> None:
    needs("redis-server")
    mixed = gateways.mixed(requests=2_000, limit=500, workers=4)
    assert (mixed.admitted, mixed.exact) == (500, True), mixed.text()
    assert all(way.admitted and way.refused for way in mixed.ways.values()), mixed.text()
    assert mixed.busy_workers > 1, "one process proves nothing"


def test_a_run_with_fewer_requests_than_the_limit_is_no_test() -> None:
    with pytest.raises(ValueError, match="send more than the limit"):
        gateways.mixed(requests=10, limit=8, workers=1)


def test_one_more_one_less_and_an_error_are_not_exact() -> None:
    def told(admitted: int, errors: int = 0) -> bool:
        ways = {"gRPC": Way(admitted=admitted, refused=5, errors=errors), "/json": Way(admitted=3, refused=1, errors=0)}
        return Mixed(limit=10, ways=ways, busy_workers=2).exact

    assert told(7)
    assert not told(6)
    assert not told(8)
    assert not told(7, errors=1)
