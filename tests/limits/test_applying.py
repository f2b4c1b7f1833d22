"""Which limits apply to a request, in which order, charged to whom: application, route and default limits."""

import asyncio

import pytest
from driving import by_user, client_of, gated, limiter_of, statuses
from fastapi import FastAPI


@pytest.fixture(params=[True, False], ids=["gate", "no-gate"])
def app(request):
    """An app whose limiter, `app.state.limiter`, the tests replace; with and without the middleware."""
    app = FastAPI()
    app.state.with_gate = request.param
    return app


def attach(app, limiter):
    app.state.limiter = limiter
    if app.state.with_gate:
        app.add_middleware(limiter.middleware)
    return limiter


def policies(response):
    """The names in RateLimit-Policy, in order."""
    return [member.partition(";")[0].strip(' "') for member in response.headers.get("ratelimit-policy", "").split(",")]


APPLIES = [
    # (decorators on the route), what a request is charged, in order
    ((), ["1000/day", "500/day"]),
    ((("5/minute", {}),), ["1000/day", "5/minute"]),
    ((("5/minute", {"override_defaults": False}),), ["1000/day", "5/minute", "500/day"]),
    ((("5/minute", {"override_defaults": False}), ("6/minute", {})), ["1000/day", "6/minute", "5/minute"]),
    ((("5/minute", {"methods": ["POST"], "override_defaults": False}),), ["1000/day", "500/day"]),
    ((("5/minute", {"methods": ["get"]}),), ["1000/day", "5/minute"]),
    ((("5/minute", {"exempt_when": lambda: True}),), ["1000/day"]),
    ((("5/minute", {"exempt_when": lambda request: "x-user" in request.headers}),), ["1000/day", "5/minute"]),
    ((("5/minute;6/hour", {}),), ["1000/day", "5/minute", "6/hour"]),
    ((("5/minute", {"name": "send"}),), ["1000/day", "send"]),
]


@pytest.mark.parametrize(("decorators", "applied"), APPLIES)
def test_application_route_and_default_limits_apply_in_slowapis_order(decorators, applied, app):
    """Application limits always; defaults where no limit of the route overrides them."""
    limiter = attach(app, limiter_of(default_limits=["500/day"], application_limits=["1000/day"]))

    async def index():
        return {}

    for text, options in reversed(decorators):
        index = limiter.limit(text, **options)(index)
    app.get("/")(index)
    if decorators or app.state.with_gate:  # an undecorated route is limited by the gate only
        assert sorted(policies(client_of(app).get("/"))) == sorted(applied)


def test_application_limits_are_one_counter_for_the_whole_app(app):
    """Decorated routes spend from it wherever they are; default limits count for each route."""
    limiter = attach(app, limiter_of(application_limits=["3/hour"], default_limits=["2/hour"]))

    @app.get("/a")
    @limiter.limit("9/hour", override_defaults=False)
    async def a():
        return {}

    @app.get("/b")
    @limiter.limit("9/hour", override_defaults=False)
    async def b():
        return {}

    client = client_of(app)
    assert [client.get(path).status_code for path in ("/a", "/b", "/b", "/b")] == [200, 200, 200, 429]
    assert statuses(client, "/a", 1) == [429]


def test_default_limits_count_for_each_route_and_reach_undecorated_ones():
    """The gate limits what nobody decorated; each route has its own counter."""
    app = gated(FastAPI(), limiter_of(default_limits=["1/hour"]))

    @app.get("/a")
    def a():
        return {}

    @app.get("/b")
    def b():
        return {}

    client = client_of(app)
    assert [client.get(path).status_code for path in ("/a", "/b", "/a", "/b")] == [200, 200, 429, 429]


@pytest.mark.parametrize("order", ["exempt-over-limit", "limit-over-exempt", "exempt-alone"])
def test_an_exempt_route_is_never_charged(order, app):
    """Application and default limits included, and whichever decorator stands on top."""
    limiter = attach(app, limiter_of(application_limits=["1/hour"], default_limits=["1/hour"]))

    async def index():
        return {}

    layers = {
        "exempt-over-limit": [limiter.limit("1/hour"), limiter.exempt],
        "limit-over-exempt": [limiter.exempt, limiter.limit("1/hour")],
        "exempt-alone": [limiter.exempt],
    }
    for layer in layers[order]:
        index = layer(index)
    app.get("/")(index)
    assert statuses(client_of(app), "/", 3) == [200] * 3


def test_per_method_counts_each_method_and_head_as_get(app):
    """Without it all methods of a function share the counter."""
    limiter = attach(app, limiter_of())

    @app.api_route("/each", methods=["GET", "HEAD", "POST"])
    @limiter.limit("1/hour", per_method=True)
    async def each():
        return {}

    @app.api_route("/all", methods=["GET", "HEAD", "POST"])
    @limiter.limit("1/hour")
    async def all_():
        return {}

    client = client_of(app)
    assert [client.request(m, "/each").status_code for m in ("GET", "POST", "HEAD", "POST")] == [200, 200, 429, 429]
    assert [client.request(m, "/all").status_code for m in ("HEAD", "GET", "POST")] == [200, 429, 429]


def test_only_the_named_methods_are_charged(app):
    """`methods=["POST"]`, in any case; HEAD goes with GET."""
    limiter = attach(app, limiter_of())

    @app.api_route("/", methods=["GET", "HEAD", "POST"])
    @limiter.limit("1/hour", methods=["post"])
    @limiter.limit("2/hour", methods=["GET"])
    async def index():
        return {}

    client = client_of(app)
    assert [client.request(m, "/").status_code for m in ("POST", "POST", "GET", "HEAD", "GET")] == [
        200,
        429,
        200,
        200,
        429,
    ]


EXEMPT_WHEN = [
    lambda: True,
    lambda request: request.headers["x-user"] == "root",
    lambda anything: anything.headers["x-user"] == "root",
]


@pytest.mark.parametrize("exempt_when", EXEMPT_WHEN)
def test_exempt_when_takes_nothing_or_the_request(exempt_when, app):
    """As in slowapi, whatever the argument is called."""
    limiter = attach(app, limiter_of())

    @app.get("/")
    @limiter.limit("1/hour", exempt_when=exempt_when)
    async def index():
        return {}

    assert statuses(client_of(app), "/", 3, headers={"x-user": "root"}) == [200] * 3


def test_exempt_when_may_be_awaited(app):
    """A plan looked up in a database: the answer is awaited, not taken for true because it is an object."""
    limiter = attach(app, limiter_of())

    async def never(request):
        await asyncio.sleep(0)
        return False

    @app.get("/")
    @limiter.limit("1/hour", exempt_when=never)
    async def index():
        return {}

    assert statuses(client_of(app), "/", 2) == [200, 429]


async def by_plan_awaited(request):
    await asyncio.sleep(0)
    return "1/hour" if by_user(request) == "alice" else "2/hour"


DYNAMIC = [
    lambda: "1/hour",
    lambda key: "1/hour" if key == "alice" else "2/hour",
    lambda request: "1/hour" if by_user(request) == "alice" else "2/hour",
    by_plan_awaited,
]


@pytest.mark.parametrize("limit_value", DYNAMIC, ids=["nothing", "key", "request", "awaited"])
def test_a_limit_can_be_computed_from_nothing_the_key_or_the_request(limit_value, app):
    """Per-tier limits: slowapi's () and (key), and what its users ask for, (request) and coroutine functions."""
    limiter = attach(app, limiter_of())

    @app.get("/")
    @limiter.limit(limit_value)
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 2) == [200, 429]
    bob = [200, 429, 429] if limit_value is DYNAMIC[0] else [200, 200, 429]
    assert statuses(client, "/", 3, headers={"x-user": "bob"}) == bob


def test_application_and_default_limits_can_be_computed_too():
    """They take the same functions as a decorator."""
    app = gated(
        FastAPI(), limiter_of(application_limits=[lambda: "3/hour"], default_limits=[lambda key: f"{len(key)}/day"])
    )

    @app.get("/")
    async def index():
        return {}

    client = client_of(app)
    assert sorted(policies(client.get("/"))) == ["3/hour", "5/day"]
    assert sorted(policies(client.get("/", headers={"x-user": "bob"}))) == ["3/day", "3/hour"]


def test_a_computed_limit_that_cannot_be_read_is_an_error_not_no_limit(app):
    """The route answers 500 and does not run: an endpoint that was meant to be limited is never open."""
    limiter = attach(app, limiter_of())
    ran = []

    @app.get("/")
    @limiter.limit(lambda: "10/fortnight")
    async def index():
        ran.append(1)

    assert client_of(app).get("/").status_code == 500
    assert not ran


def test_a_shared_scope_can_be_computed(app):
    """One counter for each tenant, on all routes."""
    limiter = attach(app, limiter_of())
    by_tenant = limiter.shared_limit("1/hour", scope=lambda request: request.headers["x-tenant"])

    @app.get("/a")
    @by_tenant
    async def a():
        return {}

    @app.get("/b")
    @by_tenant
    async def b():
        return {}

    client = client_of(app)
    asked = [("/a", "acme"), ("/b", "acme"), ("/b", "bolt")]
    assert [client.get(path, headers={"x-tenant": t}).status_code for path, t in asked] == [200, 429, 200]


def test_each_limit_may_charge_somebody_else(app):
    """`key_func` on a limit: by user and by tenant in one request, all or nothing."""
    limiter = attach(app, limiter_of())

    @app.get("/")
    @limiter.limit("2/hour", key_func=lambda request: request.headers["x-tenant"])
    @limiter.limit("1/hour")
    async def index():
        return {}

    client = client_of(app)
    asked = [("alice", "acme"), ("alice", "acme"), ("bob", "acme"), ("carol", "acme"), ("carol", "bolt")]
    got = [client.get("/", headers={"x-user": u, "x-tenant": t}).status_code for u, t in asked]
    assert got == [200, 429, 200, 429, 200]


def test_a_key_function_may_take_nothing(app):
    """slowapi's `key_func=lambda: "everybody"`."""
    limiter = attach(app, limiter_of(key_func=lambda: "everybody"))

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    client = client_of(app)
    assert [client.get("/", headers={"x-user": user}).status_code for user in ("alice", "bob")] == [200, 429]


def test_the_same_limit_twice_on_one_route_is_one_counter_charged_once(app):
    """Two decorators that name one counter, or a default and a decorator, do not halve each other."""
    limiter = attach(app, limiter_of())

    @app.get("/")
    @limiter.limit("4/hour")
    @limiter.limit("4/hour", override_defaults=False)
    async def index():
        return {}

    assert statuses(client_of(app), "/", 5) == [200] * 4 + [429]
