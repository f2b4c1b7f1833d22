"""The id of a request: the client's if it is sane, else ours. The app, the logs and the response have the same."""

import itertools
import os
import re
import secrets
from collections.abc import Mapping

from starlette.types import Scope

REQUEST_ID_KEY = "onequota.request_id"
"""Where the scope keeps it for a shield further in: `scope["state"]` is the app's to write."""

_SANE_ID = re.compile(rb"[!#-&(-;=?-\[\]-_a-~]{1,128}")
"""Visible ASCII without quotes of any kind, backslashes and angle brackets: it travels into logs, JSON and pages."""


def sane_request_id(value: bytes | None) -> str | None:
    """The client's `x-request-id`, if it is 1 to 128 visible ASCII characters that need no escape anywhere."""
    return value.decode() if value and _SANE_ID.fullmatch(value) else None


def identify(scope: Scope, headers: Mapping[bytes, bytes]) -> str:
    """The request's id: an outer shield's, else the client's, else a new one. The app finds it in its state."""
    request_id: str | None = scope.get(REQUEST_ID_KEY)
    if request_id is None:
        request_id = sane_request_id(headers.get(b"x-request-id")) or f"{_prefix}-{next(_numbers):x}"
        scope[REQUEST_ID_KEY] = request_id
    state = scope.get("state")
    if state is None:
        state = scope["state"] = {}
    state["request_id"] = request_id
    return request_id


_numbers = itertools.count(1)
_prefix = secrets.token_hex(6)


def _renew() -> None:
    """A forked worker's ids are its own."""
    global _prefix  # noqa: PLW0603
    _prefix = secrets.token_hex(6)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
