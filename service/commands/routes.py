"""The limits of an app, route by route: which hold, and why the others do not. Nothing is asked or charged here."""

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import Mount

from service import target as targets
from service.errors import ConfigurationError, OnequotaError
from service.limits import Limit, Limiter
from service.limits.decorator import MARK, layers, named, original, quotas
from service.limits.gate import Gate
from service.limits.match import METHODS, Place, Table
from service.limits.plan import Plan, Rule
from service.target import Target, unloadable


@dataclass(frozen=True, slots=True)
class Applied:
    """One declared limit at one place.

    Attributes:
        rule: What is declared.
        origin: `application`, `route`, `dependency` or `default`.
        scope: Of its counters; None = it does not hold here, or the scope is computed per request.
        reason: Why it does not hold; "" = it does.
    """

    rule: Rule
    origin: str
    scope: str | None = None
    reason: str = ""

    def limits(self, key: str | None = None) -> tuple[Limit, ...]:
        """What it admits, as far as that is known without a request; () = it is computed per request."""
        function = self.rule.limits
        if not callable(function):
            return function
        wanted = list(inspect.signature(function).parameters)
        if wanted == []:
            return self.rule.read(function())
        return self.rule.read(function(key)) if wanted == ["key"] and key is not None else ()


@dataclass(frozen=True, slots=True)
class Row:
    """One place of an app, for methods that are limited alike.

    Attributes:
        place: None = what no route takes.
        methods: In their usual order; `WS` for a WebSocket.
        plan: What is charged; None = nothing.
        applied: All limits that are declared for it, in the order they are charged; those that do not hold last.
        exempt: It is decorated with `exempt`.
    """

    place: Place | None
    methods: tuple[str, ...]
    plan: Plan | None
    applied: tuple[Applied, ...]
    exempt: bool

    @property
    def path(self) -> str:
        return self.place.template if self.place else ""

    @property
    def endpoint(self) -> str:
        """What answers there, `module:function`."""
        return named(original_of(self.place.endpoint)) if self.place and self.place.endpoint is not None else ""


@dataclass(frozen=True, slots=True)
class Section:
    """One limiter of an app, and all its places.

    Attributes:
        limiter: The limiter.
        prefix: Where the app that has it is mounted.
        gated: Its middleware is installed: requests are charged before their body is read.
        rows: In the order of the routes; the last one is what no route takes.
    """

    limiter: Limiter
    prefix: str
    gated: bool
    rows: tuple[Row, ...]


def load(name: str, app_dir: str = ".", *, factory: bool = False) -> Any:
    """The app that MODULE:APP names; what it prints meanwhile goes to standard error. Raises ConfigurationError."""
    targets.check(Target(app=name, app_dir=app_dir))
    module, _, attribute = name.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            app: Any = importlib.import_module(module)
            for part in attribute.split("."):
                app = getattr(app, part)
            app = app() if factory else app
    except OnequotaError:
        raise
    except (Exception, SystemExit) as error:  # whatever it does when it is imported
        raise unloadable(name, f"{type(error).__name__}: {error}") from error
    if not hasattr(getattr(app, "router", None), "routes"):
        hint = "; is it a function that makes the app? Add --factory" if callable(app) else ""
        raise unloadable(name, f"{type(app).__name__} has no routes{hint}")
    return app


def sections(app: Any, prefix: str = "") -> Iterator[Section]:
    """All limiters of an app and of the apps mounted in it. Raises ConfigurationError for what cannot work."""
    within: list[Section] = []
    for route in app.router.routes:
        if isinstance(route, Mount) and _has_own(route.app):
            within += sections(route.app, prefix + route.path)
    table = Table(app.router.routes)
    for limiter, gated in _limiters(app, table, {section.limiter for section in within}).items():
        yield Section(limiter, prefix, gated, tuple(_rows(limiter, table)))
    yield from within


def of_app(app: Any, name: str) -> list[Section]:
    """As `sections`; raises ConfigurationError if there are none."""
    found = list(sections(app))
    if not found:
        raise ConfigurationError(f"{name} has no limiter: set app.state.limiter, and add limiter.middleware")
    return found


def find(app: Any, section: Section, method: str, path: str) -> Row:
    """Where a request to a path of the section's app goes."""
    scope = {
        "type": "websocket" if method == "WS" else "http",
        "method": "" if method == "WS" else method,
        "path": path,
        "root_path": "",
        "headers": [],
        "query_string": b"",
        "app": app,
        "path_params": {},
    }
    place = Table(app.router.routes).find(scope)
    known = method if method in METHODS else ""
    return _row(section.limiter, place, (method,), section.limiter.plan_at(place, known), known)


def inner(app: Any, section: Section) -> Any:
    """The app, of those mounted in `app`, that has a section's limiter."""
    rest = section.prefix
    while rest:
        route = next(
            r for r in app.router.routes if isinstance(r, Mount) and rest.startswith(r.path) and _has_own(r.app)
        )
        rest, app = rest[len(route.path) :], route.app
    return app


def original_of(func: Any) -> Any:
    """The function as it was written."""
    return func if inspect.isclass(func) else layers(func)[-1]


def _has_own(app: Any) -> bool:
    has = getattr(getattr(app, "state", None), "limiter", None) is not None or any(True for _ in _gates(app))
    return has and hasattr(getattr(app, "router", None), "routes")


def _gates(app: Any) -> Iterator[Limiter | None]:
    """The limiter of each of our middlewares; None = it takes app.state.limiter."""
    for middleware in getattr(app, "user_middleware", ()):
        made: Any = middleware.cls
        given = middleware.kwargs.get("limiter")
        if isinstance(made, functools.partial):
            made, given = made.func, made.keywords.get("limiter", given)
        if made is Gate:
            yield given


def _limiters(app: Any, table: Table, within: Collection[Limiter]) -> dict[Limiter, bool]:
    """The limiters of an app, and whether each has its middleware; decorators of those `within` are no sign of one."""
    own = getattr(getattr(app, "state", None), "limiter", None)
    found: dict[Limiter, bool] = {}
    for gate in _gates(app):
        limiter = gate or own
        if limiter is None:
            raise ConfigurationError("the middleware finds no limiter: set app.state.limiter = limiter")
        found[limiter] = True
    if isinstance(own, Limiter):
        found.setdefault(own, False)
    for place in table.places:
        for func in place.functions(""):
            for layer in layers(func):
                for limiter in getattr(layer, MARK, ()):
                    if limiter not in within:
                        found.setdefault(limiter, False)
    return found


def _rows(limiter: Limiter, table: Table) -> Iterator[Row]:
    for place in table.places:
        limiter.check_place(place)
        alike: dict[Any, tuple[list[str], Plan | None]] = {}
        for method in _methods(place):
            plan = limiter.plan_at(place, method)
            entries = None if plan is None else tuple((id(rule), scope) for rule, scope in plan.entries)
            alike.setdefault(entries, ([], plan))[0].append(method)
        for methods, plan in alike.values():
            shown = ["WS"] if place.kind == "websocket" else [m for m in methods if m != "HEAD" or "GET" not in methods]
            yield _row(limiter, place, tuple(shown), plan, methods[0])
    yield _row(limiter, None, (), limiter.plan_at(None, "GET"), "GET")


def _methods(place: Place) -> Sequence[str]:
    if place.kind == "websocket":
        return ("",)
    if inspect.isclass(place.endpoint):
        return [method for method in METHODS if hasattr(place.endpoint, method.lower())] or ("",)
    return [method for method in METHODS if place.methods is None or method in place.methods]


def _row(limiter: Limiter, place: Place | None, methods: tuple[str, ...], plan: Plan | None, method: str) -> Row:
    functions = place.functions(method) if place else ()
    exempt = limiter.exempts(functions)
    scopes = {} if plan is None else {id(rule): scope for rule, scope in plan.entries}
    declared = list(_declared(limiter, place, functions))
    own = [rule for rule, origin in declared if origin in ("route", "dependency")]
    applied = [
        Applied(rule, origin, scopes.get(id(rule)), "" if id(rule) in scopes else _why_not(rule, origin, own, exempt))
        for rule, origin in declared
    ]
    return Row(place, methods, plan, tuple(sorted(applied, key=lambda found: bool(found.reason))), exempt)


def _declared(limiter: Limiter, place: Place | None, functions: Sequence[Any]) -> Iterator[tuple[Rule, str]]:
    """What is declared for a place, in the order it is charged."""
    application, defaults = limiter.everywhere
    yield from ((rule, "application") for rule in application)
    for func in functions:
        yield from ((rule, "route") for rule in limiter.rules_of(original(limiter, func)))
    seen = set()
    for quota in quotas(place.dependant if place else None, limiter):
        if quota not in seen:
            seen.add(quota)
            yield quota.rule, "dependency"
    yield from ((rule, "default") for rule in defaults)


def _why_not(rule: Rule, origin: str, own: Sequence[Rule], exempt: bool) -> str:
    if exempt:
        return "the route is exempt"
    if rule.methods is not None:
        return f"it counts {', '.join(sorted(rule.methods))} only"
    if origin == "default" and any(other.override_defaults for other in own):
        return "the route has limits of its own, which override the defaults"
    return "it does not count this method"
