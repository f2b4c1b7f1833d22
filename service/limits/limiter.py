"""slowapi's Limiter, awaited: the same constructor, decorators and names over the engine of this package.

The only file that names slowapi. Its base class reads the configuration (`RATELIMIT_*`, .env), gives
`isinstance(limiter, slowapi.Limiter)` its truth and `RateLimitExceeded` its `Limit`; its storage is never asked.
What differs on purpose is listed in docs/slowapi.md.
"""

import asyncio
import functools
import inspect
import multiprocessing
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import slowapi
from slowapi.errors import RateLimitExceeded
from slowapi.extension import HEADERS, C
from slowapi.util import get_ipaddr, get_remote_address
from slowapi.wrappers import Limit as SlowapiLimit
from starlette.requests import HTTPConnection
from starlette.responses import Response

from service.errors import ConfigurationError, StoreUnavailable
from service.limits import headers, keys
from service.limits.access import Access, Ban, Newcomers
from service.limits.access.bans import Bans
from service.limits.access.lists import Lists
from service.limits.access.newcomers import Crowd
from service.limits.algorithms import ALGORITHMS
from service.limits.calling import ask
from service.limits.decision import Charge, Decision
from service.limits.decorator import Again, Quota, layers, named, original, quotas, wrap, wraps
from service.limits.direct import Direct, at_once
from service.limits.engine import DEADLINE_S, Engine
from service.limits.fallback import Fallback
from service.limits.gate import Gate
from service.limits.identity import Addresses, client_address
from service.limits.limit import Limit, OnOutage, outage_policy, rate_limit_item
from service.limits.match import METHODS, Place
from service.limits.passage import handler_of, log
from service.limits.plan import UNMATCHED, Plan, Rule, compose
from service.limits.stores import MemoryStore, opener
from service.settings import (
    access_from_env,
    hosts_from_env,
    on_outage_from_env,
    redis_deadline_from_env,
    redis_url_from_env,
    several_workers,
    trusted_proxies_from_env,
)

P = ParamSpec("P")
R = TypeVar("R")

FOREIGN_MIDDLEWARE = (
    "slowapi's own middleware blocks the event loop; import SlowAPIMiddleware or SlowAPIASGIMiddleware "
    "from service.limits, or use app.add_middleware(limiter.middleware)"
)


class Limiter(Direct, slowapi.Limiter):
    """Limits for an ASGI app, counted together by all its workers.

    Takes slowapi's arguments, in slowapi's order, and by name:

    Args:
        key_func: Who is charged: a function of () or (request), also a coroutine function; see `identity`.
        strategy: "fixed-window" (default), "moving-window", "sliding-window-counter" or "gcra".
        storage_uri: Where the counters are; else REDIS_URL, else memory:// (refused when several workers serve).
        storage_options: More arguments for redis-py's client; `sentinel_kwargs` among them for the Sentinels' own.
        headers_enabled: Write X-RateLimit-* and, on every answer, Retry-After, as slowapi does.
        draft_headers: Write RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10).
        trusted_proxies: Networks whose X-Forwarded-For is believed by `identity.client_address`; None reads
            ONEQUOTA_TRUSTED_PROXIES.
        deny: Networks and identities that are never let in: 403; None reads ONEQUOTA_DENY.
        allow: Those that are always let in, uncounted; None reads ONEQUOTA_ALLOW.
        ban: Who is refused so often is refused everything for a while; None reads ONEQUOTA_BAN; see `access.Ban`.
        newcomers: How many identities that nobody vouches for may have counters of their own; None reads
            ONEQUOTA_NEWCOMERS; see `access.Newcomers`.
        on_refusal: A function of (request, decision), also a coroutine function; a Response it returns is the
            answer to the refused request, None leaves it to the registered handler or to problem+json.
        on_outage: What is answered while the store is away, unless a limit says otherwise: "local" (each worker
            admits its share), "allow", or "deny" (503 with Retry-After). None reads ONEQUOTA_ON_OUTAGE, else "local".
        hosts: How many hosts share the counters, for "local"; None reads ONEQUOTA_HOSTS, else 1.
        deadline_s: Seconds a decision may take, from its arrival; None = ONEQUOTA_REDIS_TIMEOUT_MS, else 0.25.
        body_cap_bytes: How much body a coroutine key or cost function may read; more is refused with 413.

    `swallow_errors`, `in_memory_fallback` and `in_memory_fallback_enabled` are taken and do nothing: what happens
    while the store is away is said by `on_outage`. `key_style` does nothing: counters belong to route templates.

    Raises:
        ConfigurationError: An argument cannot be meant.
    """

    def __init__(
        self,
        key_func: Callable[..., Any],
        default_limits: Sequence[str | Callable[..., Any]] = (),
        application_limits: Sequence[str | Callable[..., Any]] = (),
        headers_enabled: bool = False,
        strategy: str | None = None,
        storage_uri: str | None = None,
        storage_options: dict[str, Any] | None = None,
        auto_check: bool = True,
        swallow_errors: bool = False,
        in_memory_fallback: Sequence[str | Callable[..., Any]] = (),
        in_memory_fallback_enabled: bool = False,
        retry_after: str | None = None,
        key_prefix: str = "",
        enabled: bool = True,
        config_filename: str | None = None,
        key_style: str = "url",
        *,
        draft_headers: bool = True,
        trusted_proxies: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        allow: Sequence[str] | None = None,
        ban: Ban | None = None,
        newcomers: Newcomers | None = None,
        on_refusal: Callable[..., Any] | None = None,
        on_outage: str | None = None,
        hosts: int | None = None,
        deadline_s: float | None = None,
        body_cap_bytes: int = 1 << 20,
    ) -> None:
        super().__init__(
            key_func,
            headers_enabled=headers_enabled,
            storage_uri="memory://",
            storage_options={},
            auto_check=auto_check,
            retry_after=retry_after,
            key_prefix=key_prefix,
            enabled=enabled,
            config_filename=config_filename,
        )
        hosts = hosts_from_env() if hosts is None else hosts
        if type(hosts) is not int or hosts < 1:
            raise ConfigurationError(f"hosts {hosts!r}: use a whole number of at least 1")
        if deadline_s is None:
            deadline_s = redis_deadline_from_env() or DEADLINE_S
        if not 0 < deadline_s <= 60:
            raise ConfigurationError(f"deadline_s {deadline_s}: use more than 0 and at most 60 seconds")
        if not callable(key_func):
            raise ConfigurationError(
                f"key_func {key_func!r} is not callable; pass identity.client_address, or your own"
            )
        self.strategy = strategy or self.get_app_config(C.STRATEGY) or "fixed-window"
        if self.strategy not in ALGORITHMS:
            raise ConfigurationError(f'unknown strategy "{self.strategy}"; use {", ".join(ALGORITHMS)}')
        self.addresses = Addresses(trusted_proxies_from_env() if trusted_proxies is None else trusted_proxies)
        self.on_refusal = on_refusal
        self.body_cap_bytes = body_cap_bytes
        self.storage_uri = storage_uri or self.get_app_config(C.STORAGE_URL) or redis_url_from_env() or "memory://"
        fallback = Fallback(outage_policy(on_outage or on_outage_from_env() or "local"), hosts=hosts)
        self.engine = Engine(opener(self.storage_uri, storage_options, deadline_s), deadline_s, fallback=fallback)
        self.access = self._access(deny, allow, ban, newcomers)
        self._draft_headers = draft_headers
        self._slowapi_headers = headers.SlowapiHeaders(
            [
                self._header_mapping[name]
                for name in (HEADERS.LIMIT, HEADERS.REMAINING, HEADERS.RESET, HEADERS.RETRY_AFTER)
            ],
            http_date=self._retry_after == "http-date",
        )
        self._written = frozenset([b"cache-control", *(n.lower().encode() for n in self._slowapi_headers.names)])
        self._rules: dict[Any, list[Rule]] = {}
        self._warned = False
        self._exempt: set[Any] = set()
        self._same_named: dict[str, list[Any]] = {}
        self._here: dict[tuple[Any, str, str, bool], Plan | None] = {}
        configured: str | None = self.get_app_config(C.APPLICATION_LIMITS)
        self._application = [
            self._rule(text, origin="application_limits", error_message=None)
            for text in application_limits or ([configured] if configured else ())
        ]
        configured = self.get_app_config(C.DEFAULT_LIMITS)
        self._defaults = [
            self._rule(text, origin="default_limits", error_message=None)
            for text in default_limits or ([configured] if configured else ())
        ]

    def _access(
        self,
        deny: Sequence[str] | None,
        allow: Sequence[str] | None,
        ban: Ban | None,
        newcomers: Newcomers | None,
    ) -> Access | None:
        said = access_from_env()
        deny, allow = said.deny if deny is None else deny, said.allow if allow is None else allow
        lists = Lists(deny, allow) if deny or allow else None
        if ban is None and said.ban is not None:
            ban = Ban.parse(*said.ban)
        if newcomers is None and said.newcomers:
            newcomers = Newcomers(most=said.newcomers)
        bans = None if ban is None else Bans(ban, self.engine, self._key_prefix)
        crowd = None if newcomers is None else Crowd(newcomers, self.engine)
        return Access(self.addresses, lists, bans, crowd) if lists or bans or crowd else None

    def get_app_config(self, key: str, default_value: Any = None) -> Any:
        """slowapi's reader of `RATELIMIT_*`, but "false" is false, and strategies are ours to judge."""
        if isinstance(default_value, bool):
            return self.app_config(key, default=default_value, cast=bool)
        if key == C.STRATEGY and default_value is not None:
            return default_value  # asked by slowapi for its own storage, which is never asked
        return super().get_app_config(key, default_value)

    # ── declaring ────────────────────────────────────────────────────────────────────────────────────────────

    def limit(
        self,
        limit_value: str | Callable[..., Any],
        key_func: Callable[..., Any] | None = None,
        per_method: bool = False,
        methods: Sequence[str] | None = None,
        error_message: str | Callable[..., Any] | None = None,
        exempt_when: Callable[..., Any] | None = None,
        cost: int | Callable[..., Any] = 1,
        override_defaults: bool = True,
        *,
        deduct_when: Callable[..., Any] | None = None,
        strategy: str | None = None,
        burst: int | None = None,
        name: str | None = None,
        on_outage: OnOutage | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Limit the decorated route; stands below the route decorator. slowapi's arguments, and by name:

        Args:
            deduct_when: A function of the response; false = this request is given back.
            strategy: Another way to count than the limiter's.
            burst: For "gcra": units that may pass at once; the limit's amount by default.
            name: What headers call the limit; by default the limit as written.
            on_outage: What it answers while the store is away, if not what the limiter does.

        Raises:
            ConfigurationError: The limit or the decorated object cannot be meant.
        """
        return self._declare(
            limit_value,
            key_func=key_func,
            per_method=per_method,
            methods=methods,
            error_message=error_message,
            exempt_when=exempt_when,
            cost=cost,
            override_defaults=override_defaults,
            deduct_when=deduct_when,
            strategy=strategy,
            burst=burst,
            name=name,
            on_outage=on_outage,
        )

    def shared_limit(
        self,
        limit_value: str | Callable[..., Any],
        scope: str | Callable[..., Any],
        key_func: Callable[..., Any] | None = None,
        error_message: str | Callable[..., Any] | None = None,
        exempt_when: Callable[..., Any] | None = None,
        cost: int | Callable[..., Any] = 1,
        override_defaults: bool = True,
        **more: Any,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Like `limit`, but all routes with the same `scope` (a name, or a function of the request) count together."""
        return self._declare(
            limit_value,
            scope=scope,
            key_func=key_func,
            error_message=error_message,
            exempt_when=exempt_when,
            cost=cost,
            override_defaults=override_defaults,
            **more,
        )

    def concurrency(
        self,
        units: int,
        key_func: Callable[..., Any] | None = None,
        *,
        ttl_s: int = 60,
        scope: str | Callable[..., Any] | None = None,
        per_method: bool = False,
        methods: Sequence[str] | None = None,
        error_message: str | Callable[..., Any] | None = None,
        exempt_when: Callable[..., Any] | None = None,
        name: str | None = None,
        on_outage: OnOutage | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Limit how many requests of one identity are under way at once; needs the middleware, which sees them end.

        A request holds a unit until the last byte of its answer has been sent, a WebSocket until it is closed. What
        else limits the route is charged with it, all or nothing. Takes what `limit` takes, and:

        Args:
            units: At most so many at once, over all workers; 1 to 10^9.
            ttl_s: How soon a unit comes back whose worker died, seconds; it is renewed while the request runs.
            scope: Routes with the same count together; by default each for itself.
            name: What headers call it; by default "3 at once".

        Raises:
            ConfigurationError: The limit or the decorated object cannot be meant.
        """
        return self._declare(
            (at_once(units, ttl_s, name=name or "", on_outage=on_outage),),
            key_func=key_func,
            scope=scope,
            per_method=per_method,
            methods=methods,
            error_message=error_message,
            exempt_when=exempt_when,
            override_defaults=False,
        )

    def exempt(self, obj: Callable[P, R]) -> Callable[P, R]:
        """No limit applies to the decorated route, application limits included."""
        self._exempt |= set(layers(obj))
        return obj

    def quota(self, limit_value: str | Callable[..., Any], *, scope: str | None = None, **more: Any) -> "Quota":
        """A dependency that limits: `Depends(limiter.quota("5/minute"))` on a route, router or app.

        Each route counts for itself; with a `scope` all routes with that name count together. Takes `limit`'s
        other arguments. Behind the middleware it is charged with the route's other limits, before the body.
        """
        more.setdefault("override_defaults", False)
        return Quota(self, self._rule(limit_value, origin="quota", scope=scope, **more))

    def _rule(self, limit_value: str | tuple[Limit, ...] | Callable[..., Any], *, origin: str, **more: Any) -> Rule:
        strategy = more.pop("strategy", None) or self.strategy
        how: dict[str, Any] = {word: more.get(word) for word in ("burst", "name", "on_outage")}
        methods = more.pop("methods", None)
        key_func = more.pop("key_func", None) or self._key_func
        if key_func in (get_ipaddr, get_remote_address):
            key_func = client_address  # the first believes a header that clients write, the second no proxy at all
        if getattr(key_func, "needs_proxies", False) and not self.addresses.trusting:
            raise ConfigurationError(
                f"{key_func!r} believes trusted proxies only, and there are none: "
                "Limiter(trusted_proxies=[...]) or ONEQUOTA_TRUSTED_PROXIES"
            )
        found: Any = limit_value
        if not callable(limit_value) and not isinstance(limit_value, tuple):
            found = Limit.parse(limit_value, algorithm=strategy, **how)
        return Rule(
            limits=found,
            key_func=key_func,
            algorithm=strategy,
            methods=frozenset(map(str.upper, methods)) if methods else None,
            origin=origin,
            **more,
        )

    def _declare(
        self, limit_value: str | tuple[Limit, ...] | Callable[..., Any], **more: Any
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        def decorate(func: Callable[P, R]) -> Callable[P, R]:
            if inspect.isclass(func) or not callable(func):
                raise ConfigurationError(f"{func!r}: decorate the functions or methods that handle requests")
            key = original(self, func)
            if wraps(self, func):
                wrapped = func
            else:
                if key in self._rules:  # this very function, for another route
                    key = Again(key)
                wrapped = wrap(self, func, key)
            self._rules.setdefault(key, []).append(self._rule(limit_value, origin=named(key), **more))
            self._ordinal(key)
            return wrapped

        return decorate

    def _ordinal(self, func: Any) -> int:
        """Which of several functions of one name this is, in the order of the code: the same in every worker."""
        namesakes = self._same_named.setdefault(named(func), [])
        if func not in namesakes:
            namesakes.append(func)
        return namesakes.index(func)

    # ── finding what applies ─────────────────────────────────────────────────────────────────────────────────

    @property
    def checks(self) -> bool:
        """Whether requests are checked at all; `enabled` may change at any time."""
        return self.enabled and self._checks

    @property
    def _auto_check(self) -> bool:
        """What slowapi's middleware reads first: the place to stop it, outside of its own error handling."""
        raise ConfigurationError(FOREIGN_MIDDLEWARE)

    @_auto_check.setter
    def _auto_check(self, value: bool) -> None:
        self._checks = value

    def filtered(self) -> bool:
        """slowapi's request filters: one that answers true lets the request by."""
        return bool(self._request_filters) and any(skip() for skip in self._request_filters)

    def check_deployment(self) -> None:
        """Raises ConfigurationError if several workers would each count for themselves."""
        if not self.storage_uri.startswith(("memory://", "async+memory://")):
            return
        if several_workers() is None and multiprocessing.parent_process() is not None and not self._warned:
            self._warned = True
            reason = "this process was started by another; if it is one of several workers, each counts for itself"
            log.warning("memory_storage", reason=f"{reason}: set REDIS_URL")
        if (several_workers() or 1) > 1:
            raise ConfigurationError(
                f"{several_workers()} workers would each count for themselves in memory://; "
                "set REDIS_URL or storage_uri to a Redis they share"
            )

    async def look_over(self) -> None:
        """At start-up: log what in the store's configuration endangers counters. Redis may be away."""
        try:
            async with asyncio.timeout(self.engine.deadline_s):
                for doubt in await self.engine.store().doubts():
                    log.warning("store_doubtful", reason=doubt)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("store_unavailable", error=str(error) or "no answer in time")

    def rules_of(self, func: Any) -> Sequence[Rule]:
        """What is declared on a function."""
        return self._rules.get(func, ())

    def check_place(self, place: Place) -> None:
        """Raises ConfigurationError if a decorator stands above the route decorator, where it cannot work."""
        for func in place.functions(""):
            innermost = original(self, func)
            self._ordinal(innermost)
            if innermost in self._rules and not wraps(self, func):
                raise ConfigurationError(
                    f"{named(innermost)}: @limiter.limit stands above the route decorator of "
                    f"{place.template}, so the route does not know it; put it below"
                )

    def exempts(self, functions: Sequence[Any]) -> bool:
        """Whether one of these is decorated with `exempt`."""
        return any(not self._exempt.isdisjoint(layers(func)) for func in functions)

    @property
    def everywhere(self) -> tuple[Sequence[Rule], Sequence[Rule]]:
        """The application's limits, and the defaults."""
        return self._application, self._defaults

    def plan_at(self, place: Place | None, method: str) -> Plan | None:
        """What a request to this place and method is charged; None = nothing."""
        functions = place.functions(method) if place else ()
        if self.exempts(functions):
            return None
        own: list[Rule] = []
        for func in functions:
            own += self._rules.get(original(self, func), ())
        covered: set[Any] = {original(self, func) for func in functions}
        for found in quotas(place.dependant if place else None, self):
            if found not in covered:  # one dependency, reached by two ways, is one limit
                own.append(found.rule)
                covered.add(found)
        name = place.template if place else UNMATCHED
        for func in functions:
            name += "|" + self._spell(original(self, func))
        return self._compose(own, name, method, frozenset(covered))

    def plan_here(self, key: Any, rules: Sequence[Rule], connection: HTTPConnection, *, alone: bool) -> Plan | None:
        """What a decorator or dependency charges by itself, where no gate has done so.

        Unless it is `alone`, the application's limits and the defaults have been charged already.
        """
        scope = connection.scope
        route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
        template = getattr(route, "path_format", "")
        method = scope.get("method", "")
        cached = (key, template, method if method in METHODS else "", alone)
        if cached not in self._here:
            self.check_deployment()
            endpoint = scope.get("endpoint")
            func = endpoint if isinstance(key, Quota) and endpoint is not None else key
            if not self._exempt.isdisjoint(layers(func)):
                self._here[cached] = None
            else:
                name = f"{template}|{self._spell(original(self, func))}"
                self._here[cached] = self._compose(rules, name, cached[2], frozenset([key]), alone=alone)
        return self._here[cached]

    def _spell(self, func: Any) -> str:
        ordinal = self._ordinal(func)
        return named(func) + (f"~{ordinal}" if ordinal else "")

    def _compose(
        self, own: Sequence[Rule], scope: str, method: str, covered: frozenset[Any], *, alone: bool = True
    ) -> Plan | None:
        return compose(
            application=self._application if alone else (),
            own=own,
            defaults=self._defaults if alone else (),
            scope=scope,
            method=method,
            prefix=self._key_prefix,
            covered=covered,
        )

    # ── everything at once ───────────────────────────────────────────────────────────────────────────────────

    def reset(self, key: str | None = None) -> Awaitable[int]:  # type: ignore[override]
        """Forget one identity's counters, or all under the prefix; to be awaited. Answers how many there were."""
        store = self.engine.open_store() if self.storage_uri.startswith("memory://") else None
        if self.access is not None and self.access.bans is not None:
            self.access.bans.lift_here(*([] if key is None else [keys.who(key)]))
        if isinstance(store, MemoryStore):  # at once, so that slowapi's unawaited `limiter.reset()` works
            return _Done(store.forget_now(self._key_prefix, key))
        return self._forget(key)

    async def _forget(self, key: str | None) -> int:
        found = await self.engine.forget(self._key_prefix, key)
        if self.access is not None and self.access.bans is not None:
            await self.access.bans.lift(*([] if key is None else [keys.who(key)]))
        return found

    async def aclose(self) -> None:
        """Close the running event loop's connections."""
        await self.engine.aclose()

    @property
    def middleware(self) -> Callable[..., Gate]:
        """For `app.add_middleware(limiter.middleware)`."""
        return functools.partial(Gate, limiter=self)

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def exposed(self) -> tuple[str, ...]:
        """The response headers a browser's script may read."""
        return headers.EXPOSED + (self._slowapi_headers.names[:3] if self._headers_enabled else ())

    def write(self, current: Sequence[tuple[bytes, bytes]], decision: Decision) -> headers.Pairs:
        """Response headers with the standing in them; names in `current` are lower case, as ASGI has them."""
        found = list(current)
        known = not decision.degraded  # without the store nobody knows what remains, and no header says it
        told = self._headers_enabled and known
        if told or not decision.allowed:
            clash, existing = False, None
            for name, value in found:
                if name in self._written:
                    clash = True
                    if name == b"retry-after":
                        existing = value
            if told:
                new = self._slowapi_headers.all(decision, existing)
            else:
                new = [self._slowapi_headers.retry(decision, existing)]
            if not decision.allowed:
                new.append((b"cache-control", b"no-store"))
            found = headers.replace(found, new) if clash else found + new
        if self._draft_headers and known:
            found += headers.draft(decision.standings)
        return found

    async def exceeded(self, rule: Rule, charge: Charge, request: HTTPConnection) -> RateLimitExceeded:
        """The exception slowapi would raise for this charge."""
        message = rule.error_message
        if callable(message):
            message = await ask(message, request)
        item = rate_limit_item(charge.limit)
        return RateLimitExceeded(SlowapiLimit(item, rule.key_func, None, False, None, message, None, charge.cost, True))

    def refusal_handler(self, app: Any) -> Callable[..., Any] | None:
        """The app's own handler for refusals: for status 429, for RateLimitExceeded, or for every HTTPException."""
        return handler_of(app, 429, RateLimitExceeded)

    @property
    def limiter(self) -> NoReturn:
        """slowapi's blocking strategy, whose storage is never written: asking it would answer nonsense."""
        raise ConfigurationError("limiter.limiter is not used here; ask await limiter.check(key, limits, peek=True)")

    def _inject_headers(self, response: Response, current_limit: Any) -> Response:
        """slowapi's hook, called by `_rate_limit_exceeded_handler`: no I/O, the standing is known."""
        decision = getattr(current_limit, "decision", None)
        if self.enabled and self._headers_enabled and decision is not None:
            existing = response.headers.get("retry-after", "").encode() or None
            new = self._slowapi_headers.all(decision, existing)
            new = new[3:] if decision.degraded else new
            response.raw_headers[:] = headers.replace(response.raw_headers, new)
        return response

    def _check_request_limit(self, *_: Any, **__: Any) -> NoReturn:
        raise ConfigurationError(FOREIGN_MIDDLEWARE)


class _Done:
    """An awaitable that has its answer already."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __await__(self) -> Generator[None, None, int]:
        return self._value
        yield
