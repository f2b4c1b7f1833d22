"""Limits where no gate stands: the wrapper around a decorated function, and the dependency `Limiter.quota`.

Behind the middleware both find that the request has been charged for them and step aside. Without it they charge by
themselves: after the body was read and validated, before the function runs. FastAPI hands the wrapper the connection
through parameters that the function itself never sees, so it needs no `request` of its own.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args, get_origin

from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from service.errors import ConfigurationError, InvalidInput, StoreUnavailable
from service.limits.decision import Decision
from service.limits.passage import ADMITTED, Admission, admissions, admit, deduct, fault, refusal
from service.limits.plan import Rule, is_coroutine

if TYPE_CHECKING:
    from service.limits.limiter import Limiter

CONNECTION = "onequota_connection"
RESPONSE = "onequota_response"
MARK = "__onequota__"


class Quota:
    """A limit as a dependency; made by `Limiter.quota`. Answers the decision, None if nothing was to decide."""

    def __init__(self, limiter: "Limiter", rule: Rule) -> None:
        self.limiter = limiter
        self.rule = rule

    async def __call__(self, connection: HTTPConnection, response: Response) -> Decision | None:
        admission = await _charge(self.limiter, self, [self.rule], connection, sees_response=False)
        if admission is None:
            return None
        if not admission.by_gate:
            _write(self.limiter, admission, response)
        return admission.decision


def quotas(dependant: Any, limiter: "Limiter") -> Iterator[Quota]:
    """The quotas of a limiter in FastAPI's tree of dependencies."""
    for dependency in getattr(dependant, "dependencies", ()):
        if isinstance(dependency.call, Quota) and dependency.call.limiter is limiter:
            yield dependency.call
        yield from quotas(dependency, limiter)


async def _charge(
    limiter: "Limiter", key: Any, rules: Sequence[Rule], connection: HTTPConnection, *, sees_response: bool = True
) -> Admission | None:
    """The admission of this request that covers `key`: the gate's, or one made here. Raises what refuses."""
    scope = connection.scope
    if not limiter.checks:
        return None
    before = admissions(scope).get(limiter)
    if before is not None and key in before.plan.covered:
        return before
    if limiter.filtered() or (plan := limiter.plan_here(key, rules, connection, alone=before is None)) is None:
        return None
    if plan.deducts and not sees_response:
        raise ConfigurationError(
            "deduct_when on a dependency or a generator needs the middleware, which sees the response: "
            "app.add_middleware(limiter.middleware)"
        )
    try:
        admission = await admit(limiter, plan, scope, connection=connection)
    except (StoreUnavailable, InvalidInput) as error:
        raise _answer(fault(error), connection) from error
    admission.by_gate = False
    if admission.refused:
        raise _answer(await refusal(limiter, admission, scope), connection)
    if before is not None:
        admissions(scope)[limiter] = before
    return admission


class _Answer(HTTPException):
    """A ready response on its way out of a dependency or an endpoint."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code, headers=dict(response.headers))
        self.response = response


def _answer(response: Response, connection: HTTPConnection) -> Exception:
    """The exception that makes the application send `response`."""
    if connection.scope["type"] != "http":
        return WebSocketException(1008, "rate limit")
    # where ExceptionMiddleware looks handlers up; without it HTTPException's own handler answers, less exactly
    handlers, _ = connection.scope.get("starlette.exception_handlers", ({}, {}))
    handlers[_Answer] = lambda _request, error: error.response
    return _Answer(response)


def layers(func: Any) -> list[Any]:
    """A function and all it wraps, outermost first."""
    found = [func]
    while (inner := getattr(func, "__wrapped__", None) or getattr(func, "func", None)) is not None:
        if inner in found:
            break
        found.append(inner)
        func = inner
    return found


def wraps(limiter: "Limiter", func: Any) -> bool:
    """Whether a wrapper of this limiter is among the layers."""
    return any(limiter in getattr(layer, MARK, ()) for layer in layers(func))


def original(limiter: "Limiter", func: Any) -> Any:
    """What the limiter knows a function as: the one its innermost wrapper was put around."""
    for layer in reversed(layers(func)):
        if limiter in getattr(layer, MARK, ()):
            return getattr(layer, MARK)[limiter]
    return layers(func)[-1]


def named(func: Any) -> str:
    """`module:qualname`, the same in every worker."""
    return f"{getattr(func, '__module__', '')}:{getattr(func, '__qualname__', type(func).__qualname__)}"


def wrap(limiter: "Limiter", func: Callable[..., Any]) -> Any:
    """The function, charged first unless the gate has done so; always a coroutine function or a generator one."""
    innermost = layers(func)[-1]
    if inspect.isgeneratorfunction(innermost) or inspect.isasyncgenfunction(innermost):
        return _stream(limiter, func, innermost)
    inner = any(hasattr(layer, MARK) for layer in layers(func))
    run = func if is_coroutine(func) else functools.partial(run_in_threadpool, func)
    at_connection, own_connection = _place_of(func, HTTPConnection, CONNECTION)
    at_response, own_response = _place_of(func, Response, RESPONSE)
    keep_connection, keep_response = inner or own_connection, inner or own_response  # others want them too
    hidden = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        for name, kind, own in (
            (CONNECTION, HTTPConnection, own_connection),
            (RESPONSE, Response, own_response),
        )
        if not own
    ]

    @functools.wraps(func)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        connection = kwargs.get(at_connection) if keep_connection else kwargs.pop(CONNECTION, None)
        slot = kwargs.get(at_response) if keep_response else kwargs.pop(RESPONSE, None)
        if connection is None:
            connection = _found(func, args, kwargs)
        admitted = connection.scope.get(ADMITTED)
        admission = admitted.get(limiter) if admitted else None
        if admission is None or innermost not in admission.plan.covered:
            admission = await _charge(limiter, innermost, limiter.rules_of(innermost), connection)
        if admission is None or admission.by_gate:
            return await run(*args, **kwargs)
        status = getattr(connection.scope.get("route"), "status_code", None) or 200
        return await _finish(limiter, admission, functools.partial(run, *args, **kwargs), slot, status)

    return _mark(limiter, func, innermost, limited, hidden)


def _place_of(func: Any, kind: type, hidden: str) -> tuple[str, bool]:
    """The parameter FastAPI fills with a `kind`, and whether it is the function's own: it fills only one of each."""
    try:
        signature = inspect.signature(func, eval_str=True)
    except Exception:  # an annotation that cannot be resolved here: go by its last word
        signature = inspect.signature(func)
    for name, parameter in signature.parameters.items():
        found = parameter.annotation
        found = get_args(found)[0] if get_origin(found) is Annotated else found
        if inspect.isclass(found):
            is_own = issubclass(found, kind) and not issubclass(found, (Request, WebSocket))
        else:
            is_own = isinstance(found, str) and found.rstrip("]").endswith(kind.__name__)
        if is_own and name != hidden:
            return name, True
    return hidden, False


async def _finish(
    limiter: "Limiter", admission: Admission, run: Callable[[], Any], slot: Response | None, status: int
) -> Any:
    """Run the function and see that the standing stands on its response, also on an error it raises."""
    try:
        answer = await run()
    except HTTPException as error:
        response = Response(status_code=error.status_code, headers=error.headers)
        await deduct(limiter, admission, response)
        _write(limiter, admission, response)
        told = copy.copy(error)  # the app may raise one and the same exception again and again
        told.headers = {name: value for name, value in response.headers.items() if name != "content-length"}
        raise told from error.__cause__
    except Exception:
        await deduct(limiter, admission, Response(status_code=500))
        raise
    target = answer if isinstance(answer, Response) else slot
    if target is not None:
        seen = target if target.status_code else Response(status_code=status)
        await deduct(limiter, admission, seen)
        _write(limiter, admission, target)
    return answer


def _write(limiter: "Limiter", admission: Admission, response: Response) -> None:
    if admission.decision is not None:  # in place: FastAPI keeps hold of the list
        response.raw_headers[:] = limiter.write(response.raw_headers, admission.decision)


def _stream(limiter: "Limiter", func: Any, innermost: Any) -> Any:
    """A generator's body runs after its response has started, so it is charged as a dependency instead."""

    async def charged(connection: HTTPConnection, response: Response) -> None:
        rules = limiter.rules_of(innermost)
        admission = await _charge(limiter, innermost, rules, connection, sees_response=False)
        if admission is not None and not admission.by_gate:
            _write(limiter, admission, response)

    @functools.wraps(func)
    def limited(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(name, None)
        return func(*args, **kwargs)

    name = f"{CONNECTION}_{sum(hasattr(layer, MARK) for layer in layers(func))}"
    hidden = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Any, default=Depends(charged))
    return _mark(limiter, func, innermost, limited, [hidden])


def _mark(limiter: "Limiter", func: Any, innermost: Any, wrapper: Any, hidden: Sequence[inspect.Parameter] = ()) -> Any:
    hidden = wrapper.__dict__.pop("__hidden__", hidden)
    signature = inspect.signature(func)
    known = [p for p in signature.parameters.values() if p.name not in (CONNECTION, RESPONSE)]
    at = next((i for i, p in enumerate(known) if p.kind is p.VAR_KEYWORD), len(known))
    wrapper.__signature__ = signature.replace(parameters=[*known[:at], *hidden, *known[at:]])
    setattr(wrapper, MARK, {**getattr(func, MARK, {}), limiter: innermost})
    return cast(Any, wrapper)


def _found(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HTTPConnection:
    """The connection among the arguments, as Starlette passes it."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, HTTPConnection):
            return value
    raise ConfigurationError(
        f"{named(func)} was called without a request, so nobody could be charged; let FastAPI or Starlette call it "
        "(a decorator in between must use functools.wraps), or call its __wrapped__ to run it without the limit"
    )
