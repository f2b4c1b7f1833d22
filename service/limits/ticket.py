"""What a reservation or a lease is known by: an id that nobody can guess, and that says itself what it is about. Pure.

    <24 characters: 144 random bits> <r or w> <what it is about: JSON in Base64url>

So whoever has the id can settle, renew or release in one call to Redis, on any worker. What an id says is believed only
where Redis knows the random part: of a reservation from a record that is bound to all the id says, of a lease from the
set of leases. Both are kept under a name made of the owner, too: an id of somebody else's is unknown.

"w": made while Redis was away; the worker that made it knows of it, and nobody else. Of a Cluster a server may have
been there: it knows its part.
"""

import hashlib
import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, NamedTuple

from service.errors import InvalidInput, NotHeld
from service.limits import keys
from service.limits.decision import Charge, Token
from service.limits.limit import Limit

LONGEST = 4096
"""Characters of an id: it travels in URLs. Enough for seven limits with the longest keys and names there are."""

_RANDOM_BYTES = 18
_TEXT = re.compile(r"([A-Za-z0-9_-]{24})([rw])([A-Za-z0-9_-]+)")


class Ticket(NamedTuple):
    """What an id stands for.

    Attributes:
        random: 24 characters of it.
        charges: What was charged, or is held; at least one.
        ttl_s: How long it lasts, seconds.
        cost: What was reserved; a charge is that, or a multiple where several descriptors share a counter.
        keep_s: How long its record is kept, seconds; at least `ttl_s`.
        here: It was made without the store.
    """

    random: str
    charges: tuple[Charge, ...]
    ttl_s: int
    cost: int = 0
    keep_s: int = 0
    here: bool = False

    @property
    def text(self) -> str:
        """The id."""
        said = urlsafe_b64encode(self._said()).decode().rstrip("=")
        return f"{self.random}{'w' if self.here else 'r'}{said}"

    def token(self, owner: str) -> Token:
        """The token of a reservation: what was charged with it is what this says."""
        name = f"{owner}/{self.random}".encode()
        key = keys.beside(self.charges[0].key, name, "once")
        return Token(key, hashlib.sha256(self._said()).digest()[:16], self.keep_s)

    def lease(self, owner: str) -> str:
        """The lease, as an ask carries it: three integers of 48 bits."""
        digest = hashlib.blake2b(f"{owner}/{self.random}".encode(), digest_size=_RANDOM_BYTES).digest()
        return " ".join(str(int.from_bytes(digest[at : at + 6], "big")) for at in (0, 6, 12))

    def _said(self) -> bytes:
        charges = [[key.decode(), cost, _plain(limit)] for limit, key, cost in self.charges]
        return json.dumps([self.ttl_s, self.cost, self.keep_s, charges], separators=(",", ":")).encode()


def random() -> str:
    """The part that nobody can guess."""
    return urlsafe_b64encode(secrets.token_bytes(_RANDOM_BYTES)).decode()


def derived(token: Token) -> str:
    """The same for what is asked again with a token: as hard to guess as that is."""
    digest = hashlib.blake2b(token.key + token.fingerprint, digest_size=_RANDOM_BYTES, person=b"ticket").digest()
    return urlsafe_b64encode(digest).decode()


def admissible(ticket: Ticket) -> Ticket:
    """A ticket whose id is not too long. Raises InvalidInput."""
    if not ticket.charges:
        raise InvalidInput("limits", "none apply; there is nothing to reserve")
    if len(ticket.text) > LONGEST:
        raise InvalidInput("limits", f"{len(ticket.charges)} of them are too many to be spoken of in one id")
    return ticket


def read(text: object) -> Ticket:
    """The ticket of an id. Raises NotHeld: it is none of ours."""
    match = _TEXT.fullmatch(text) if isinstance(text, str) and len(text) <= LONGEST else None
    if match is None:
        raise NotHeld("id", "is none of ours")
    try:
        ttl_s, cost, keep_s, said = json.loads(urlsafe_b64decode(match[3] + "=="))
        charges = tuple(Charge(Limit(**limit), key.encode(), units) for key, units, limit in said)
        if not all(map(_is_whole, (ttl_s, cost, keep_s, *(charge.cost for charge in charges)))):
            raise ValueError
        ticket = Ticket(match[1], charges, ttl_s, cost, keep_s, match[2] == "w")
        if not charges or ticket.text != text or not all(map(_is_counter, charges)):
            raise ValueError
        if len({charge.key for charge in charges}) < len(charges):
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise NotHeld("id", "is none of ours") from None
    return ticket


def _is_whole(number: object) -> bool:
    """Whether the script may see it: a number that it stumbles over would be everybody's error who asks meanwhile."""
    return type(number) is int and 0 <= number < 1 << 40


def _is_counter(charge: Charge) -> bool:
    """Whether such a key can count such a limit: a made-up id must not mistake one kind of counter for another."""
    return b"}:" in charge.key and charge.key.endswith(f":{charge.limit.spelling}".encode())


_SAID = {field.name: field.default for field in fields(Limit) if field.init}


@lru_cache(maxsize=4096)
def _plain(limit: Limit) -> dict[str, Any]:
    """What a limit is made of, without what it is by default."""
    found = {name: getattr(limit, name) for name in _SAID if name != "name"}
    found = {name: value for name, value in found.items() if _SAID[name] is MISSING or value != _SAID[name]}
    return found if Limit(**found).name == limit.name else {**found, "name": limit.name}
