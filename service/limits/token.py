"""Idempotency tokens, as callers send them: checked, and made into the `Token` of an ask. Pure.

A caller who got no answer asks again with the same token. If the first ask had been decided, that decision comes again
and nothing is charged; if not, it is decided now. So a retry is charged once, and a refusal stays one.
"""

import hashlib
import re

from service.errors import InvalidInput
from service.limits import keys
from service.limits.decision import Token

FIELD = "Idempotency-Key"
KEPT_S = 86_400
"""How long a token is remembered, seconds, unless said otherwise."""

_VISIBLE = re.compile(r"[!-~]{1,255}")


def token(text: object, content: bytes, *, owner: str, prefix: str = "", keep_s: int = KEPT_S) -> Token:
    """A caller's token, ready for an ask.

    Args:
        text: What the caller sent: 1 to 255 visible ASCII characters.
        content: All that must be the same when it comes again, e.g. the body of the request.
        owner: Whose token it is, e.g. a domain and an API key; those of different owners do not meet.
        prefix: Of the keys.
        keep_s: How long it is remembered, seconds; 1 to 30 days.

    Raises:
        InvalidInput: The token cannot be used.
    """
    if not isinstance(text, str) or not _VISIBLE.fullmatch(text):
        raise InvalidInput(FIELD, "use 1 to 255 visible ASCII characters, for example a UUID")
    if not 1 <= keep_s <= 30 * KEPT_S:
        raise InvalidInput("keep_s", f"{keep_s} s; use 1 s to 30 days")
    return Token(keys.once(prefix, owner, text), hashlib.sha256(content).digest()[:16], keep_s)
