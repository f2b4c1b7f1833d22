"""Limits where no gate stands: the wrapper around a decorated function, and the dependency `Limiter.quota`.

Behind the middleware both find that the request has been charged for them and step aside. Without it they charge by
themselves: after the body was read and validated, before the function runs. FastAPI hands the wrapper the connection
through parameters that the function itself never sees, so it needs no `request` of its own.
"""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args, get_origin

from anyio import from_thread
from fastapi import Depends
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from service.errors import ConfigurationError, IdentityUnavailable, InvalidInput, StoreUnavailable
from service.limits.calling import is_coroutine
from service.limits.decision import Decision
from service.limits.passage import ADMITTED, ASIDE, Admission, admissions, admit, deduct, fault, refusal
from service.limits.plan import Rule

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
    if plan.holds:
        raise ConfigurationError(
            "concurrency needs the middleware, which sees a request end: app.add_middleware(limiter.middleware)"
        )
    if plan.deducts and not sees_response:
        raise ConfigurationError(
            "deduct_when on a dependency or a generator needs the middleware, which sees the response: "
            "app.add_middleware(limiter.middleware)"
        )
    try:
        admission = await admit(limiter, plan, scope, connection=connection)
    except (StoreUnavailable, IdentityUnavailable, InvalidInput) as error:
        raise _answer(fault(error), connection) from error
    except ClientDisconnect:
        raise _answer(Response(status_code=400), connection) from None  # nobody reads it
    admission.by_gate = False
    if admission.refused:
        raise _answer(await refusal(limiter, admission, scope), connection)
    if before is not None:
        admissions(scope)[limiter] = before
        scope.setdefault(ASIDE, []).append((limiter, admission))
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


class Again:
    """A function that is decorated once more, for another route: rules of its own under the same name."""

    def __init__(self, func: Any) -> None:
        self.__module__ = getattr(func, "__module__", "")
        self.__qualname__ = getattr(func, "__qualname__", type(func).__qualname__)


def wrap(limiter: "Limiter", func: Callable[..., Any], key: Any) -> Any:
    """The function, charged first unless the gate has done so; of the same kind as the function.

    Args:
        limiter: Whose limits.
        func: What is decorated.
        key: What the limiter knows it as.
    """
    innermost = layers(func)[-1]
    if inspect.isgeneratorfunction(innermost) or inspect.isasyncgenfunction(innermost):
        return _stream(limiter, func, key)
    inner = any(hasattr(layer, MARK) for layer in layers(func))
    at_connection, own_connection = _place_of(func, HTTPConnection, CONNECTION)
    at_response, own_response = _place_of(func, Response, RESPONSE)
    keep_connection, keep_response = inner or own_connection, inner or own_response  # others want them too
    keeps_none = not (keep_connection or keep_response)

    def passed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[HTTPConnection, Response | None]:
        connection = kwargs.get(at_connection) if keep_connection else kwargs.pop(CONNECTION, None)
        slot = kwargs.get(at_response) if keep_response else kwargs.pop(RESPONSE, None)
        return _found(func, args, kwargs) if connection is None else connection, slot

    def admitted(connection: HTTPConnection) -> Admission | None:
        known = connection.scope.get(ADMITTED)
        found = known.get(limiter) if known else None
        return found if found is not None and key in found.plan.covered else None

    if is_coroutine(func) or is_coroutine(innermost):

        @functools.wraps(func)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            if keeps_none:  # the way of nearly every request, so without a call
                connection, slot = kwargs.pop(CONNECTION, None), kwargs.pop(RESPONSE, None)
                if connection is None:
                    connection = _found(func, args, kwargs)
            else:
                connection, slot = passed(args, kwargs)
            known = connection.scope.get(ADMITTED)
            admission = known.get(limiter) if known else None
            if admission is None or key not in admission.plan.covered:
                admission = await _charge(limiter, key, limiter.rules_of(key), connection)
            if admission is None or admission.by_gate:
                return await func(*args, **kwargs)
            try:
                answer = await func(*args, **kwargs)
            except HTTPException as error:
                raise await _told(limiter, admission, error) from error.__cause__
            await _finish(limiter, admission, answer, slot, connection)
            return answer

    else:

        @functools.wraps(func)
        def limited(*args: Any, **kwargs: Any) -> Any:  # in a thread: frameworks call plain functions there
            connection, slot = passed(args, kwargs)
            admission = admitted(connection) or from_thread.run(
                _charge, limiter, key, limiter.rules_of(key), connection
            )
            if admission is None or admission.by_gate:
                return func(*args, **kwargs)
            try:
                answer = func(*args, **kwargs)
            except HTTPException as error:
                raise from_thread.run(_told, limiter, admission, error) from error.__cause__
            from_thread.run(_finish, limiter, admission, answer, slot, connection)
            return answer

    hidden = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        for name, kind, own in ((CONNECTION, HTTPConnection, own_connection), (RESPONSE, Response, own_response))
        if not own
    ]
    return _mark(limiter, func, key, limited, hidden)


def _place_of(func: Any, kind: type, hidden: str) -> tuple[str, bool]:
    """The parameter FastAPI fills with a `kind`, and whether it is the function's own: it fills only one of each."""
    names = getattr(layers(func)[-1], "__globals__", {})
    for name, parameter in inspect.signature(func).parameters.items():
        found = parameter.annotation
        if isinstance(found, str):
            with contextlib.suppress(Exception):  # not to be resolved here: go by its name
                found = eval(found, names)
        found = get_args(found)[0] if get_origin(found) is Annotated else found
        if inspect.isclass(found):
            is_own = issubclass(found, kind) and not issubclass(found, (Request, WebSocket))
        else:
            is_own = isinstance(found, str) and found.rpartition(".")[2] == kind.__name__
        if is_own and name != hidden:
            return name, True
    return hidden, False


async def _told(limiter: "Limiter", admission: Admission, error: HTTPException) -> HTTPException:
    """The error a function raised, carrying the standing."""
    response = Response(status_code=error.status_code, headers=error.headers)
    await deduct(limiter, admission, response)
    _write(limiter, admission, response)
    told = copy.copy(error)  # the app may raise one and the same exception again and again
    told.headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return told


async def _finish(
    limiter: "Limiter", admission: Admission, answer: Any, slot: Response | None, connection: HTTPConnection
) -> None:
    """The function has answered: settle what depends on that, and see that the standing stands on the response.

    An error that is no HTTPException comes never here: which status it becomes is not known yet, so it stays charged.
    """
    target = answer if isinstance(answer, Response) else slot
    if isinstance(target, Response):
        status = target.status_code or getattr(connection.scope.get("route"), "status_code", None) or 200
        await deduct(limiter, admission, target if target.status_code else Response(status_code=status))
        _write(limiter, admission, target)


def _write(limiter: "Limiter", admission: Admission, response: Response) -> None:
    if admission.decision is not None:  # in place: FastAPI keeps hold of the list
        response.raw_headers[:] = limiter.write(response.raw_headers, admission.decision)


def _stream(limiter: "Limiter", func: Any, key: Any) -> Any:
    """A generator's body runs after its response has started, so it is charged as a dependency instead."""

    async def charged(connection: HTTPConnection, response: Response) -> None:
        rules = limiter.rules_of(key)
        admission = await _charge(limiter, key, rules, connection, sees_response=False)
        if admission is not None and not admission.by_gate:
            _write(limiter, admission, response)

    @functools.wraps(func)
    def limited(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(name, None)
        return func(*args, **kwargs)

    name = f"{CONNECTION}_{sum(hasattr(layer, MARK) for layer in layers(func))}"
    hidden = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Any, default=Depends(charged))
    return _mark(limiter, func, key, limited, [hidden])


def _mark(limiter: "Limiter", func: Any, key: Any, wrapper: Any, hidden: Sequence[inspect.Parameter]) -> Any:
    signature = inspect.signature(func)
    known = [p for p in signature.parameters.values() if p.name not in (CONNECTION, RESPONSE)]
    at = next((i for i, p in enumerate(known) if p.kind is p.VAR_KEYWORD), len(known))
    wrapper.__signature__ = signature.replace(parameters=[*known[:at], *hidden, *known[at:]])
    setattr(wrapper, MARK, {**getattr(func, MARK, {}), limiter: key})
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
