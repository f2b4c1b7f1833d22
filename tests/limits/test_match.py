"""The Table says beforehand which endpoint a request reaches: compared with the one that the framework then runs."""

import asyncio
import itertools
import re

import pytest
from driving import Wire
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Match, Mount, Route, Router, WebSocketRoute

from service.limits.match import Table


class App:
    """An app under construction; endpoints tell `ran` that they ran."""

    def __init__(self):
        self.ran = []
        self.names = itertools.count()

    def endpoint(self, label):
        """A FastAPI endpoint."""

        async def endpoint():
            self.ran.append(endpoint)
            return {}

        endpoint.__qualname__ = label
        return endpoint

    def starlette_endpoint(self, label):
        async def endpoint(request):
            self.ran.append(endpoint)
            return PlainTextResponse("")

        endpoint.__qualname__ = label
        return endpoint

    def websocket(self, label):
        async def endpoint(websocket):
            self.ran.append(endpoint)
            await websocket.close()

        endpoint.__qualname__ = label
        endpoint.__annotations__ = {"websocket": __import__("fastapi").WebSocket}
        return endpoint

    def view(self, label):
        """A class-based view with GET and POST."""

        class View(HTTPEndpoint):
            async def get(view, request):  # noqa: N805
                self.ran.append(View)
                return PlainTextResponse("")

            post = get

        View.__qualname__ = label
        return View

    def asgi(self, label):
        """An ASGI app without routes."""

        async def app(scope, receive, send):
            self.ran.append(None)
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            else:
                await PlainTextResponse("")(scope, receive, send)

        return app


async def reached(app, kind, method, path, headers=None):
    """(predicted place, what ran); the app's own answers (404, 405, redirects) run nothing."""
    extra = {"type": kind} | ({"scheme": "ws", "subprotocols": []} if kind == "websocket" else {})
    wire = Wire(app.asgi_app, path, method=method, extra=extra, headers=headers)
    if kind == "websocket":
        del wire.scope["method"]
        messages = [{"type": "websocket.connect"}]

        async def receive():
            return messages.pop() if messages else {"type": "websocket.disconnect", "code": 1000}

        wire.receive = receive
    place = Table(app.asgi_app.router.routes).find(dict(wire.scope))
    app.ran.clear()
    await wire.run()
    return place, list(app.ran)


def agrees(place, ran):
    """A prediction is right if the endpoint it names ran, or nothing ran and it names none."""
    if not ran:
        return place is None or place.endpoint is None or wrong_method(place)
    return place is not None and ran == [place.endpoint]


def wrong_method(place):
    """A class-based view answers 405 itself, and takes every method."""
    return isinstance(place.endpoint, type)


# ── any tree of routes ───────────────────────────────────────────────────────────────────────────────────────────────

SEGMENTS = ["a", "b", "ab", "{}", "{:int}", "{:path}", "x.{}", "{}.x", "{:float}", "{:uuid}"]
UUID = "12345678-1234-1234-1234-123456789abc"
PATHS = ["a", "1", "2", "b", "ab", "", "c", "1.5", UUID, "x.y", "y.x", "x.", "é", "a b", "{}", "a%2Fb", "..", "A"]
NESTS = ["include", "mount FastAPI", "mount Starlette", "mount Router"]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"]

templates = st.lists(st.sampled_from(SEGMENTS), min_size=0, max_size=3).map(lambda found: "/" + "/".join(found))
trailing = st.builds(lambda t, slash: t + "/" * (slash and t != "/"), templates, st.booleans())
prefixes = st.lists(st.sampled_from(SEGMENTS[:5]), min_size=1, max_size=2).map(lambda found: "/" + "/".join(found))
verbs = st.sampled_from([["GET"], ["GET", "POST"], ["POST"], ["PUT", "DELETE"], ["GET", "HEAD"], ["OPTIONS"]])

leaves = st.one_of(
    st.tuples(st.just("route"), trailing, verbs),
    st.tuples(st.just("starlette"), trailing, verbs),
    st.tuples(st.just("view"), trailing),
    st.tuples(st.just("websocket"), trailing),
)
trees = st.recursive(
    st.lists(leaves, min_size=1, max_size=4),
    lambda inner: st.lists(
        st.one_of(
            leaves,
            st.tuples(st.sampled_from(NESTS), prefixes, inner),
            st.tuples(st.just("include"), st.just(""), inner),
            st.tuples(st.just("mount app"), prefixes),
        ),
        min_size=1,
        max_size=4,
    ),
    max_leaves=10,
)
paths = st.lists(st.sampled_from(PATHS), min_size=0, max_size=5).map(lambda found: "/" + "/".join(found))
requests = st.lists(
    st.tuples(
        st.sampled_from(["http", "http", "http", "websocket"]),
        st.one_of(st.sampled_from(["GET", "POST"]), st.sampled_from(METHODS)),
        st.one_of(st.integers(0, 30), st.integers(0, 30), paths),  # a path of the app's own n-th template, or any
        st.lists(st.sampled_from(PATHS), min_size=1, max_size=4),
    ),
    min_size=4,
    max_size=16,
)


def undocumented():
    """A FastAPI app without the documentation's routes, which tell nothing when they run."""
    return FastAPI(openapi_url=None)


def grow(app, router, tree):
    """The routes of a tree, on anything with FastAPI's or Starlette's way to take them."""

    def named(template):
        return template.replace("{:", "{}:").replace("{}:", "{@:").replace("{}", "{@}").replace("@", "p@")

    def unique(template):
        parts = named(template).split("p@")
        return "".join(part + (f"p{next(app.names)}" if i < len(parts) - 1 else "") for i, part in enumerate(parts))

    fast = isinstance(router, (FastAPI, APIRouter))
    routes = router.router.routes if isinstance(router, (FastAPI, Starlette)) else router.routes
    for kind, template, *rest in tree:
        path = unique(template)
        label = f"{kind} {path}"
        if kind == "route" and fast:
            router.api_route(path, methods=rest[0])(app.endpoint(label))
        elif kind in ("route", "starlette"):
            routes.append(Route(path, app.starlette_endpoint(label), methods=rest[0]))
        elif kind == "view":
            routes.append(Route(path, app.view(label)))
        elif kind == "websocket" and fast:
            router.websocket(path)(app.websocket(label))
        elif kind == "websocket":
            routes.append(WebSocketRoute(path, app.websocket(label)))
        elif kind == "include" and fast:
            inner = APIRouter()
            grow(app, inner, rest[0])
            router.include_router(inner, prefix=path)
        elif kind == "mount app":
            routes.append(Mount(path, app.asgi(label)))
        else:
            inner = {"mount FastAPI": undocumented, "mount Starlette": Starlette}.get(kind, Router)()
            grow(app, inner, rest[0])
            routes.append(Mount(path or "/m", inner))


def filled(template, words):
    """A path of a template, its parameters taken from the words in turn."""
    word = itertools.cycle(words)
    return re.sub("{[^}]*}", lambda _: next(word), template)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees, asked=requests)
def test_the_table_predicts_what_the_framework_does(tree, asked):
    """Whatever is included, mounted and nested: the endpoint that was predicted is the one that ran."""
    app = App()
    app.asgi_app = undocumented()
    grow(app, app.asgi_app, tree)

    known = [place.template for place in Table(app.asgi_app.router.routes).places]

    async def all_of_them():
        for kind, method, path, words in asked:
            path = path if isinstance(path, str) else filled(known[path % len(known)], words)  # noqa: PLW2901
            place, ran = await reached(app, kind, method, path)
            assert agrees(place, ran), (kind, method, path, place and place.template, ran)

    asyncio.run(all_of_them())


# ── one app that can be read ─────────────────────────────────────────────────────────────────────────────────────────


def shop():
    """A readable app: overlapping templates, order that matters, routers in routers, mounts."""
    app = App()
    fast = app.asgi_app = undocumented()
    fast.get("/items/special")(app.endpoint("special"))
    fast.get("/items/{id:int}")(app.endpoint("numbered"))
    fast.get("/items/{name}")(app.endpoint("named"))
    fast.post("/items/{name}")(app.endpoint("made"))
    fast.get("/items")(app.endpoint("all"))
    fast.get("/files/{path:path}")(app.endpoint("file"))
    fast.get("/files/never")(app.endpoint("shadowed"))
    inner = APIRouter(prefix="/inner/{org}")
    inner.get("/x")(app.endpoint("x of inner"))
    outer = APIRouter(prefix="/outer")
    outer.get("/x")(app.endpoint("x of outer"))
    outer.include_router(inner)
    fast.include_router(outer, prefix="/v1")
    fast.include_router(outer, prefix="/v2")
    sub = Starlette(routes=[Route("/", app.starlette_endpoint("root of sub")), Route("/view", app.view("view"))])
    fast.mount("/sub", sub)
    fast.get("/sub/unreachable")(app.endpoint("behind a mount"))
    fast.get("/{anything}")(app.endpoint("anything"))
    return app


SHOP = [
    ("GET", "/items/special", "special", "/items/special"),
    ("GET", "/items/7", "numbered", "/items/{id:int}"),
    ("GET", "/items/7.5", "named", "/items/{name}"),
    ("POST", "/items/7", "made", "/items/{name}"),
    ("POST", "/items/special", "made", "/items/{name}"),
    ("DELETE", "/items/7", None, None),
    ("HEAD", "/items/7", None, None),
    ("GET", "/items", "all", "/items"),
    ("GET", "/items/", None, None),
    ("GET", "/files/a/b", "file", "/files/{path:path}"),
    ("GET", "/files/never", "file", "/files/{path:path}"),
    ("GET", "/files/", "file", "/files/{path:path}"),
    ("GET", "/v1/outer/x", "x of outer", "/v1/outer/x"),
    ("GET", "/v2/outer/x", "x of outer", "/v2/outer/x"),
    ("GET", "/v1/outer/inner/acme/x", "x of inner", "/v1/outer/inner/{org}/x"),
    ("GET", "/sub/", "root of sub", "/sub/"),
    ("GET", "/sub", "anything", "/{anything}"),
    ("POST", "/sub/view", "view", "/sub/view"),
    ("GET", "/sub/unreachable", None, "/sub/{path:path}"),
    ("GET", "/sub/none", None, "/sub/{path:path}"),
    ("GET", "/whatever", "anything", "/{anything}"),
    ("GET", "/a/b", None, None),
    ("GET", "/", None, None),
    ("GET", "/ITEMS/special", None, None),
]


@pytest.mark.parametrize(("method", "path", "name", "template"), SHOP)
async def test_a_readable_app_is_matched_as_it_is_routed(method, path, name, template):
    """The template is what keys are made of: never a path that a client chose."""
    place, ran = await reached(shop(), "http", method, path)
    assert [found.__qualname__ for found in ran] == ([name] if name else [])
    assert (place.template if place else None) == template
    assert agrees(place, ran)


# ── routes with rules of their own ───────────────────────────────────────────────────────────────────────────────────


class Versioned(APIRoute):
    """Matches only requests that ask for version 2."""

    def matches(self, scope):
        match, child = super().matches(scope)
        if (b"x-version", b"2") not in scope.get("headers", []):
            return Match.NONE, {}
        return match, child


@pytest.mark.parametrize("included", [False, True], ids=["on the app", "in a router"])
@pytest.mark.parametrize(("version", "name"), [("2", "new"), ("1", "old")])
async def test_a_route_class_with_a_rule_of_its_own_is_asked(included, version, name):
    """Versions by header: two routes of one path."""
    app = App()
    app.asgi_app = undocumented()
    router = APIRouter(route_class=Versioned) if included else app.asgi_app.router
    router.route_class = Versioned
    router.add_api_route("/x", app.endpoint("new"))
    if included:
        app.asgi_app.include_router(router)
    app.asgi_app.router.route_class = APIRoute
    app.asgi_app.add_api_route("/x", app.endpoint("old"))
    place, ran = await reached(app, "http", "GET", "/x", {"x-version": version})
    assert [found.__qualname__ for found in ran] == [name]
    assert agrees(place, ran)


@pytest.mark.parametrize(("host", "takes"), [("api.example", True), ("www.example", False)])
async def test_a_host_takes_its_requests_before_what_stands_behind_it(host, takes):
    """What runs there is the host's application's affair; the others are matched by the paths."""
    app = App()
    behind = app.starlette_endpoint("behind")
    app.asgi_app = Starlette(
        routes=[Host("api.example", Router([Route("/x", app.starlette_endpoint("api"))])), Route("/x", behind)]
    )
    place, ran = await reached(app, "http", "GET", "/x", {"host": host})
    assert [found.__qualname__ for found in ran] == ["api" if takes else "behind"]
    assert place.endpoint is (None if takes else behind)
