"""Which route a request will reach, known before the framework routes it, so that a refusal comes first.

The table flattens everything FastAPI and Starlette would walk (included routers, mounts, sub-applications) into one
list in their order. Paths without parameters are looked up in a dictionary; the others share a short list per first
path segment. A route class with a matching rule of its own is asked itself.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute, APIWebSocketRoute, iter_route_contexts
from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Host, Match, Mount, Route, WebSocketRoute, compile_path
from starlette.types import Scope

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")

_PARAMETER = re.compile(r"{([a-zA-Z_][a-zA-Z0-9_]*)(:[a-zA-Z_][a-zA-Z0-9_]*)?}")
_KNOWN_MATCHES = {Route.matches, WebSocketRoute.matches, APIRoute.matches, APIWebSocketRoute.matches}


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a request can end up.

    Attributes:
        template: Mounts and route template: `/api/users/{id}`; never a path a client chose.
        endpoint: What is called there; None for a mounted application of another kind.
        methods: HTTP methods it answers; None = any.
        kind: "http" or "websocket"; "mount" takes both and never gives a request back.
        dependant: FastAPI's tree of dependencies, if it is one of its routes.
        fits: Whether a path reaches it.
        asks: The route's own rule, where it has one.
    """

    template: str
    endpoint: Any
    methods: frozenset[str] | None
    kind: str
    dependant: Any
    fits: Callable[[str], object]
    asks: Callable[[Scope], tuple[Match, Scope]] | None = None

    def takes(self, kind: str, method: str, path: str, scope: Scope) -> bool:
        """Whether this is where the request goes, if it got this far down the list."""
        if self.asks is not None:
            return self.asks(dict(scope))[0] is Match.FULL
        if self.kind == "mount":
            return bool(self.fits(path))
        return (
            self.kind == kind
            and (kind == "websocket" or self.methods is None or method in self.methods)
            and bool(self.fits(path))
        )

    @property
    def answers_options(self) -> bool:
        """Whether it handles OPTIONS itself, so that a preflight's headers are no way around its limits."""
        if inspect.isclass(self.endpoint):
            return hasattr(self.endpoint, "options")
        return self.methods is not None and "OPTIONS" in self.methods

    def functions(self, method: str) -> tuple[Any, ...]:
        """The functions that answer a method; for "" all that answer any. A class has one a method."""
        if not inspect.isclass(self.endpoint):
            return () if self.endpoint is None else (self.endpoint,)
        if method:
            names = ["head", "get"] if method == "HEAD" else [method.lower()]
        else:
            names = [name.lower() for name in METHODS] + ["on_connect"]
        found = [getattr(self.endpoint, name, None) for name in names]
        found = [func for func in found if func is not None]
        return tuple(found[:1] if method else found)


class Table:
    """All places of an application.

    Args:
        routes: `app.router.routes`.
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self.places = list(_flatten(routes))
        self._all: dict[str, list[Place]] = {}
        self._rest = [place for place in self.places if _first(place.template) is None]
        for segment in {_first(place.template) for place in self.places} - {None}:
            self._all[str(segment)] = [p for p in self.places if _first(p.template) in (segment, None)]
        self._literal: dict[tuple[str, str, str], Place | None] = {}
        if not any(place.asks for place in self.places):
            for template in {place.template for place in self.places if "{" not in place.template}:
                for method in METHODS:
                    self._literal["http", method, template] = self._walk("http", method, template, {})
                self._literal["websocket", "", template] = self._walk("websocket", "", template, {})

    def find(self, scope: Scope) -> Place | None:
        """Where the request goes; None if nothing takes it (404, 405, a redirect to the other slash)."""
        kind, method = scope["type"], scope.get("method", "")
        path = get_route_path(scope) if scope.get("root_path") else scope["path"]
        if path.endswith("\n"):  # "$" in Starlette's patterns lets one through
            path = path[:-1]
        try:
            return self._literal[kind, method, path]
        except KeyError:
            return self._walk(kind, method, path, scope)

    def is_literal(self, scope: Scope) -> bool:
        """Whether the path alone decides, among finitely many: no parameter, no mounted prefix of a server."""
        return not scope.get("root_path") and (scope["type"], scope.get("method", ""), scope["path"]) in self._literal

    def _walk(self, kind: str, method: str, path: str, scope: Scope) -> Place | None:
        for place in self._all.get(path[1:].partition("/")[0], self._rest):
            if place.takes(kind, method, path, scope):
                return place
        return None


def _flatten(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[Place]:
    for context in iter_route_contexts(routes):
        route: Any = context.original_route
        if isinstance(route, Mount):
            here = prefix + (context.path or "")
            yield from _flatten(getattr(context, "routes", None) or route.routes or (), here)
            rest = here + "/{path:path}"
            yield Place(rest, None, None, "mount", None, _regex(rest).match)
        elif isinstance(route, Host):
            yield Place(f"{{host}}{route.host}", None, None, "mount", None, bool, route.matches)
        elif context.path is not None and isinstance(route, (Route, WebSocketRoute)):
            template = prefix + context.path
            special = type(route).matches not in _KNOWN_MATCHES and not prefix
            yield Place(
                template,
                context.endpoint,
                frozenset(context.methods) if context.methods else None,
                "websocket" if isinstance(route, WebSocketRoute) else "http",
                _dependant(context),
                template.__eq__ if "{" not in template else _regex(template).match,
                _own_rule(context) if special else None,
            )


def _own_rule(context: Any) -> Callable[[Scope], tuple[Match, Scope]]:
    """A route's own `matches`, asked as FastAPI asks it: an included one sees the prefix it was included with."""
    route, included = context.original_route, getattr(context, "_route_context", None)
    if included is None:
        return route.matches  # type: ignore[no-any-return]

    def matches(scope: Scope) -> tuple[Match, Scope]:
        inner = {**scope.get("fastapi", {}), "effective_route_context": included}
        return route.matches({**scope, "fastapi": inner})  # type: ignore[no-any-return]

    return matches


def _dependant(context: Any) -> Any:
    found = getattr(context, "dependant", None)
    return found if found is not None else getattr(getattr(context, "starlette_route", None), "dependant", None)


def _first(template: str) -> str | None:
    """The first path segment, if every path of the template begins with it."""
    segment = template[1:].partition("/")[0]
    return None if "{" in segment or not template.startswith("/") else segment


def _regex(template: str) -> re.Pattern[str]:
    """A template's regular expression; a mount and its child may use one parameter name twice."""
    names = iter(range(template.count("{")))
    return compile_path(_PARAMETER.sub(lambda m: f"{{p{next(names)}{m.group(2) or ''}}}", template))[0]
