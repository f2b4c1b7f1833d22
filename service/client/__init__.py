"""The client of the onequota service, for code in Python.

    with Client("http://127.0.0.1:8000") as client:          # or ONEQUOTA_URL and ONEQUOTA_API_KEY
        answer = client.check("alice", "10/minute;200/hour")
        if not answer.allowed:
            ...                                              # answer.retry_after says when to come again
        with client.limit("alice", "10/minute"):             # waits until it passes
            ...
        with client.lease("alice", 3):                       # one of three at once, renewed and released
            ...

`AsyncClient` is the same, awaited. While the service is away it answers itself, and says so: `answer.degraded`.

    question.py  · what can be asked
    answer.py    · what comes back
    wire.py      · how both travel: the one place that knows the service's documents
    attempts.py  · what is sent again, and when the service is left alone
    away.py        what is answered while it is away
    held.py        a unit that is held: until when, and what failed renewals mean
    waiting.py   · how long a refused caller waits
    carrying.py    what the two clients share
    blocking.py    Client
    awaited.py     AsyncClient
"""

from service.client.answer import Answer, Standing
from service.client.awaited import AsyncClient, AsyncLease, AsyncReservation
from service.client.blocking import Client, Lease, Reservation
from service.client.question import Check, DomainCheck, Hold
from service.errors import AccessDenied, InvalidInput, OverLimit, ServiceUnavailable

__all__ = [
    "AccessDenied",
    "Answer",
    "AsyncClient",
    "AsyncLease",
    "AsyncReservation",
    "Check",
    "Client",
    "DomainCheck",
    "Hold",
    "InvalidInput",
    "Lease",
    "OverLimit",
    "Reservation",
    "ServiceUnavailable",
    "Standing",
]
