"""How a user's function is called: with what its signature asks for, awaited if there is something to await. Pure."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

from starlette.requests import HTTPConnection

from service.errors import ConfigurationError


def is_coroutine(function: object) -> bool:
    """Whether calling it answers an awaitable: coroutine functions, partials and objects of such."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


async def ask(function: Callable[..., Any], connection: HTTPConnection, key: object = None) -> Any:
    """Call a user's function with what its signature asks for: nothing, the key, or the request."""
    wanted = wants(function)
    answer = function(*(key if name == "key" else connection for name in wanted))
    return await answer if isinstance(answer, Awaitable) else answer


@lru_cache(maxsize=4096)
def wants(function: Callable[..., Any]) -> tuple[str, ...]:
    """("request",), ("key",) or (): the one positional argument the function must or, by its name, would get."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ("request",)
    known = [name for name in ("request", "key") if name in parameters]
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        raise ConfigurationError(
            f"{getattr(function, '__qualname__', function)} takes {len(needed)} arguments; "
            "the limiter passes one, the request"
        )
    if "key" in needed or (not needed and known == ["key"]):
        return ("key",)
    return ("request",) if needed or "request" in known else ()
