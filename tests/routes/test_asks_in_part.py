"""`POST /v1/asks`: what a limiter elsewhere is told when the store decided some of its asks, or none."""

import asyncio

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.errors import StoreUnavailable
from service.settings import Settings

ASKS = [{"kind": "charge", "charges": [[f"oq:{{a{number}}}:c.:10/60s/fixed", 1]]} for number in range(3)]


@pytest.mark.parametrize(
    ("failing", "maybe_done", "told"),
    [
        ({0, 1, 2}, set(), False),
        ({0}, set(), True),  # the two others were charged
        ({1, 2}, set(), True),
        ({0, 1, 2}, {2}, True),
        ({0, 1, 2}, {0}, True),
    ],
)
def test_what_was_charged_in_part_may_have_been_done(failing, maybe_done, told):
    app = create_app(Settings(redis_url="fakeredis://"))
    with TestClient(app) as client:
        engine, number = app.state.limiter.engine, iter(range(3))
        decide = engine.decide

        def failed(ask):
            turn = next(number)
            if turn not in failing:
                return decide(ask)
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(StoreUnavailable("gone", reason="connection", maybe_done=turn in maybe_done))
            return answer

        engine.decide = failed
        answer = client.post("/v1/asks", json={"asks": ASKS})
    assert answer.status_code == 503
    assert (answer.json()["reason"], answer.json()["maybe_done"]) == ("connection", told)
