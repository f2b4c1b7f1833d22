"""`POST /v1/check`: may this caller do this now? One decision, or up to 1,000 that each stand alone.

key      whose request it is, and what that key may ask (service/callers.py)
address  the guard of the route itself, `check_limit`
question the body, validated before anything is charged
decide   small bodies at once; large ones a slice at a time, so that small ones are not held up
answer   200, allowed or not
"""

from service.routes.check.description import describe
from service.routes.check.route import Check

__all__ = ["Check", "describe"]
