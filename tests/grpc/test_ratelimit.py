"""Envoy's rate-limit service over gRPC: a real client, a real server, the tables of envoycases.py."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import envoycases
import grpc
import pytest
from calling import channel
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc
from envoycases import BAD, CASES, HEADERS, ask
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.callers import Callers, parse
from service.errors import StoreUnavailable
from service.grpc.ratelimit import NAME, RateLimit
from service.grpc.server import Server
from service.limits import Limiter, catalog
from service.limits.fallback import Fallback

SECRET = "5f1d7a84e2c09b36a7d41ce80f93b265"
FILE = catalog.parse(envoycases.FILE)


@asynccontextmanager
async def serving(keys: str | None = None, **more: Any) -> AsyncIterator[Any]:
    """A stub of a service of its own, with its counters."""
    limiter = Limiter(lambda: "x", storage_uri="memory://")
    callers = Callers(parse(keys) if keys else (), limiter, "2/minute")
    engine = more.pop("engine", None) or envoycases.engine()
    service = RateLimit(engine, lambda: FILE, callers, clock=envoycases.now_us, **more)
    listener = socket.create_server(("127.0.0.1", 0))
    place = f"127.0.0.1:{listener.getsockname()[1]}"
    async with (
        Server(listener, {NAME: {"ShouldRateLimit": service.should_rate_limit}}),
        channel(place) as opened,
    ):
        yield opened
    await limiter.aclose()


def call(opened: Any, request: dict[str, Any], **more: Any) -> Any:
    message = json_format.ParseDict(request, rls_pb2.RateLimitRequest())
    return rls_pb2_grpc.RateLimitServiceStub(opened).ShouldRateLimit(message, timeout=20, **more)


async def refused(call: Any) -> tuple[str, str]:
    """Status and details of a call that fails. Keeps nothing of it: a client does not close under a call it holds."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError("it was answered")


@pytest.mark.parametrize("name", CASES)
async def test_each_field_of_each_answer(name: str) -> None:
    async with serving() as opened:
        for request, is_over, statuses in CASES[name]:
            answer = json_format.MessageToDict(await call(opened, request))
            assert answer["statuses"] == statuses
            assert answer["overallCode"] == ("OVER_LIMIT" if is_over else "OK")


@pytest.mark.parametrize(("name", "request_", "headers"), HEADERS, ids=[name for name, _, _ in HEADERS])
async def test_headers_for_the_client(name: str, request_: dict[str, Any], headers: list[tuple[str, str]]) -> None:
    async with serving() as opened:
        answer = await call(opened, request_)
    assert [(header.key, header.value) for header in answer.response_headers_to_add] == headers


@pytest.mark.parametrize(("request_", "said"), BAD, ids=[said for _, said in BAD])
async def test_what_cannot_be_meant_is_an_invalid_argument_that_names_the_field(
    request_: dict[str, Any], said: str
) -> None:
    async with serving() as opened:
        code, details = await refused(call(opened, request_))
    assert (code, details[: len(said)]) == ("INVALID_ARGUMENT", said)


async def test_what_is_no_message_is_an_invalid_argument() -> None:
    async with serving() as opened:
        method = opened.unary_unary(f"/{NAME}/ShouldRateLimit")
        assert await refused(method(b"\xff\xff", timeout=20)) == (
            "INVALID_ARGUMENT",
            "RateLimitRequest: this is no such message",
        )


async def test_an_override_in_weeks_is_understood_though_its_enum_has_none() -> None:
    """The answer's enum has, as 7."""
    async with serving() as opened:
        request = rls_pb2.RateLimitRequest(domain="chat")
        descriptor = request.descriptors.add()
        descriptor.entries.add(key="user", value="alice")
        descriptor.limit.requests_per_unit, descriptor.limit.unit = 3, 7
        answer = await rls_pb2_grpc.RateLimitServiceStub(opened).ShouldRateLimit(request, timeout=20)
        assert (answer.statuses[0].current_limit.unit, answer.statuses[0].limit_remaining) == (7, 2)
        descriptor.limit.unit = 8
        code, details = await refused(rls_pb2_grpc.RateLimitServiceStub(opened).ShouldRateLimit(request, timeout=20))
        assert (code, details[:29]) == ("INVALID_ARGUMENT", "descriptors[0].limit.unit: 8;")


async def test_a_key_is_needed_where_there_are_keys_and_strangers_are_counted_by_address() -> None:
    alice = ask(envoycases.ALICE)
    async with serving(f"gateway:{SECRET}:chat") as opened:
        assert (await call(opened, alice, metadata=[("authorization", f"Bearer {SECRET}")])).overall_code == 1
        assert (await call(opened, alice, metadata=[("x-api-key", SECRET)])).overall_code == 1
        assert (await refused(call(opened, alice)))[0] == "UNAUTHENTICATED"
        wrong = call(opened, alice, metadata=[("authorization", f"Bearer {SECRET[::-1]}")])
        code, details = await refused(wrong)
        assert (code, SECRET[::-1] in details) == ("UNAUTHENTICATED", False)
        assert (await refused(call(opened, alice)))[0] == "RESOURCE_EXHAUSTED"
        assert (await call(opened, alice, metadata=[("x-api-key", SECRET)])).statuses[0].limit_remaining == 2


async def test_a_key_asks_the_domains_of_its_scopes_only() -> None:
    async with serving(f"gateway:{SECRET}:each") as opened:
        metadata = [("authorization", f"Bearer {SECRET}")]
        assert (await call(opened, ask(envoycases.ALICE, domain="each"), metadata=metadata)).overall_code == 1
        code, details = await refused(call(opened, ask(envoycases.ALICE), metadata=metadata))
        assert (code, details) == ("PERMISSION_DENIED", 'domain: key "gateway" may not ask domain "chat"')


async def test_without_a_store_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = envoycases.engine(Fallback("deny"))

    async def away(asks: object) -> None:
        raise StoreUnavailable("redis://:hunter2@somewhere")

    async with serving(engine=engine) as opened:
        monkeypatch.setattr(engine.store(), "decide", away)
        code, details = await refused(call(opened, ask(envoycases.ALICE)))
    assert (code, "hunter2" in details) == ("UNAVAILABLE", False)


async def test_a_fault_of_ours_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("hunter2")

    async with serving() as opened:
        monkeypatch.setattr("service.grpc.ratelimit.plan", fail)
        assert await refused(call(opened, ask(envoycases.ALICE))) == ("INTERNAL", "internal error")


async def test_more_calls_than_may_be_under_way_are_shed(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    engine, go_on = envoycases.engine(), asyncio.Event()
    decide = engine.store().decide

    async def slow(asks: Any) -> Any:
        await go_on.wait()
        return await decide(asks)

    monkeypatch.setattr(engine.store(), "decide", slow)
    async with serving(engine=engine, max_in_flight=2) as opened:
        calls = [asyncio.ensure_future(call(opened, ask(envoycases.ALICE))) for _ in range(3)]
        done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=4)
        assert len(pending) == 2
        assert (await refused(done.pop()))[0] == "UNAVAILABLE"
        go_on.set()
        assert [(await each).overall_code for each in pending] == [1, 1]


async def test_health_and_reflection_are_there_and_need_no_key() -> None:
    async with serving(f"gateway:{SECRET}:chat") as opened:
        for name in ("", NAME):
            health = await health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(service=name))
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        info = reflection_pb2_grpc.ServerReflectionStub(opened).ServerReflectionInfo(iter([asked]))
        listed = (await info.read()).list_services_response.service
        assert {service.name for service in listed} == {
            NAME,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        info.cancel()


async def test_a_message_larger_than_a_megabyte_is_refused() -> None:
    async with serving() as opened:
        assert (await refused(call(opened, ask(envoycases.of("user=" + "x" * (1 << 20))))))[0] == "RESOURCE_EXHAUSTED"
