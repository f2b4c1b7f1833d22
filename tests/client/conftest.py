"""A real service for both clients: `onequota serve` with two workers on a real Redis."""

import httpx2 as httpx
import pytest
from both import KEY, PATIENT, opened
from running import onequota

LIMITS = """
domain: chat
descriptors:
  - key: user
    limits: 2/minute
    descriptors: [{key: model, limits: 100/hour}]
  - {key: team, rate_limit: {unit: minute, requests_per_unit: 0}}
  - {key: job, limits: 2/minute, algorithm: concurrency}
"""


@pytest.fixture(scope="module")
def service(_one_redis, tmp_path_factory):
    with _one_redis.client() as client:
        client.flushall()
    folder = tmp_path_factory.mktemp("service")
    variables = {"ONEQUOTA_API_KEYS": f"tests:{KEY}:*", "ONEQUOTA_REDIS_TIMEOUT_MS": "5000"}
    (folder / "limits.yaml").write_text(LIMITS)
    options = ("--workers", "2", "--port", "0", "--redis", _one_redis.url, "--limits", "limits.yaml")
    with onequota(folder, "serve", *options, variables=variables) as running:
        httpx.get(running.banner["url"] + "/health", timeout=60)  # until a worker serves
        yield running.banner["url"]


@pytest.fixture
def client(service, kind):
    with opened(kind, service, api_key=KEY, **PATIENT) as client:
        yield client
