"""The limits of an app, route by route."""

import sys
import textwrap

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from service.commands import app_tree, routes, tracing
from service.errors import ConfigurationError
from service.limits import Limiter


def limiter(**more):
    return Limiter(lambda: "alice", storage_uri="memory://", **more)


def rows(app):
    """(methods, path) → limits that hold, limits that do not with the reason."""
    found = {}
    for section in routes.sections(app):
        for row in section.rows:
            held = [
                f"{applied.origin} {';'.join(limit.name for limit in applied.limits())}"
                for applied in row.applied
                if not applied.reason
            ]
            other = [applied.reason for applied in row.applied if applied.reason]
            found[",".join(row.methods), section.prefix + row.path] = (held, other)
    return found


OVERRIDDEN = "the route has limits of its own, which override the defaults"


def chat():
    limits = limiter(default_limits=["100/minute"], application_limits=["1000/hour"])
    app = FastAPI(openapi_url=None)
    app.state.limiter = limits
    app.add_middleware(limits.middleware)
    router = APIRouter(prefix="/users", dependencies=[Depends(limits.quota("7/minute"))])

    @app.post("/chat")
    @limits.limit("20/minute;500/day")
    async def chat(): ...

    @app.get("/more")
    @limits.limit("3/minute", override_defaults=False)
    async def more(): ...

    @app.get("/health")
    @limits.exempt
    async def health(): ...

    @app.api_route("/both", methods=["GET", "POST"])
    @limits.limit("2/minute", methods=["POST"], override_defaults=False)
    async def both(): ...

    @router.get("/{user}")
    async def user(user: str): ...

    @app.websocket("/live")
    @limits.limit("5/minute")
    async def live(websocket: WebSocket): ...

    app.include_router(router)
    return app


def test_every_route_tells_what_holds_in_order_and_why_the_rest_does_not():
    assert rows(chat()) == {
        ("POST", "/chat"): (["application 1000/hour", "route 20/minute;500/day"], [OVERRIDDEN]),
        ("GET", "/more"): (["application 1000/hour", "route 3/minute", "default 100/minute"], []),
        ("GET", "/health"): ([], ["the route is exempt"] * 2),
        ("GET", "/both"): (["application 1000/hour", "default 100/minute"], ["it counts POST only"]),
        ("POST", "/both"): (["application 1000/hour", "route 2/minute", "default 100/minute"], []),
        ("GET", "/users/{user}"): (["application 1000/hour", "dependency 7/minute", "default 100/minute"], []),
        ("WS", "/live"): (["application 1000/hour", "route 5/minute"], [OVERRIDDEN]),
        ("", ""): (["application 1000/hour", "default 100/minute"], []),
    }


def test_what_holds_is_what_the_plan_charges():
    app = chat()
    for section in routes.sections(app):
        for row in section.rows:
            charged = [] if row.plan is None else [rule for rule, _ in row.plan.entries]
            assert [applied.rule for applied in row.applied][: len(charged)] == charged
            assert not any(applied.reason for applied in row.applied[: len(charged)])
            assert all(applied.reason for applied in row.applied[len(charged) :])


def test_mounted_apps_are_told_with_their_own_limiter_and_the_outer_one():
    inner_limits, outer_limits = limiter(), limiter(default_limits=["9/minute"])

    class Things(HTTPEndpoint):
        @inner_limits.limit("1/minute")
        async def get(self, request):
            return PlainTextResponse("")

        async def post(self, request):
            return PlainTextResponse("")

    inner = Starlette(routes=[Route("/things", Things)])
    inner.state.limiter = inner_limits
    inner.add_middleware(inner_limits.middleware)
    outer = Starlette(routes=[Mount("/api", inner)])
    outer.state.limiter = outer_limits
    outer.add_middleware(outer_limits.middleware)
    found = rows(outer)
    assert found["GET", "/api/things"] == (["route 1/minute"], [])  # told last: by its own limiter
    assert found["POST", "/api/things"] == ([], [])
    assert [section.prefix for section in routes.sections(outer)] == ["", "/api"]
    told = tracing.explain(outer, "m:app", "GET", "/api/things?x=1", None, None).document["limiters"]
    assert [(one["mounted"], one["limits"][0]["limits"]) for one in told] == [
        ("", ["9/minute"]),
        ("/api", ["1/minute"]),
    ]


def test_a_limiter_without_middleware_is_found_by_its_decorators():
    limits = limiter()
    app = FastAPI(openapi_url=None)

    @app.get("/a")
    @limits.limit("1/minute")
    async def a(): ...

    [section] = routes.sections(app)
    assert (section.limiter, section.gated) == (limits, False)
    with pytest.raises(ConfigurationError, match="m:app has no limiter"):
        routes.of_app(FastAPI(), "m:app")


def test_limits_that_are_computed_are_told_as_far_as_the_key_goes():
    limits = limiter()
    app = FastAPI(openapi_url=None)
    app.state.limiter = limits
    app.add_middleware(limits.middleware)

    @app.get("/a")
    @limits.limit(lambda: "1/minute")
    @limits.limit(lambda key: "9/minute" if key == "alice" else "2/minute")
    @limits.limit(lambda request: "3/minute")
    async def a(): ...

    [section] = routes.sections(app)
    applied = section.rows[0].applied
    assert sorted([limit.name for limit in one.limits("alice")] for one in applied) == [[], ["1/minute"], ["9/minute"]]
    assert sorted([limit.name for limit in one.limits()] for one in applied) == [[], [], ["1/minute"]]


@pytest.mark.parametrize(
    ("method", "path", "template", "holds"),
    [
        ("get", "/users/alice", "/users/{user}", ["1000/hour", "7/minute", "100/minute"]),
        ("POST", "/chat", "/chat", ["1000/hour", "20/minute", "500/day"]),
        ("GET", "/chat", "unmatched", ["1000/hour", "100/minute"]),
        ("GET", "/nowhere", "unmatched", ["1000/hour", "100/minute"]),
        ("GET", "/health", "/health", []),
    ],
)
def test_a_request_is_traced_to_its_route_and_limits(method, path, template, holds):
    shown = tracing.explain(chat(), "m:app", method, path, None, None)
    [told] = shown.document["limiters"]
    assert told["path"] == template
    assert [name for one in told["limits"] if one["holds"] for name in one["limits"]] == holds
    assert (shown.code, shown.document["allowed"]) == (0, None)


def test_counters_in_memory_cannot_be_looked_into():
    with pytest.raises(ConfigurationError, match="counts in the memory of its own processes: set REDIS_URL"):
        app_tree.tree_of(chat(), "m:app", "alice", None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("oq_good", "oq_broken", "oq_none"):
        sys.modules.pop(name, None)


def test_an_app_is_loaded_by_its_name(folder, capsys):
    code = """
    from fastapi import FastAPI
    from service.limits import Limiter
    print("hello")
    app = FastAPI()
    class Holder: inner = app
    def make(): return app
    number = 3
    """
    (folder / "oq_good.py").write_text(textwrap.dedent(code))
    (folder / "oq_broken.py").write_text("1 / 0")
    (folder / "oq_leaving.py").write_text("raise SystemExit(3)")
    app = routes.load("oq_good:app", str(folder))
    assert routes.load("oq_good:Holder.inner", str(folder)) is app
    assert routes.load("oq_good:make", str(folder), factory=True) is app
    assert capsys.readouterr().out == ""  # what it prints is not taken for the command's answer
    for name, says in [
        ("oq_good:make", "function has no routes; is it a function that makes the app?"),
        ("oq_good:number", "int has no routes"),
        ("oq_good:nothing", "AttributeError: module 'oq_good' has no attribute 'nothing'"),
        ("oq_broken:app", "ZeroDivisionError: division by zero"),
        ("oq_leaving:app", "SystemExit: 3"),
        ("oq_none:app", 'no module "oq_none"'),
        ("oq_good", "wanted MODULE:APP"),
    ]:
        with pytest.raises(ConfigurationError) as caught:
            routes.load(name, str(folder))
        assert says in str(caught.value)
