"""Who asks. A key function takes the request (or nothing) and answers a non-empty string, or an awaitable of one.

    client_address      the address, seen from behind trusted proxies: the one to start with
    api_key(...)        an API key, as a digest
    jwt_subject(...)    the user in a token that was verified
    header("x-user")    what a trusted proxy says
    first_of(a, b, …)   the first that tells; both(a, b) all together
    vouched(function)   your own, if clients cannot choose what it answers

What tells nobody (no credential, or one that does not hold) falls to the next of `first_of`. Where there is none, the
request is refused and nothing charged: 401 if a credential was wanted, else 400. docs/identity.md says how to choose.
"""

from service.limits.identity.address import ADDRESSES, NOBODY, Addresses, client_address
from service.limits.identity.apikey import api_key, digest
from service.limits.identity.combining import both, first_of, vouched
from service.limits.identity.jwts import jwt_subject
from service.limits.identity.proxied import header
from service.limits.identity.resolver import Resolver, Vouched

__all__ = [
    "ADDRESSES",
    "NOBODY",
    "Addresses",
    "Resolver",
    "Vouched",
    "api_key",
    "both",
    "client_address",
    "digest",
    "first_of",
    "header",
    "jwt_subject",
    "vouched",
]
