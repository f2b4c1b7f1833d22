"""`/v1/authorize`, any method: the sub-request of a gateway (nginx, Caddy, Traefik): may its client's request pass?

    values     what is known of that request: remote_address, method, path, host, api_key
    asking     which descriptors are asked: those that the domain has rules for, or those that the gateway names
    answer     200, or 429 with Retry-After and problem+json, both with the RateLimit headers; no body is read

?domain=site asks every rule of the domain whose keys are among the values. &descriptor=remote_address,path asks this
one, in this order, instead; it may come several times. &refuse=403 is for nginx, which takes 403 for a refusal and
everything else for an error: an empty 403 in place of 429, and 400 where the gateway's key may not ask the domain.
"""

from service.routes.authorize.description import describe
from service.routes.authorize.route import Authorize

__all__ = ["Authorize", "describe"]
