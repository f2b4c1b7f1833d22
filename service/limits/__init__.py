"""The limiter: slowapi's decorators, awaited and counted together by all workers. Start reading at `limiter.py`.

from service.limits import Limiter, identity
"""

from slowapi import _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_ipaddr, get_remote_address

from service.limits import identity
from service.limits.access import Ban, Newcomers
from service.limits.decision import Decision, Standing
from service.limits.gate import Gate
from service.limits.gate import Gate as SlowAPIASGIMiddleware
from service.limits.gate import Gate as SlowAPIMiddleware
from service.limits.limit import Limit
from service.limits.limiter import Limiter

__all__ = [
    "Ban",
    "Decision",
    "Gate",
    "Limit",
    "Limiter",
    "Newcomers",
    "RateLimitExceeded",
    "SlowAPIASGIMiddleware",
    "SlowAPIMiddleware",
    "Standing",
    "_rate_limit_exceeded_handler",
    "get_ipaddr",
    "get_remote_address",
    "identity",
]
